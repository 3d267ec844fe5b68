package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// crowd is what the process of simulated proxies is told.
type crowd struct {
	Address string
	Root    []byte
	Tokens  []string
	Names   []string // services that each calls, by address and port
}

const crowdVariable = "TULLE_TEST_CROWD"

// TestMain is also the process of simulated proxies, so that what they cost is
// not taken for what the server costs.
func TestMain(m *testing.M) {
	if path := os.Getenv(crowdVariable); path != "" {
		if err := simulate(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// simulate connects proxies that acknowledge whatever they are sent, until the
// process is ended.
func simulate(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var c crowd
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.Root)
	var all sync.WaitGroup
	failed := make(chan error, len(c.Tokens))
	for _, token := range c.Tokens {
		all.Go(func() { failed <- c.proxy(roots, token) })
	}
	return <-failed
}

func (c *crowd) proxy(roots *x509.CertPool, token string) error {
	conn, err := grpc.NewClient(c.Address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: roots, ServerName: "tulled.tulle-system.svc", MinVersion: tls.VersionTLS13,
	})))
	if err != nil {
		return err
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	for _, r := range []*discovery.DeltaDiscoveryRequest{
		{TypeUrl: translate.Cluster.URL(), Node: &core.Node{Id: "a.shop"}},
		{TypeUrl: translate.Endpoints.URL(), ResourceNamesSubscribe: c.Names},
		{TypeUrl: translate.Listener.URL()},
		{TypeUrl: translate.Secret.URL(), ResourceNamesSubscribe: []string{translate.SecretWorkload, translate.SecretRoots}},
		{TypeUrl: translate.Scope.URL()},
		{TypeUrl: translate.Route.URL(), ResourceNamesSubscribe: append([]string{translate.RouteInbound}, c.Names...)},
	} {
		if err := stream.Send(r); err != nil {
			return err
		}
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
			return err
		}
	}
}

// BenchmarkStatusOfAChangeToAllProxies changes one policy that all of 1,000
// proxies run, each of which calls 20 services, among 200 policies, and waits
// until the leader knows that they do: "counting-%" is how much of this process's
// CPU went to counting, to reporting as to another replica and to merging;
// "reports" is how many reports a change led to.
func BenchmarkStatusOfAChangeToAllProxies(b *testing.B) {
	const proxies, services, policies = 1000, 20, 200
	h := newHarness(b, func(o *Options) { o.StreamsPerPod = 2 })
	told := crowd{Address: h.address, Root: h.rootPEM}
	for i := range proxies {
		w := workload(fmt.Sprintf("w%d", i))
		w.Labels, w.Started = map[string]string{"app": fmt.Sprintf("app%d", i%50)}, true
		h.builder.Apply(mesh.Put(w))
		told.Tokens = append(told.Tokens, h.api.token(peer(w.Name.Name)))
	}
	for i := range services {
		ip := fmt.Sprintf("10.96.1.%d", i+1)
		h.builder.Apply(mesh.Put(service(fmt.Sprintf("s%d", i), ip)), mesh.Put(slice(fmt.Sprintf("s%d", i), fmt.Sprintf("10.244.7.%d", i+1))))
		told.Names = append(told.Names, ip+":80")
	}
	for i := range policies {
		p := deny(1, "/none", map[string]string{"app": fmt.Sprintf("app%d", i%50)})
		p.Meta.Name.Name = fmt.Sprintf("p%d", i)
		h.builder.Apply(mesh.Put(p))
	}
	everybody := func(generation int64) {
		p := deny(generation, fmt.Sprintf("/%d", generation), nil)
		p.Meta.Name.Namespace, p.Selector = "tulle-system", nil
		h.builder.Apply(mesh.Put(p))
	}
	everybody(1)
	h.simulate(b, told)

	var counting time.Duration
	version, reports := "", 0
	until := func(generation int64) {
		for {
			start := thread() // waiting costs none
			r, err := h.server.Report(b.Context(), version, nil)
			if err != nil {
				b.Fatal(err)
			}
			version = r.Version
			reports++
			raw, err := json.Marshal(r)
			if err != nil {
				b.Fatal(err)
			}
			var received acks.Report
			if err := json.Unmarshal(raw, &received); err != nil {
				b.Fatal(err)
			}
			running := map[string]mesh.Name{}
			for w := range h.builder.Built().Workloads() {
				if w.Started {
					running[w.UID] = w.Name
				}
			}
			v := acks.Merge(map[string]*acks.Report{"a": &received}, nil, running, func(mesh.Name) []mesh.Ref { return nil })[mesh.Ref{
				Kind: mesh.KindPolicy, Name: mesh.Name{Namespace: "tulle-system", Name: "deny"},
			}]
			counting += thread() - start
			if v.Generation == generation && v.Concerned == proxies && v.Programmed == proxies {
				return
			}
		}
	}
	runtime.LockOSThread() // reports are made by whoever asks
	defer runtime.UnlockOSThread()
	until(1)
	b.ResetTimer()
	counting, reports = 0, 0
	before := process()
	for generation := range int64(b.N) {
		everybody(generation + 2)
		until(generation + 2)
	}
	b.StopTimer()
	spent := process() - before
	b.ReportMetric(100*counting.Seconds()/spent.Seconds(), "counting-%")
	b.ReportMetric(float64(reports)/float64(b.N), "reports")
	b.ReportMetric(spent.Seconds()*1000/float64(b.N), "cpu-ms")
}

// simulate starts the process of simulated proxies.
func (h *harness) simulate(b *testing.B, c crowd) {
	b.Helper()
	raw, err := json.Marshal(c)
	if err != nil {
		b.Fatal(err)
	}
	path := b.TempDir() + "/crowd"
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crowdVariable+"="+path)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// process and thread are CPU times.
func process() time.Duration { return usage(syscall.RUSAGE_SELF) }

func thread() time.Duration { return usage(1 /* RUSAGE_THREAD */) }

func usage(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
