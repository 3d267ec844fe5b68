package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// serving runs a server on loopback ports until the test ends.
func serving(t *testing.T) (addresses map[string]string, stop func()) {
	t.Helper()
	t.Setenv("POD_NAME", "echo-0")
	t.Setenv("VERSION", "v7")
	const any = "127.0.0.1:0"
	s, err := newServer(serveOptions{http: any, grpc: any, tcp: any, greet: any, tls: any, grace: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return s.addresses(), stop
}

func mustCall(t *testing.T, args ...string) *Result {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), append([]string{"call"}, args...), &out); err != nil {
		t.Fatalf("call %v: %v", args, err)
	}
	var r Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("call %v wrote %s: %v", args, out.Bytes(), err)
	}
	return &r
}

func TestEveryKindOfCallIsAnsweredByTheServer(t *testing.T) {
	at, _ := serving(t)
	for name, c := range map[string]struct {
		args     []string
		protocol string
		steps    int
	}{
		"HTTP/1":           {[]string{"http", "http://" + at["http"] + "/a"}, "HTTP/1.1", 0},
		"HTTP/1.0":         {[]string{"http10", "http://" + at["http"] + "/a"}, "HTTP/1.0", 3},
		"h2c":              {[]string{"http", "http://" + at["http"] + "/a", "--h2c"}, "HTTP/2.0", 0},
		"unary gRPC":       {[]string{"grpc", at["grpc"]}, "gRPC", 0},
		"gRPC stream":      {[]string{"grpc-bidi", at["grpc"]}, "", 3},
		"WebSocket":        {[]string{"ws", "http://" + at["http"] + "/ws"}, "", 3},
		"client-first TCP": {[]string{"tcp", at["tcp"]}, "tcp", 3},
		"server-first TCP": {[]string{"greet", at["greet"]}, "tcp", 4},
		"own TLS":          {[]string{"tls", at["tls"]}, "HTTP/1.1", 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustCall(t, c.args...)
			if r.Failure != nil {
				t.Fatalf("failed: %+v", r.Failure)
			}
			if c.protocol != "" && (r.Reply == nil || r.Reply.Protocol != c.protocol || r.Reply.Version != "v7" || r.Reply.Pod != "echo-0") {
				t.Errorf("reply %+v, want pod echo-0 of version v7 over %s", r.Reply, c.protocol)
			}
			if len(r.StepsMS) != c.steps {
				t.Errorf("%d steps, want %d", len(r.StepsMS), c.steps)
			}
			if c.args[0] == "tls" && r.Peer != ownTLSName {
				t.Errorf("certificate of %q, want the application's own", r.Peer)
			}
		})
	}
}

func TestAChunkedBodyArrivesWhole(t *testing.T) {
	at, _ := serving(t)
	r := mustCall(t, "http", "http://"+at["http"]+"/", "--body", "8388608", "--chunked", "--header", "X-Who: me")
	if r.Failure != nil || r.Reply == nil {
		t.Fatalf("result %+v", r)
	}
	if r.Reply.BodyBytes != 8<<20 || r.Reply.Method != http.MethodPost || r.Reply.Headers["X-Who"][0] != "me" {
		t.Errorf("server saw %+v", r.Reply)
	}
	if r.Reply.Headers["Content-Length"] != nil {
		t.Error("the length was sent: not chunked")
	}
}

func TestEndingsAreToldApart(t *testing.T) {
	ends := map[string]func(*net.TCPConn){
		"reset": func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
		"eof":   func(c *net.TCPConn) { _ = c.Close() },
	}
	for want, end := range ends {
		t.Run(want, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					// Read all that was sent, or closing would be a reset too.
					_, _ = c.Read(make([]byte, 4096))
					end(c.(*net.TCPConn))
				}
			}()
			for _, args := range [][]string{{"plain", l.Addr().String()}, {"http", "http://" + l.Addr().String()}} {
				r := mustCall(t, args...)
				if r.Failure == nil || r.Failure.Kind != want {
					t.Errorf("%s: failure %+v, want %s", args[0], r.Failure, want)
				}
			}
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if r := mustCall(t, "http", "http://"+l.Addr().String()); r.Failure == nil || r.Failure.Kind != "refused" {
		t.Errorf("closed port: failure %+v, want refused", r.Failure)
	}
}

