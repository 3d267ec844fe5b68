package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
)

// answer is what a load client keeps of a call.
type answer struct {
	status  int
	version string
	pod     string
	retried bool // the HTTP client sent it again of its own accord
}

// caller is one client of a load: it makes one call at a time, either on a
// connection that it keeps, or on a new one each time.
type caller interface {
	call(ctx context.Context) (answer, error)
	close()
}

// newCaller is a client that keeps its connection, and counts in opened how many
// it had to open, or one that has a new one for each call. A kind of call that is
// a stream of its own has a new one always.
func newCaller(o callOptions, newConnections bool, opened *atomic.Int64) (caller, error) {
	if newConnections {
		opened = new(atomic.Int64)
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		opened.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	var t *http.Transport
	switch o.kind {
	case "http":
		t = newTransport(o.h2c, newConnections)
	case "tls":
		t = newTLSTransport(newConnections, o.host)
		o.target = "https://" + o.target + "/"
	case "grpc":
		return &grpcCaller{address: o.target, once: newConnections, dial: dial}, nil
	case "tcp":
		return &tcpCaller{address: o.target, once: newConnections, dial: dial}, nil
	default:
		if kinds()[o.kind] == nil {
			return nil, fmt.Errorf("no kind of call %q; %s", o.kind, callUsage)
		}
		return &onceCaller{options: o}, nil
	}
	t.DialContext = dial
	return &httpCaller{options: o, transport: t, client: &http.Client{Transport: t, CheckRedirect: noRedirect}}, nil
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// onceCaller makes each call as the command "call" does.
type onceCaller struct{ options callOptions }

func (c *onceCaller) close() {}

func (c *onceCaller) call(ctx context.Context) (answer, error) {
	var r Result
	err := kinds()[c.options.kind](ctx, c.options, &r)
	a := answer{status: r.Status}
	if r.Reply != nil {
		a.pod, a.version = r.Reply.Pod, r.Reply.Version
	}
	return a, err
}

type httpCaller struct {
	options   callOptions
	transport *http.Transport
	client    *http.Client
}

func (c *httpCaller) close() { c.transport.CloseIdleConnections() }

func (c *httpCaller) call(ctx context.Context) (answer, error) {
	var a answer
	// net/http repeats a request on a new connection when an idle one turns out
	// to be closed. A client would not notice, but we count it.
	connections := 0
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connections++ }})
	request, err := newRequest(ctx, c.options)
	if err != nil {
		return a, err
	}
	response, err := c.client.Do(request)
	a.retried = connections > 1
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	a.status, a.version = response.StatusCode, response.Header.Get("X-Version")
	if p := parseReply(body); p != nil {
		a.pod, a.version = p.Pod, p.Version
	}
	return a, err
}

type grpcCaller struct {
	address string
	once    bool
	dial    dialer
	conn    *grpc.ClientConn
}

func (c *grpcCaller) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

func (c *grpcCaller) call(ctx context.Context) (answer, error) {
	if c.conn == nil {
		conn, err := dialGRPC(c.address, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return c.dial(ctx, "tcp", address)
		}))
		if err != nil {
			return answer{}, err
		}
		c.conn = conn
	}
	if c.once {
		defer c.close()
	}
	text, err := unary(ctx, c.conn)
	if err != nil {
		return answer{}, err
	}
	a := answer{}
	if p := parseReply([]byte(text)); p != nil {
		a.pod, a.version = p.Pod, p.Version
	}
	return a, nil
}

type tcpCaller struct {
	address string
	once    bool
	dial    dialer
	conn    net.Conn
	reader  *bufio.Reader
}

func (c *tcpCaller) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// call sends a line and reads it back; after an error the next call opens a
// new connection.
func (c *tcpCaller) call(ctx context.Context) (a answer, err error) {
	defer func() {
		if err != nil || c.once {
			c.close()
		}
	}()
	if c.conn == nil {
		conn, err := c.dial(ctx, "tcp", c.address)
		if err != nil {
			return a, err
		}
		c.conn, c.reader = conn, bufio.NewReader(conn)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.conn.SetDeadline(deadline); err != nil {
			return a, err
		}
	}
	if _, err := io.WriteString(c.conn, "hello\n"); err != nil {
		return a, err
	}
	line, err := c.reader.ReadString('\n')
	if err != nil {
		return a, err
	}
	if words := strings.SplitN(line, " ", 3); len(words) == 3 {
		a.pod, a.version = words[0], words[1]
	}
	return a, nil
}
