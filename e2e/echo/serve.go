package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	rls "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// healthService is the name of a service that gRPC health tells of, beside that of
// the whole server.
const healthService = "echo.Echo"

// serveOptions are the addresses to listen on; an empty one is not served.
type serveOptions struct {
	http, grpc, tcp, greet, tls string
	grace, lifetime             time.Duration
}

func serveCommand(ctx context.Context, args []string, _ io.Writer) error {
	var o serveOptions
	f := flag.NewFlagSet("serve", flag.ContinueOnError)
	f.StringVar(&o.http, "http", ":8080", "HTTP/1, h2c and WebSocket; empty: none")
	f.StringVar(&o.grpc, "grpc", ":9000", "gRPC, with the standard health service; empty: none")
	f.StringVar(&o.tcp, "tcp", ":9001", "TCP echo where the client speaks first; empty: none")
	f.StringVar(&o.greet, "greet", ":3306", "TCP echo that greets first; empty: none")
	f.StringVar(&o.tls, "tls", ":8443", "HTTPS with a certificate of its own; empty: none")
	f.DurationVar(&o.grace, "grace", 20*time.Second, "how long requests may take to finish after SIGTERM")
	f.DurationVar(&o.lifetime, "for", 0, "end of its own accord after this time, as a Job does; 0: never")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.lifetime > 0 {
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, o.lifetime)
		defer end()
	}
	s, err := newServer(o)
	if err != nil {
		return err
	}
	log.Printf("serving %v", s.addresses())
	return s.run(ctx)
}

// server holds the listeners of one serve command.
type server struct {
	options   serveOptions
	listeners map[string]net.Listener
	http, tls *http.Server
	grpc      *grpc.Server
	health    *health.Server
	greet     *streamServer
	tcp       *streamServer
	unready   atomic.Bool
	failing   atomic.Bool
	kept      atomic.Pointer[string]
}

// newServer opens every listener, so that a port in use is an error at once.
func newServer(o serveOptions) (*server, error) {
	s := &server{options: o, listeners: map[string]net.Listener{}}
	for name, address := range map[string]string{"http": o.http, "grpc": o.grpc, "tcp": o.tcp, "greet": o.greet, "tls": o.tls} {
		if address == "" {
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("listening for %s: %w", name, err)
		}
		s.listeners[name] = l
	}
	s.http = &http.Server{Handler: s.handler(), Protocols: plainProtocols(), ReadHeaderTimeout: time.Minute}
	s.tls = &http.Server{Handler: s.handler(), ReadHeaderTimeout: time.Minute}
	s.grpc = grpc.NewServer()
	s.grpc.RegisterService(echoServiceDesc(), echoServer{})
	rls.RegisterRateLimitServiceServer(s.grpc, &limiter{counts: map[string]int{}})
	s.health = health.NewServer()
	s.health.SetServingStatus(healthService, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	s.tcp = newStreamServer(false)
	s.greet = newStreamServer(true)
	return s, nil
}

// plainProtocols are HTTP/1 and HTTP/2 with prior knowledge, on one port.
func plainProtocols() *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return &p
}

func (s *server) close() {
	for _, l := range s.listeners {
		_ = l.Close() // the program is about to say what really went wrong
	}
}

func (s *server) addresses() map[string]string {
	m := map[string]string{}
	for name, l := range s.listeners {
		m[name] = l.Addr().String()
	}
	return m
}

// run serves until ctx ends, then closes the listeners and lets what is under
// way finish, for at most the grace.
func (s *server) run(ctx context.Context) error {
	var (
		all    sync.WaitGroup
		failed = make(chan error, len(s.listeners))
	)
	for name, l := range s.listeners {
		all.Add(1)
		go func() {
			defer all.Done()
			if err := s.serve(name, l); err != nil && !isClosed(err) {
				failed <- fmt.Errorf("serving %s: %w", name, err)
			}
		}()
	}
	var err error
	select {
	case <-ctx.Done():
		log.Printf("ending at %d", time.Now().UnixNano()) // for a test to compare with
	case err = <-failed:
	}
	s.stop()
	all.Wait()
	return err
}

func (s *server) serve(name string, l net.Listener) error {
	switch name {
	case "http":
		return s.http.Serve(l)
	case "tls":
		config, err := ownTLS()
		if err != nil {
			return err
		}
		s.tls.TLSConfig = config
		return s.tls.ServeTLS(l, "", "")
	case "grpc":
		return s.grpc.Serve(l)
	case "greet":
		return s.greet.serve(l)
	default:
		return s.tcp.serve(l)
	}
}

func (s *server) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), s.options.grace)
	defer cancel()
	var all sync.WaitGroup
	for _, f := range []func(){
		func() { shutdownHTTP(ctx, s.http) },
		func() { shutdownHTTP(ctx, s.tls) },
		func() { shutdownGRPC(ctx, s.grpc) },
		func() { s.tcp.shutdown(ctx) },
		func() { s.greet.shutdown(ctx) },
	} {
		all.Go(f)
	}
	all.Wait()
}

func shutdownHTTP(ctx context.Context, s *http.Server) {
	if s.Shutdown(ctx) != nil {
		_ = s.Close() // the grace is over: what is left is cut
	}
}

func shutdownGRPC(ctx context.Context, s *grpc.Server) {
	done := make(chan struct{})
	go func() { s.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		s.Stop()
	}
}

func isClosed(err error) bool {
	return errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped)
}
