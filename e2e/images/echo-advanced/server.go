package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// server is what the command line asks for. Ports are decimal.
type server struct {
	httpPorts, tlsPorts list
	grpcPorts, tcpPorts list
	certificate, key    string
	version, cluster    string
	hostname            string
}

// serverMain serves until the context ends, or one port cannot be served. A
// server without ports waits for its end: the suite has pods that are clients
// alone.
func serverMain(ctx context.Context, args []string) error {
	var s server
	set := flag.NewFlagSet("server", flag.ContinueOnError)
	set.Var(&s.httpPorts, "port", "serve HTTP/1.1 and h2c on this `port`")
	set.Var(&s.tlsPorts, "tls", "this `port` of --port serves HTTPS")
	set.Var(&s.grpcPorts, "grpc", "serve gRPC on this `port`")
	set.Var(&s.tcpPorts, "tcp", "serve TCP on this `port`")
	set.StringVar(&s.certificate, "crt", "", "PEM `file` of the certificate; one is made up if it does not exist")
	set.StringVar(&s.key, "key", "", "PEM `file` of its key")
	set.StringVar(&s.version, "version", "", "`name` to answer with as ServiceVersion")
	set.StringVar(&s.cluster, "cluster", "", "`name` to answer with as Cluster")
	if err := set.Parse(args); err != nil {
		return err
	}
	var err error
	if s.hostname, err = os.Hostname(); err != nil {
		return err
	}
	certificate, err := s.tlsCertificate()
	if err != nil {
		return err
	}

	ended := make(chan error)
	serve := func(port, what string, serve func(net.Listener) error) error {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		log.Printf("serving %s on port %s", what, port)
		go func() { ended <- fmt.Errorf("serving %s on port %s: %w", what, port, serve(l)) }()
		return nil
	}
	var errs []error
	for _, port := range s.httpPorts {
		h := s.http(port)
		if slices.Contains(s.tlsPorts, port) {
			h.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}}
			errs = append(errs, serve(port, "HTTPS", func(l net.Listener) error { return h.ServeTLS(l, "", "") }))
		} else {
			errs = append(errs, serve(port, "HTTP", h.Serve))
		}
	}
	for _, port := range s.grpcPorts {
		errs = append(errs, serve(port, "gRPC", s.grpc(port).Serve))
	}
	for _, port := range s.tcpPorts {
		errs = append(errs, serve(port, "TCP", func(l net.Listener) error { return s.tcp(port, l) }))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

// tlsCertificate reads the certificate, or makes one if the file does not
// exist: the original image brings one along, which clients do not verify.
func (s *server) tlsCertificate() (tls.Certificate, error) {
	if len(s.tlsPorts) == 0 {
		return tls.Certificate{}, nil
	}
	loaded, err := tls.LoadX509KeyPair(s.certificate, s.key)
	if !errors.Is(err, fs.ErrNotExist) {
		return loaded, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: s.hostname},
		DNSNames:     []string{s.hostname},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func (s *server) http(port string) *http.Server {
	h := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Protocols:         &http.Protocols{},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, s.describe(r, port))
		}),
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	h.Protocols.SetUnencryptedHTTP2(true)
	return h
}

// describe says what the server saw of a request.
func (s *server) describe(r *http.Request, port string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, value := range r.Header[name] {
			b.WriteString(field("RequestHeader", name+":"+value))
		}
	}
	alpn := ""
	if r.TLS != nil {
		alpn = r.TLS.NegotiatedProtocol
	}
	b.WriteString(field("Host", r.Host))
	b.WriteString(field("URL", r.RequestURI))
	b.WriteString(field("Method", r.Method))
	b.WriteString(field("Proto", r.Proto))
	b.WriteString(field("Alpn", alpn))
	b.WriteString(field("IP", remoteIP(r.RemoteAddr)))
	b.WriteString(s.self(port))
	return b.String()
}

// self says who answers.
func (s *server) self(port string) string {
	return field("ServiceVersion", s.version) + field("ServicePort", port) +
		field("Cluster", s.cluster) + field("Hostname", s.hostname)
}

func remoteIP(address string) string {
	host, _, err := net.SplitHostPort(address)
	return cmp.Or(host, fmt.Sprint(err))
}

// tcp answers the first line of each connection with it and with who answers.
func (s *server) tcp(port string, l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil && !errors.Is(err, io.EOF) {
				return
			}
			_, _ = io.WriteString(c, field("StatusCode", "200")+field("IP", remoteIP(c.RemoteAddr().String()))+
				s.self(port)+field("Echo", strings.TrimSpace(line)))
		}()
	}
}
