package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// Result is the report of one call, as it is made.
type Result struct{ report.Call }

// callOptions are the flags of call and job.
type callOptions struct {
	kind       string
	target     string
	method     string
	host       string
	headers    headerFlag
	bodyBytes  int64
	chunked    bool
	h2c        bool
	messages   int
	every      time.Duration
	timeout    time.Duration
	times      int
	resetAfter time.Duration
}

// headerFlag collects "Name: value" flags.
type headerFlag http.Header

func (h headerFlag) String() string { return "" }
func (h headerFlag) Set(text string) error {
	name, value, ok := strings.Cut(text, ":")
	if !ok {
		return errors.New(`write a header as "Name: value"`)
	}
	http.Header(h).Add(strings.TrimSpace(name), strings.TrimSpace(value))
	return nil
}

func (o *callOptions) register(f *flag.FlagSet) {
	o.headers = headerFlag{}
	f.StringVar(&o.method, "method", "", "HTTP method; GET, or POST where there is a body")
	f.StringVar(&o.host, "host", "", "Host header, where it is not the URL's; http10: \"-\" sends none")
	f.Var(o.headers, "header", `a header, "Name: value"; may be repeated`)
	f.Int64Var(&o.bodyBytes, "body", 0, "bytes of request body")
	f.BoolVar(&o.chunked, "chunked", false, "send the body in chunks, without its length")
	f.BoolVar(&o.h2c, "h2c", false, "HTTP/2 with prior knowledge")
	f.IntVar(&o.messages, "messages", 3, "exchanges in a stream (grpc-bidi, ws, tcp, greet, http10)")
	f.DurationVar(&o.every, "every", 0, "wait so long between two exchanges of a stream")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "of each call")
	f.IntVar(&o.times, "times", 1, "make so many calls, each on a connection of its own, and report a list")
	f.DurationVar(&o.resetAfter, "after", 0, "reset: wait so long between the request's head and the RST")
}

const callUsage = `call KIND TARGET [flags]
  http URL            one request
  http10 URL          requests of HTTP/1.0 on one connection, which the last one ends
  plain ADDRESS       a request in the clear on a raw connection, and how it ended
  grpc ADDRESS        one unary call
  grpc-bidi ADDRESS   a bidirectional stream
  ws URL              a WebSocket (http://…/ws)
  tcp ADDRESS         client-first TCP
  greet ADDRESS       server-first TCP
  tls ADDRESS         HTTPS with the application's own certificate
  reset ADDRESS       a request's head and half a body, then RST`

func callCommand(ctx context.Context, args []string, out io.Writer) error {
	if len(args) < 2 || strings.HasPrefix(args[0], "-") {
		return fmt.Errorf("usage: %s", callUsage)
	}
	o := callOptions{kind: args[0], target: args[1]}
	f := flag.NewFlagSet("call", flag.ContinueOnError)
	o.register(f)
	if err := f.Parse(args[2:]); err != nil {
		return err
	}
	if o.times <= 1 {
		r, err := call(ctx, o)
		if err != nil {
			return err
		}
		return writeJSON(out, r)
	}
	var all []*Result
	for range o.times {
		r, err := call(ctx, o)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	return writeJSON(out, all)
}

// jobCommand is a batch Job: it makes one call, says what came of it and exits;
// it fails if the call did, or was answered with an error.
func jobCommand(ctx context.Context, args []string, out io.Writer) error {
	if len(args) < 1 || strings.HasPrefix(args[0], "-") {
		return errors.New("usage: job URL [flags]")
	}
	o := callOptions{kind: "http", target: args[0]}
	f := flag.NewFlagSet("job", flag.ContinueOnError)
	o.register(f)
	patience := f.Duration("patience", 0, "try again for so long, where what it calls may not be there yet")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	end := time.Now().Add(*patience)
	for {
		r, err := call(ctx, o)
		if err != nil {
			return err
		}
		err = complaint(r)
		if err != nil && time.Now().Before(end) {
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
			}
		}
		return errors.Join(writeJSON(out, r), err)
	}
}

// complaint is an error unless the call was answered, and not with an error.
func complaint(r *Result) error {
	if r.Failure != nil {
		return errors.New("the call failed: " + r.Failure.Text)
	}
	if r.Status >= 400 {
		return fmt.Errorf("the call was answered with %d", r.Status)
	}
	return nil
}

// call makes one call and measures it. An error means that the options make
// no sense; whatever the network did is in the Result.
func call(ctx context.Context, o callOptions) (*Result, error) {
	f, ok := kinds()[o.kind]
	if !ok {
		return nil, fmt.Errorf("no kind of call %q; %s", o.kind, callUsage)
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var r Result
	start := time.Now()
	r.Failure = failureOf(f(ctx, o, &r))
	r.MS = ms(time.Since(start))
	return &r, nil
}

func kinds() map[string]func(context.Context, callOptions, *Result) error {
	return map[string]func(context.Context, callOptions, *Result) error{
		"http":      callHTTP,
		"http10":    callHTTP10,
		"plain":     callPlain,
		"grpc":      callGRPC,
		"grpc-bidi": callBidi,
		"ws":        callWebSocket,
		"tcp":       callTCP,
		"greet":     callGreet,
		"tls":       callTLS,
		"reset":     callReset,
	}
}

// pause waits before all exchanges of a stream but the first.
func (o callOptions) pause(ctx context.Context, exchange int) error {
	if exchange == 0 || o.every <= 0 {
		return nil
	}
	select {
	case <-time.After(o.every):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ms is a duration in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// keep puts an answer's body into the Result.
func (r *Result) keep(body []byte) {
	r.BodyBytes = int64(len(body))
	if r.Reply = parseReply(body); r.Reply == nil {
		r.Text = string(body[:min(len(body), 4096)])
	}
}
