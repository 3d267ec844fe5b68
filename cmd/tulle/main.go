package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// Exit codes, for scripts.
const (
	exitHealthy = 0 // everything that was asked about is as it should be
	exitError   = 1 // the question could not be answered
	exitLacking = 2 // answered: something lacks
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr})
	stop()
	os.Exit(code)
}

// run runs the command line and returns the exit code.
func run(ctx context.Context, args []string, streams genericiooptions.IOStreams) int {
	root := newRoot(programName(args[0]), streams)
	root.SetArgs(args[1:])
	return report(root.ExecuteContext(ctx), streams)
}

// report says what went wrong and what to do next, and returns the exit code.
func report(err error, streams genericiooptions.IOStreams) int {
	switch {
	case err == nil:
		return exitHealthy
	case errors.Is(err, errLacking):
		return exitLacking
	}
	fmt.Fprintf(streams.ErrOut, "Error: %v\n", err)
	if next := nextStep(err); next != "" {
		fmt.Fprintf(streams.ErrOut, "Next:  %s\n", strings.ReplaceAll(next, "\n", "\n       "))
	}
	return exitError
}

// programName is how the user called us: kubectl runs the plugin `kubectl
// tulle` as a program named kubectl-tulle.
func programName(arg0 string) string {
	base := strings.TrimSuffix(filepath.Base(arg0), ".exe")
	if strings.HasPrefix(base, "kubectl-tulle") {
		return "kubectl tulle"
	}
	return "tulle"
}

// errLacking ends a command that answered, where the answer says that
// something lacks. The answer itself was printed.
var errLacking = errors.New("something lacks")

// advice is an error that knows what to do about it.
type advice struct {
	err  error
	next string
}

func (a *advice) Error() string { return a.err.Error() }
func (a *advice) Unwrap() error { return a.err }

// nextStep is what the user can do about the error, or "".
func nextStep(err error) string {
	if a := (*advice)(nil); errors.As(err, &a) {
		return a.next
	}
	if utilnet.IsConnectionRefused(err) {
		return "is the cluster up? set KUBECONFIG or --kubeconfig, and --context, to the one that you mean"
	}
	if apierrors.IsForbidden(err) {
		return "ask for the right that is named above (RBAC), or use another --context or --as"
	}
	if apierrors.IsUnauthorized(err) {
		return "the cluster does not accept your credentials: log in again, or use another --context"
	}
	return ""
}
