package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// loadOptions are the flags of load.
type loadOptions struct {
	call               callOptions
	rate               float64
	duration           time.Duration
	requests           int
	connections        int
	newConnectionShare float64
	timeline           bool
	untilEOF           bool
}

const loadUsage = `load KIND TARGET --rate R (--duration D | --requests N) [flags]`

// loadCommand makes calls at a steady rate, whether or not earlier ones have
// been answered (an open loop): a server that stalls is seen in the latencies,
// which count from the moment at which a call was due.
func loadCommand(ctx context.Context, args []string, out io.Writer) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: %s", loadUsage)
	}
	o := loadOptions{call: callOptions{kind: args[0], target: args[1]}}
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	o.call.register(f)
	f.Float64Var(&o.rate, "rate", 100, "calls per second")
	f.DurationVar(&o.duration, "duration", 0, "for how long")
	f.IntVar(&o.requests, "requests", 0, "how many calls, where there is no duration")
	f.IntVar(&o.connections, "connections", 8, "clients, each with one call at a time")
	f.Float64Var(&o.newConnectionShare, "new-connection-share", 0, "the share of clients that open a connection for each call")
	f.BoolVar(&o.timeline, "timeline", false, "report which version answered when")
	f.BoolVar(&o.untilEOF, "until-eof", false, "end with standard input, if that is sooner")
	if err := f.Parse(args[2:]); err != nil {
		return err
	}
	if o.untilEOF {
		var end context.CancelFunc
		ctx, end = context.WithCancel(ctx)
		go func() {
			defer end()
			_, _ = io.Copy(io.Discard, os.Stdin)
		}()
	}
	report, err := load(ctx, o)
	if err != nil {
		return err
	}
	return writeJSON(out, report)
}

// load runs until its duration is over, its requests are made, or ctx ends,
// and waits for the answers of all that it has begun.
func load(ctx context.Context, o loadOptions) (*Report, error) {
	total, err := o.total()
	if err != nil {
		return nil, err
	}
	var (
		due     = make(chan time.Time, total)
		report  = newReport(o.timeline)
		opened  atomic.Int64
		workers sync.WaitGroup
	)
	for i := range o.connections {
		c, err := newCaller(o.call, float64(i) < o.newConnectionShare*float64(o.connections), &opened)
		if err != nil {
			return nil, err
		}
		workers.Go(func() {
			defer c.close()
			for at := range due {
				report.add(oneCall(ctx, c, o.call.timeout, at))
			}
		})
	}
	report.Start = time.Now()
	pace(ctx, report.Start, o.rate, total, due)
	close(due)
	workers.Wait()
	report.Opened = int(opened.Load())
	report.finish()
	return report, nil
}

// total is the number of calls to make.
func (o loadOptions) total() (int, error) {
	switch {
	case o.rate <= 0 || o.connections <= 0:
		return 0, errors.New("--rate and --connections must be above 0")
	case o.duration > 0:
		return int(math.Round(o.rate * o.duration.Seconds())), nil
	case o.requests > 0:
		return o.requests, nil
	default:
		return 0, errors.New("say how long: --duration or --requests")
	}
}

// pace hands out the moments at which calls are due.
func pace(ctx context.Context, start time.Time, rate float64, total int, due chan<- time.Time) {
	for i := range total {
		at := start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		if wait := time.Until(at); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		due <- at
	}
}

// oneCall is not cut short when ctx ends: what was begun is waited for.
func oneCall(ctx context.Context, c caller, timeout time.Duration, due time.Time) sample {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	s := sample{due: due, sent: time.Now()}
	s.answer, s.err = c.call(ctx)
	s.done = time.Now()
	return s
}
