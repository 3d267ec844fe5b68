package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// step measures one exchange of a stream.
func (r *Result) step(f func() error) error {
	start := time.Now()
	err := f()
	r.StepsMS = append(r.StepsMS, ms(time.Since(start)))
	return err
}

func same(sent, got string) error {
	if got != sent {
		return fmt.Errorf("sent %q, got %q back", sent, got)
	}
	return nil
}

func dialGRPC(address string, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	// passthrough: one connection to the address that the resolver gives, as
	// most clients in a cluster have it.
	c, err := grpc.NewClient("passthrough:///"+address,
		append(more, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(), grpc.WithNoProxy())...)
	if err != nil {
		return nil, fmt.Errorf("making a gRPC client for %s: %w", address, err)
	}
	return c, nil
}

func callGRPC(ctx context.Context, o callOptions, r *Result) error {
	c, err := dialGRPC(o.target)
	if err != nil {
		return err
	}
	defer c.Close()
	text, err := unary(ctx, c)
	if err != nil {
		return err
	}
	r.keep([]byte(text))
	return nil
}

func unary(ctx context.Context, c *grpc.ClientConn) (string, error) {
	var out wrapperspb.StringValue
	if err := c.Invoke(ctx, grpcUnary, wrapperspb.String("hello"), &out); err != nil {
		return "", err
	}
	return out.GetValue(), nil
}

func callBidi(ctx context.Context, o callOptions, r *Result) error {
	c, err := dialGRPC(o.target)
	if err != nil {
		return err
	}
	defer c.Close()
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, grpcStream)
	if err != nil {
		return fmt.Errorf("opening the stream: %w", err)
	}
	for i := range o.messages {
		if err := o.pause(ctx, i); err != nil {
			return err
		}
		sent := wrapperspb.String(fmt.Sprintf("message %d", i))
		err := r.step(func() error {
			// After an error, SendMsg says io.EOF and RecvMsg says why.
			if err := stream.SendMsg(sent); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			var got wrapperspb.StringValue
			if err := stream.RecvMsg(&got); err != nil {
				return err
			}
			return same(sent.GetValue(), got.GetValue())
		})
		if err != nil {
			return fmt.Errorf("exchange %d: %w", i, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return fmt.Errorf("closing the stream: %w", err)
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the end of the stream: %w", err)
	}
	return nil
}

// dial opens a TCP connection that ends with ctx.
func dial(ctx context.Context, address string) (*net.TCPConn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c.(*net.TCPConn), nil
}

func callTCP(ctx context.Context, o callOptions, r *Result) error {
	return exchangeLines(ctx, o, r, false)
}

func callGreet(ctx context.Context, o callOptions, r *Result) error {
	return exchangeLines(ctx, o, r, true)
}

// exchangeLines echoes lines; with greeting it says nothing until the server
// has spoken, and the first step is the wait for that.
func exchangeLines(ctx context.Context, o callOptions, r *Result, greeting bool) error {
	c, err := dial(ctx, o.target)
	if err != nil {
		return err
	}
	defer c.Close()
	reader := bufio.NewReader(c)
	if greeting {
		err := r.step(func() error { return r.readLine(reader) })
		if err != nil {
			return fmt.Errorf("waiting for the greeting: %w", err)
		}
	}
	for i := range o.messages {
		if err := o.pause(ctx, i); err != nil {
			return err
		}
		sent := fmt.Sprintf("line %d\n", i)
		err := r.step(func() error {
			if _, err := io.WriteString(c, sent); err != nil {
				return err
			}
			return r.readLine(reader)
		})
		if err != nil {
			return fmt.Errorf("line %d: %w", i, err)
		}
		if !strings.HasSuffix(r.Text, sent) {
			return same(sent, r.Text)
		}
	}
	return nil
}

// readLine keeps a line, and who it came from.
func (r *Result) readLine(reader *bufio.Reader) error {
	line, err := reader.ReadString('\n')
	if err != nil {
		return err
	}
	r.Text = line
	if pod, rest, ok := strings.Cut(line, " "); ok {
		version, _, _ := strings.Cut(rest, " ")
		r.Reply = &report.Reply{Pod: pod, Version: version, Protocol: "tcp"}
	}
	return nil
}

// callPlain shows what a caller outside the mesh gets: it writes a request in
// the clear and reads until the end, whatever that is.
func callPlain(ctx context.Context, o callOptions, r *Result) error {
	c, err := dial(ctx, o.target)
	if err != nil {
		return err
	}
	defer c.Close()
	host, _, _ := net.SplitHostPort(o.target)
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	r.BodyBytes, r.Text = int64(len(answer)), string(answer[:min(len(answer), 4096)])
	if err != nil {
		return err
	}
	if len(answer) == 0 {
		return io.EOF
	}
	if _, err := fmt.Sscanf(r.Text, "HTTP/1.1 %d", &r.Status); err != nil {
		return fmt.Errorf("not an HTTP answer: %w", err)
	}
	return nil
}

// callReset is the client that gives up rudely: the head of a POST, half of
// its body, and a RST instead of the rest.
func callReset(ctx context.Context, o callOptions, r *Result) error {
	c, err := dial(ctx, o.target)
	if err != nil {
		return err
	}
	defer c.Close()
	head := fmt.Sprintf("POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n\r\n%0500d", o.target, 0)
	if _, err := io.WriteString(c, head); err != nil {
		return err
	}
	select {
	case <-time.After(o.resetAfter):
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.SetLinger(0)
}