func TestLoadKeepsItsRateAndCountsVersions(t *testing.T) {
	at, _ := serving(t)
	for kind, target := range map[string]string{"http": "http://" + at["http"], "grpc": at["grpc"], "tcp": at["tcp"], "tls": at["tls"]} {
		t.Run(kind, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), []string{
				"load", kind, target, "--rate", "400", "--requests", "200",
				"--connections", "4", "--new-connection-share", "0.5", "--timeline",
			}, &out)
			if err != nil {
				t.Fatal(err)
			}
			var r Report
			if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
			if r.Requests != 200 || r.Failed != 0 || r.Versions["v7"] != 200 {
				t.Errorf("report %+v, want 200 answers of v7", &r)
			}
			if r.Opened != 2 {
				t.Errorf("two clients that keep their connections opened %d", r.Opened)
			}
			if len(r.Timeline) != 1 || r.Timeline[0].Answers != 200 || r.Timeline[0].Last.After(r.End) {
				t.Errorf("timeline %+v, want one run of 200", r.Timeline)
			}
			if took := r.End.Sub(r.Start); took < 490*time.Millisecond {
				t.Errorf("took %v: 200 calls at 400 a second take half a second", took)
			}
		})
	}
}

func TestLoadMakesCallsThatAreStreams(t *testing.T) {
	at, _ := serving(t)
	for kind, target := range map[string]string{
		"ws": "http://" + at["http"] + "/ws", "grpc-bidi": at["grpc"], "greet": at["greet"], "http10": "http://" + at["http"],
	} {
		r, err := load(t.Context(), loadOptions{
			call: callOptions{kind: kind, target: target, timeout: time.Second, messages: 2, every: 10 * time.Millisecond},
			rate: 1000, requests: 10, connections: 2,
		})
		if err != nil {
			t.Fatal(err)
		}
		if r.Requests != 10 || r.Failed != 0 || r.Service.P50 < 10 {
			t.Errorf("%s: report %+v, want 10 answers, each after 10 ms or more", kind, r)
		}
	}
}

func TestLoadCountsAnswersOf500AsFailed(t *testing.T) {
	at, _ := serving(t)
	r, err := load(t.Context(), loadOptions{
		call: callOptions{kind: "http", target: "http://" + at["http"] + "/status/503", timeout: time.Second},
		rate: 1000, requests: 10, connections: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Failed != 10 || r.Failures["status-503"] != 10 || r.Status["503"] != 10 {
		t.Errorf("report %+v, want 10 of status-503", r)
	}
}

func TestTheServerLetsARequestFinishWhenToldToStop(t *testing.T) {
	at, stop := serving(t)
	answered := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		// The server has begun once it asks for the body.
		body, w := io.Pipe()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+at["http"]+"/sleep?for=300ms", body)
		if err != nil {
			answered <- err
			return
		}
		request.Header.Set("Expect", "100-continue")
		go func() {
			_, _ = w.Write([]byte("x"))
			close(begun)
			_ = w.Close()
		}()
		transport := &http.Transport{ExpectContinueTimeout: time.Minute}
		r, err := (&http.Client{Transport: transport}).Do(request)
		if err == nil {
			_, err = io.Copy(io.Discard, r.Body)
			r.Body.Close()
		}
		answered <- err
	}()
	<-begun
	stop()
	if err := <-answered; err != nil {
		t.Errorf("the request was cut: %v", err)
	}
	if r := mustCall(t, "http", "http://"+at["http"]); r.Failure == nil || r.Failure.Kind != "refused" {
		t.Errorf("after the stop: %+v, want refused", r)
	}
}

