package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// failureOf classifies an error: reset (the peer sent RST), eof (it closed
// before an answer was complete), refused, timeout, dns, "grpc-<code>", or
// other. nil stays nil.
func failureOf(err error) *report.Failure {
	if err == nil {
		return nil
	}
	return &report.Failure{Kind: failureKind(err), Text: err.Error()}
}

func failureKind(err error) string {
	var (
		netErr net.Error
		dnsErr *net.DNSError
	)
	switch {
	case errors.As(err, &dnsErr):
		return "dns"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &netErr) && netErr.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "eof"
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK && s.Code() != codes.Unknown {
		return "grpc-" + s.Code().String()
	}
	// net/http reports a few endings as plain text only.
	if strings.Contains(err.Error(), "server closed") || strings.Contains(err.Error(), "EOF") {
		return "eof"
	}
	return "other"
}
