// Command echo-advanced stands for the image of that name, which pods of the
// mesh tests of the Gateway API's conformance suite run and which is not to be
// had where images cannot be pulled. It is an interface, written anew: the
// command line is that of the suite's mesh/manifests.yaml and utils/echo/pod.go,
// the output what utils/echo/parse.go reads. What no test uses is left out.
//
// It is one program under two names:
//
//	server --port=8080 --grpc=7070 --tcp=9090 --port=8443 --tls=8443 --crt=FILE --key=FILE
//	client http://HOST[:PORT]/PATH [--method=GET] [-H NAME:VALUE]... [--count=N]
//
// The server answers each request with what it saw of it. The client makes
// requests and prints of each what came back, with an empty line after it:
//
//	[0] Url=http://echo/
//	[0] StatusCode=200
//	[0] ResponseHeader=Content-Type:text/plain
//	[0 body] RequestHeader=Accept-Encoding:gzip
//	[0 body] Hostname=echo-v1-5b7c8-x2x4z
//
// A reply of any status is success; a request without a reply ends the client
// with 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var err error
	switch name := filepath.Base(os.Args[0]); name {
	case "client":
		err = clientMain(ctx, os.Args[1:], os.Stdout)
	case "server":
		err = serverMain(ctx, os.Args[1:])
	default:
		err = fmt.Errorf("called as %q; call it as client or server", name)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "echo-advanced:", err)
		stop()
		os.Exit(1)
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// field is a line of a reply. Names are those of utils/echo/parse.go.
func field(name, value string) string { return name + "=" + value + "\n" }
