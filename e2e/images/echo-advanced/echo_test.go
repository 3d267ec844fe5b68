package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/gateway-api/conformance/utils/echo"
)

// call runs the client and has the suite read what it prints.
func call(t *testing.T, args ...string) (replies []echo.Response) {
	t.Helper()
	var out strings.Builder
	if err := clientMain(t.Context(), args, &out); err != nil {
		t.Fatal(err)
	}
	for one := range strings.SplitSeq(strings.TrimSpace(out.String()), "\n\n") {
		replies = append(replies, echo.ParseResponse(one))
	}
	return replies
}

func TestTheSuiteReadsWhatTheServerSaw(t *testing.T) {
	s := &server{hostname: "echo-v1-0", version: "v1"}
	h := httptest.NewServer(s.http("8080").Handler)
	defer h.Close()

	replies := call(t, h.URL+"/a?b=c", "--method=POST", "-H", "X-Two:a:b", "-H", "x-two:c", "-H", "Host:other", "--count=2")
	if len(replies) != 2 {
		t.Fatalf("%d replies, want 2", len(replies))
	}
	for _, r := range replies {
		got := []string{r.Code, r.Hostname, r.Host, r.Method, r.URL, r.Port, r.Version, strings.Join(r.RequestHeaders["X-Two"], ",")}
		want := []string{"200", "echo-v1-0", "other", "POST", "/a?b=c", "8080", "v1", "a:b,c"}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("read %q, want %q", got, want)
		}
		if got := r.ResponseHeaders.Get("Content-Type"); got != "text/plain" {
			t.Errorf("response header Content-Type %q, want text/plain", got)
		}
	}
}

func TestTheSuiteReadsAReplyOfGRPC(t *testing.T) {
	s := &server{hostname: "echo-v2-0"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	g := s.grpc("7070")
	go func() { _ = g.Serve(l) }()
	defer g.Stop()

	r := call(t, "grpc://"+address, "-H", "x-one:1")[0]
	if r.Code != "200" || r.Hostname != "echo-v2-0" || r.Host != address || r.RequestHeaders.Get("X-One") != "1" {
		t.Errorf("read %v", r)
	}
}

func TestARedirectIsAReplyAndARefusedConnectionIsNone(t *testing.T) {
	h := httptest.NewServer(http.RedirectHandler("http://example.test/", http.StatusFound))
	if r := call(t, h.URL)[0]; r.Code != "302" || r.ResponseHeaders.Get("Location") != "http://example.test/" {
		t.Errorf("read %v", r)
	}
	h.Close()
	if err := clientMain(t.Context(), []string{h.URL}, os.Stderr); err == nil {
		t.Error("no error of a call that nobody answers")
	}
}

func TestACertificateIsMadeUpWhereTheFileIsMissing(t *testing.T) {
	s := &server{hostname: "echo", tlsPorts: list{"8443"}, certificate: "missing.crt", key: "missing.key"}
	made, err := s.tlsCertificate()
	if err != nil || len(made.Certificate) == 0 {
		t.Errorf("certificate %v, error %v", made.Certificate, err)
	}
}
