package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// command is one subcommand: it parses its own arguments, and writes its
// report to out. An error makes the program exit with 1.
type command func(ctx context.Context, args []string, out io.Writer) error

func commands() map[string]command {
	return map[string]command{
		"serve":   serveCommand,
		"call":    callCommand,
		"load":    loadCommand,
		"job":     jobCommand,
		"capture": captureCommand,
		"gone":    goneCommand,
	}
}

const usage = "usage: tulle-echo serve|call|load|job|capture|gone [flags]; each says more with -h"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "tulle-echo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	cmd, ok := commands()[args[0]]
	if !ok {
		return fmt.Errorf("no subcommand %q; %s", args[0], usage)
	}
	return cmd(ctx, args[1:], out)
}

// writeJSON writes v as one indented object.
func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}