func TestTogglesChangeWhatProbesSee(t *testing.T) {
	at, _ := serving(t)
	url := "http://" + at["http"]
	conn, err := dialGRPC(at["grpc"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	health := func() healthpb.HealthCheckResponse_ServingStatus {
		r, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStatus()
	}
	for range 2 {
		mustCall(t, "http", url+"/toggle/ready?to=false")
		mustCall(t, "http", url+"/toggle/greet?to=false")
		if r := mustCall(t, "http", url+"/ready"); r.Status != 503 {
			t.Errorf("/ready says %d, want 503", r.Status)
		}
		if s := health(); s != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Errorf("gRPC health says %v", s)
		}
		if r := mustCall(t, "greet", at["greet"]); r.Failure == nil || r.Failure.Kind != "refused" {
			t.Errorf("greeting port: %+v, want refused", r)
		}
		mustCall(t, "http", url+"/toggle/ready?to=true")
		mustCall(t, "http", url+"/toggle/greet?to=true")
		if r := mustCall(t, "http", url+"/ready"); r.Status != 200 {
			t.Errorf("/ready says %d, want 200", r.Status)
		}
		if r := mustCall(t, "greet", at["greet"]); r.Failure != nil {
			t.Errorf("greeting port: %+v", r.Failure)
		}
	}
}

func TestAJobFailsWhenItsCallDoes(t *testing.T) {
	at, _ := serving(t)
	if err := run(t.Context(), []string{"job", "http://" + at["http"] + "/"}, io.Discard); err != nil {
		t.Errorf("a call that is answered: %v", err)
	}
	if err := run(t.Context(), []string{"job", "http://" + at["http"] + "/status/403"}, io.Discard); err == nil {
		t.Error("a call answered with 403 was taken for a success")
	}
}

func TestQuantilesAreByNearestRank(t *testing.T) {
	var values []float64
	for i := 100; i > 0; i-- {
		values = append(values, float64(i))
	}
	if got, want := quantiles(values), (report.Quantiles{P50: 50, P99: 99, Max: 100}); got != want {
		t.Errorf("quantiles of 1..100: %+v, want %+v", got, want)
	}
	if got := quantiles(nil); got != (report.Quantiles{}) {
		t.Errorf("quantiles of nothing: %+v", got)
	}
}

func TestTLSRecordsAreRecognisedInFrames(t *testing.T) {
	frame := make([]byte, 14+20+20, 100)
	frame[14], frame[14+9], frame[14+20+12] = 0x45, 6, 0x50
	if !isTLS(append(frame[:54:54], 23, 3, 3, 0, 20)) {
		t.Error("application data was not recognised")
	}
	if isTLS(append(frame[:54:54], []byte("GET / HTTP/1.1")...)) || isTLS(frame) || isTLS(nil) {
		t.Error("what is no TLS was taken for it")
	}
}

func TestAJobIsPatientWhenItIsToldTo(t *testing.T) {
	at, _ := serving(t)
	url := "http://" + at["http"]
	mustCall(t, "http", url+"/toggle/ready?to=false")
	done := make(chan error, 1)
	go func() { done <- run(t.Context(), []string{"job", url + "/ready", "--patience", "1m"}, io.Discard) }()
	mustCall(t, "http", url+"/toggle/ready?to=true")
	if err := <-done; err != nil {
		t.Errorf("the job gave up: %v", err)
	}
}

func TestGoneIsWhenAPageHasNoTextAnyMore(t *testing.T) {
	var asked atomic.Int32
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			fmt.Fprint(w, "one ")
		}
		fmt.Fprint(w, "two")
	}))
	defer page.Close()
	var out bytes.Buffer
	start := time.Now()
	if err := run(t.Context(), []string{"gone", page.URL, "one"}, &out); err != nil {
		t.Fatal(err)
	}
	var r report.Gone
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 3 || r.Since.Before(start) || r.At.Before(r.Since) || r.At.After(time.Now()) {
		t.Errorf("%+v after %d looks, want the third", r, asked.Load())
	}
	if err := run(t.Context(), []string{"gone", page.URL, "one"}, &out); err == nil {
		t.Error("a text that was never there is gone")
	}
}

func TestALoadEndsWithItsStandardInput(t *testing.T) {
	at, _ := serving(t)
	stdin, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	own := os.Stdin
	os.Stdin = stdin
	defer func() { os.Stdin = own }()
	time.AfterFunc(200*time.Millisecond, func() { end.Close() })
	var out bytes.Buffer
	if err := run(t.Context(), []string{"load", "http", "http://" + at["http"], "--rate", "50", "--duration", "1h", "--until-eof"}, &out); err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if r.Requests == 0 || r.Failed != 0 || r.Versions["v7"] != r.Requests {
		t.Errorf("report %+v, want answers to all calls that were begun", &r)
	}
}
