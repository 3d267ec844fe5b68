package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/gorilla/websocket"
)

func callHTTP(ctx context.Context, o callOptions, r *Result) error {
	transport := newTransport(o.h2c, true)
	defer transport.CloseIdleConnections()
	return doHTTP(ctx, &http.Client{Transport: transport, CheckRedirect: noRedirect}, o, r)
}

// newTransport is a transport of one connection, that goes where the URL says
// and nowhere else: no proxy from the environment.
func newTransport(h2c, closeEach bool) *http.Transport {
	t := &http.Transport{DisableKeepAlives: closeEach, DisableCompression: true, MaxConnsPerHost: 1}
	if h2c {
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		// Over HTTP/2 the transport would send "Connection: close" semantics by
		// closing after each request, which is what closeEach asks for.
		t.Protocols = &p
	}
	return t
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func doHTTP(ctx context.Context, client *http.Client, o callOptions, r *Result) error {
	request, err := newRequest(ctx, o)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	r.Status, r.Headers = response.StatusCode, response.Header
	if response.TLS != nil && len(response.TLS.PeerCertificates) > 0 {
		c := response.TLS.PeerCertificates[0]
		r.Peer, r.Certificate = c.Subject.CommonName, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	body, err := io.ReadAll(response.Body)
	r.keep(body)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

// callHTTP10 makes requests of HTTP/1.0 on one connection: all but the last ask
// that it be kept, and the answer to that one is over when the server ends it.
func callHTTP10(ctx context.Context, o callOptions, r *Result) error {
	request, err := newRequest(ctx, o)
	if err != nil {
		return err
	}
	address := request.URL.Host
	if request.URL.Port() == "" {
		address = net.JoinHostPort(request.URL.Hostname(), "80")
	}
	c, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer c.Close()
	head := fmt.Sprintf("%s %s HTTP/1.0\r\n", request.Method, request.URL.RequestURI())
	if o.host != "-" {
		head += "Host: " + cmp.Or(o.host, request.URL.Host) + "\r\n"
	}
	reader := bufio.NewReader(c)
	for i := range o.messages {
		if err := o.pause(ctx, i); err != nil {
			return err
		}
		last := i == o.messages-1
		if err := r.step(func() error { return r.exchangeHTTP10(c, reader, request, head, last) }); err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		if r.Status >= http.StatusBadRequest {
			return nil // it is the answer
		}
	}
	if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the end of the connection: %w", err)
	}
	return nil
}

func (r *Result) exchangeHTTP10(c net.Conn, reader *bufio.Reader, request *http.Request, head string, last bool) error {
	if !last {
		head += "Connection: keep-alive\r\n"
	}
	if _, err := io.WriteString(c, head+"\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	r.Status, r.Headers = response.StatusCode, response.Header
	r.keep(body)
	switch {
	case err != nil:
		return fmt.Errorf("reading the answer: %w", err)
	case response.Proto != "HTTP/1.0" || len(response.TransferEncoding) > 0:
		return fmt.Errorf("answered in %s %v", response.Proto, response.TransferEncoding)
	case !last && response.Close && response.StatusCode < http.StatusBadRequest:
		return fmt.Errorf("the answer ends the connection: %w", io.EOF)
	}
	return nil
}

func newRequest(ctx context.Context, o callOptions) (*http.Request, error) {
	method := o.method
	if method == "" {
		method = http.MethodGet
		if o.bodyBytes > 0 {
			method = http.MethodPost
		}
	}
	var body io.Reader
	if o.bodyBytes > 0 {
		body = io.LimitReader(zeros{}, o.bodyBytes)
	}
	request, err := http.NewRequestWithContext(ctx, method, o.target, body)
	if err != nil {
		return nil, fmt.Errorf("making a request for %s: %w", o.target, err)
	}
	if o.bodyBytes > 0 && !o.chunked {
		request.ContentLength = o.bodyBytes
	}
	for name, values := range o.headers {
		request.Header[name] = values
	}
	request.Host = o.host
	return request, nil
}

// newTLSTransport is one to an application that speaks TLS. Its certificate is its
// own: what counts is whose it is. It is asked for the name, or where that is empty for
// the host that is called.
func newTLSTransport(closeEach bool, name string) *http.Transport {
	t := newTransport(false, closeEach)
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, ServerName: name}
	return t
}

func callTLS(ctx context.Context, o callOptions, r *Result) error {
	transport := newTLSTransport(true, o.host)
	defer transport.CloseIdleConnections()
	o.target = "https://" + o.target + "/"
	return doHTTP(ctx, &http.Client{Transport: transport, CheckRedirect: noRedirect}, o, r)
}

func callWebSocket(ctx context.Context, o callOptions, r *Result) error {
	url := "ws" + strings.TrimPrefix(o.target, "http")
	c, response, err := new(websocket.Dialer).DialContext(ctx, url, http.Header(o.headers))
	if response != nil {
		r.Status, r.Headers = response.StatusCode, response.Header
	}
	if err != nil {
		return fmt.Errorf("opening the WebSocket: %w", err)
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.NetConn().SetDeadline(deadline); err != nil {
			return err
		}
	}
	for i := range o.messages {
		if err := o.pause(ctx, i); err != nil {
			return err
		}
		sent := fmt.Sprintf("message %d", i)
		err := r.step(func() error {
			if err := c.WriteMessage(websocket.TextMessage, []byte(sent)); err != nil {
				return err
			}
			_, got, err := c.ReadMessage()
			if err != nil {
				return err
			}
			return same(sent, string(got))
		})
		if err != nil {
			return fmt.Errorf("exchange %d: %w", i, err)
		}
	}
	return c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
}
