package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// calls is what the command line asks for.
type calls struct {
	target  *url.URL
	method  string
	headers list // NAME:VALUE
	count   int
	timeout time.Duration // of each call
}

func parseCalls(args []string) (*calls, error) {
	var c calls
	set := flag.NewFlagSet("client", flag.ContinueOnError)
	set.StringVar(&c.method, "method", http.MethodGet, "`method` of HTTP")
	set.Var(&c.headers, "H", "`NAME:VALUE` of a header; may be given several times")
	set.IntVar(&c.count, "count", 1, "`number` of calls, one after the other")
	set.DurationVar(&c.timeout, "timeout", 5*time.Second, "how long each may take")
	// The URL may stand anywhere; flag stops at the first argument that is none.
	var targets []string
	for len(args) > 0 {
		if err := set.Parse(args); err != nil {
			return nil, err
		}
		if args = set.Args(); len(args) > 0 {
			targets, args = append(targets, args[0]), args[1:]
		}
	}
	if len(targets) != 1 {
		return nil, fmt.Errorf("%d URLs given, not one: %q", len(targets), targets)
	}
	var err error
	c.target, err = url.Parse(targets[0])
	return &c, err
}

// clientMain makes the calls and prints the replies.
func clientMain(ctx context.Context, args []string, out io.Writer) error {
	c, err := parseCalls(args)
	if err != nil {
		return err
	}
	var call func(context.Context) (string, error)
	switch c.target.Scheme {
	case "http", "https":
		call = c.http()
	case "grpc":
		var end func()
		if call, end, err = c.grpc(); err != nil {
			return err
		}
		defer end()
	default:
		return fmt.Errorf("%s: only http, https and grpc can be called", c.target)
	}
	for i := range c.count {
		reply, err := c.bounded(ctx, call)
		if err != nil {
			return fmt.Errorf("call %d of %d: %w", i+1, c.count, err)
		}
		if _, err := fmt.Fprintln(out, numbered(i, field("Url", c.target.String())+reply)); err != nil {
			return err
		}
	}
	return nil
}

func (c *calls) bounded(ctx context.Context, call func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return call(ctx)
}

// bodyMark begins the lines that came in the reply's body.
const bodyMark = "\x00"

// numbered puts the call's number before each line.
func numbered(i int, reply string) string {
	var b strings.Builder
	for line := range strings.Lines(reply) {
		mark := fmt.Sprintf("[%d] ", i)
		if rest, body := strings.CutPrefix(line, bodyMark); body {
			mark, line = fmt.Sprintf("[%d body] ", i), rest
		}
		b.WriteString(mark + line)
	}
	return b.String()
}

func body(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(bodyMark + strings.TrimRight(line, "\r\n") + "\n")
	}
	return b.String()
}

func (c *calls) http() func(context.Context) (string, error) {
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		// The suite looks at redirects; it never wants them followed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context) (string, error) {
		r, err := http.NewRequestWithContext(ctx, c.method, c.target.String(), nil)
		if err != nil {
			return "", err
		}
		for _, h := range c.headers {
			name, value, _ := strings.Cut(h, ":")
			if strings.EqualFold(name, "host") {
				r.Host = value
				continue
			}
			r.Header.Add(name, value)
		}
		reply, err := client.Do(r)
		if err != nil {
			return "", err
		}
		content, err := io.ReadAll(reply.Body)
		if err := errors.Join(err, reply.Body.Close()); err != nil {
			return "", fmt.Errorf("reading the reply: %w", err)
		}
		var b strings.Builder
		b.WriteString(field("StatusCode", strconv.Itoa(reply.StatusCode)))
		for _, name := range slices.Sorted(maps.Keys(reply.Header)) {
			b.WriteString(field("ResponseHeader", name+":"+strings.Join(reply.Header[name], ",")))
		}
		b.WriteString(body(string(content)))
		return b.String(), nil
	}
}

func (c *calls) grpc() (call func(context.Context) (string, error), end func(), err error) {
	// Without grpc's own resolver: it asks DNS for more than the address.
	conn, err := grpc.NewClient("passthrough:///"+c.target.Host, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) (string, error) {
		for _, h := range c.headers {
			name, value, _ := strings.Cut(h, ":")
			ctx = metadata.AppendToOutgoingContext(ctx, name, value)
		}
		var reply wrapperspb.StringValue
		if err := conn.Invoke(ctx, "/"+grpcService+"/"+grpcEcho, wrapperspb.String("hello"), &reply); err != nil {
			return "", err
		}
		return body(reply.GetValue()), nil
	}, func() { _ = conn.Close() }, nil
}
