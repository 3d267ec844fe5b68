package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

const (
	// requestTimeout bounds one request to a pod's port, the tunnel included.
	requestTimeout = 30 * time.Second
	// maxAnswer bounds an answer in bytes. The whole configuration of a proxy
	// that uses 1,000 services is some 10 MB.
	maxAnswer = 256 << 20
	// reasonTimeout bounds the wait for the node's words when a connection
	// breaks: they come in a stream of their own.
	reasonTimeout = time.Second
)

// endpoint is an HTTP server on the loopback of a pod.
type endpoint interface {
	// Get returns the body of the answer; an error if it is not 200.
	Get(ctx context.Context, path string) ([]byte, error)
	// Post is the same with a body, or for what changes something.
	Post(ctx context.Context, path string, body []byte) ([]byte, error)
	Close() error
}

// httpEndpoint is an endpoint that a client reaches under a base URL.
type httpEndpoint struct {
	base   string
	client *http.Client
	close  func() error
}

func (e *httpEndpoint) Get(ctx context.Context, path string) ([]byte, error) {
	return e.ask(ctx, http.MethodGet, path, nil)
}

func (e *httpEndpoint) Post(ctx context.Context, path string, body []byte) ([]byte, error) {
	return e.ask(ctx, http.MethodPost, path, body)
}

func (e *httpEndpoint) ask(ctx context.Context, method, path string, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, e.base+path, bytes.NewReader(question))
	if err != nil {
		return nil, fmt.Errorf("asking for %s: %w", path, err)
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if resp.StatusCode == http.StatusUnprocessableEntity {
		return nil, refusedQuestion(strings.TrimSpace(string(body)))
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking for %s: %s: %s", path, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// refusedQuestion says what is wrong with what was asked (422).
type refusedQuestion string

func (r refusedQuestion) Error() string { return string(r) }

func (e *httpEndpoint) Close() error {
	e.client.CloseIdleConnections()
	return e.close()
}

// tunnel is a connection to one port of one pod through the API server. Each
// HTTP connection is a pair of streams in it; no port is opened on this
// machine, where others could use it.
type tunnel struct {
	streams httpstream.Connection
	port    int
	ids     atomic.Int64
}

// reach opens a tunnel to a port of the pod's loopback. The API server's
// subresource speaks WebSocket, old servers and some proxies only SPDY.
func reach(config *rest.Config, client kubernetes.Interface, pod *corev1.Pod, port int) (endpoint, error) {
	target := client.CoreV1().RESTClient().Post().Resource("pods").
		Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	dialer, err := newDialer(config, target)
	if err != nil {
		return nil, fmt.Errorf("preparing a port-forward to pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	streams, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, forwardError(pod, port, err)
	}
	t := &tunnel{streams: streams, port: port}
	return &httpEndpoint{
		base:   "http://localhost:" + strconv.Itoa(port),
		client: &http.Client{Transport: &http.Transport{DialContext: t.dial}},
		close:  streams.Close,
	}, nil
}

func newDialer(config *rest.Config, target *url.URL) (httpstream.Dialer, error) {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	viaSPDY := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	viaWebSocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(target, config)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialerForStreaming(viaWebSocket, viaSPDY, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

// forwardError says what to do about a tunnel that the API server refused.
func forwardError(pod *corev1.Pod, port int, err error) error {
	wrapped := fmt.Errorf("port-forward to port %d of pod %s/%s: %w", port, pod.Namespace, pod.Name, err)
	if strings.Contains(err.Error(), "forbidden") {
		return &advice{wrapped, fmt.Sprintf(
			"ask for the verb create on pods/portforward in namespace %s", pod.Namespace)}
	}
	return wrapped
}

// dial opens one connection to the port, for http.Transport.
func (t *tunnel) dial(context.Context, string, string) (net.Conn, error) {
	headers := http.Header{}
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	headers.Set(corev1.PortHeader, strconv.Itoa(t.port))
	headers.Set(corev1.PortForwardRequestIDHeader, strconv.FormatInt(t.ids.Add(1), 10))
	errs, err := t.streams.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("opening a stream for errors: %w", err)
	}
	_ = errs.Close() // our half: nothing is written
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := t.streams.CreateStream(headers)
	if err != nil {
		t.streams.RemoveStreams(errs)
		return nil, fmt.Errorf("opening a stream for data: %w", err)
	}
	c := &streamConn{Stream: data, reason: make(chan error, 1)}
	c.release = func() { t.streams.RemoveStreams(errs, data) }
	go func() {
		words, err := io.ReadAll(io.LimitReader(errs, 4<<10))
		if len(words) > 0 {
			err = errors.New(strings.TrimSpace(string(words)))
		}
		c.reason <- err
	}()
	return c, nil
}

// streamConn is the pair of streams as a connection. Deadlines are not
// supported and not needed: a request that ends early closes the connection.
type streamConn struct {
	httpstream.Stream
	reason  chan error
	release func()
	once    sync.Once
}

// Read reads; where the connection broke it says why in the node's words
// ("connection refused"), which otherwise would be a bare end of file.
func (c *streamConn) Read(p []byte) (int, error) {
	n, err := c.Stream.Read(p)
	if n > 0 || err == nil {
		return n, err
	}
	select {
	case reason := <-c.reason:
		c.reason <- reason // for the next read
		if reason != nil {
			return 0, reason
		}
	case <-time.After(reasonTimeout):
	}
	return n, err
}

func (c *streamConn) Close() error {
	var err error
	c.once.Do(func() {
		err = c.Stream.Reset()
		c.release()
	})
	return err
}

func (c *streamConn) LocalAddr() net.Addr              { return pipeAddr{} }
func (c *streamConn) RemoteAddr() net.Addr             { return pipeAddr{} }
func (c *streamConn) SetDeadline(time.Time) error      { return nil }
func (c *streamConn) SetReadDeadline(time.Time) error  { return nil }
func (c *streamConn) SetWriteDeadline(time.Time) error { return nil }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "portforward" }
func (pipeAddr) String() string  { return "portforward" }
