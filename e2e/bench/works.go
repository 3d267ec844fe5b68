package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// work is something that is done to a control plane, while it is watched.
type work struct {
	name string
	what string
	do   func(ctx context.Context, r *run, out *result) error
}

// works are all that there are, in the order in which they are done: each begins
// with what the one before has left.
func works() []work {
	return []work{
		{"connect", "all sidecars connect at once, until each has everything", connect},
		{"idle", "nothing changes for 10 s", idle},
		{"move", "one endpoint gets another address, one change after the other", move},
		{"churn", "20 endpoints a second move, for 15 s", churn},
		{"roll", "200 endpoints of one service move, 20 a second", roll},
		{"add", "a service is added, one after the other", add},
		{"policy-one", "a policy for one workload changes", policyForOne},
		{"policy-all", "a policy for the whole mesh changes", policyForAll},
		{"reconnect", "half of the streams are cut at once", reconnect},
		{"stuck", "endpoints move while one sidecar in twenty never reads", stuck},
		{"leave", "half of the sidecars leave for good", leave},
	}
}

// run is one control plane with its sidecars.
type run struct {
	world    *world
	plane    plane
	board    *board
	process  *process
	sidecars []*sidecar
	callers  [][]int // of each service: sidecars
	random   *rand.Rand
	changes  int           // of a work that does one thing after the other
	pause    time.Duration // between them
	ctx      context.Context
	group    *sync.WaitGroup
}

// patience is how long a change may take to reach everybody.
const patience = time.Minute

func connect(ctx context.Context, r *run, out *result) error {
	for _, s := range r.sidecars {
		r.group.Go(func() { s.run(r.ctx) })
	}
	limit := time.After(5 * time.Minute)
	var took []float64
	for _, s := range r.sidecars {
		select {
		case <-s.whole():
			took = append(took, float64(s.took.Milliseconds()))
		case <-limit:
			out.Missed++
			limit = time.After(0)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	out.Delay = spreadOf(took)
	for _, s := range r.sidecars {
		out.Failed += int(s.failures.Load())
		if text, ok := s.lastError.Load().(string); ok {
			out.Note = text
		}
	}
	return nil
}

func idle(ctx context.Context, _ *run, _ *result) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Second):
		return nil
	}
}

// called is the next of the services that somebody calls.
func (r *run) called() int {
	for {
		if i := r.random.IntN(len(r.callers)); len(r.callers[i]) > 0 {
			return i
		}
	}
}

// moveOne moves an endpoint and returns what is to be received, and by how many.
func (r *run) moveOne(ctx context.Context, service, endpoint, stuck int) (*expect, error) {
	address := r.world.mark()
	e := r.board.expect(r.plane.endpoints(service), []byte(address), len(r.callers[service])-stuck)
	err := r.world.move(ctx, serviceName(service), endpoint, address)
	e.from = time.Now()
	if p, ok := r.plane.(*bare); ok && err == nil {
		err = p.tell(ctx, service, address)
	}
	return e, err
}

// gather waits for changes and takes note of when who received them.
func (r *run) gather(ctx context.Context, out *result, all ...*expect) error {
	limit := time.After(patience)
	var delays, slowest []float64
	for _, e := range all {
		select {
		case <-e.done:
		case <-limit:
			limit = time.After(0)
		case <-ctx.Done():
			return ctx.Err()
		}
		each := r.board.delays(e)
		out.Missed += int(e.wanted) - len(each)
		worst := 0.0
		for _, d := range each {
			worst = max(worst, d)
		}
		delays, slowest = append(delays, each...), append(slowest, worst)
	}
	out.delays, out.slowest = append(out.delays, delays...), append(out.slowest, slowest...)
	out.Changes += len(all)
	r.board.forget()
	return nil
}

// oneByOne does something so many times, each when everybody has the last.
func (r *run) oneByOne(ctx context.Context, out *result, n int, do func(int) (*expect, error)) error {
	for i := range n {
		e, err := do(i)
		if err != nil {
			return err
		}
		if err := r.gather(ctx, out, e); err != nil {
			return err
		}
		if out.Missed > 0 {
			out.Note = "given up: a change did not reach everybody within " + patience.String()
			return nil
		}
		time.Sleep(r.pause)
	}
	return nil
}

func move(ctx context.Context, r *run, out *result) error {
	return r.oneByOne(ctx, out, r.changes, func(i int) (*expect, error) { return r.moveOne(ctx, r.called(), i, 0) })
}

// atRate does something so many times at a rate, however long each takes.
func (r *run) atRate(ctx context.Context, out *result, perSecond, n int, do func(int) (*expect, error)) error {
	began := time.Now()
	var all []*expect
	for i := range n {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		e, err := do(i)
		if err != nil {
			return err
		}
		all = append(all, e)
	}
	return r.gather(ctx, out, all...)
}

func churn(ctx context.Context, r *run, out *result) error {
	return r.atRate(ctx, out, 20, 300, func(i int) (*expect, error) { return r.moveOne(ctx, r.called(), i, 0) })
}

func roll(ctx context.Context, r *run, out *result) error {
	service := r.called()
	return r.atRate(ctx, out, 20, 200, func(i int) (*expect, error) { return r.moveOne(ctx, service, i, 0) })
}

func add(ctx context.Context, r *run, out *result) error {
	return r.oneByOne(ctx, out, max(1, r.changes/6), func(i int) (*expect, error) {
		service := r.world.size.Services + r.world.added
		r.world.added++
		address := r.world.mark()
		at, mark := r.plane.added(service, address)
		e := r.board.expect(at, []byte(mark), len(r.sidecars))
		err := r.world.addService(ctx, service, []string{address})
		e.from = time.Now()
		return e, err
	})
}

func policyForOne(ctx context.Context, r *run, out *result) error {
	workload := 0
	concerned := 0
	for i := range r.sidecars {
		if i%r.world.size.Workloads == workload {
			concerned++
		}
	}
	return r.rule(ctx, out, namespace, map[string]any{"app": account(workload)}, concerned)
}

func policyForAll(ctx context.Context, r *run, out *result) error {
	return r.rule(ctx, out, meshNamespace, nil, len(r.sidecars))
}

func (r *run) rule(ctx context.Context, out *result, in string, selector map[string]any, concerned int) error {
	if !r.plane.policies() {
		out.Note = "not done"
		return nil
	}
	return r.oneByOne(ctx, out, r.changes/3, func(int) (*expect, error) {
		path := "/bench-" + r.world.mark()
		e := r.board.expect(slot{}, []byte(path), concerned)
		err := r.world.deny(ctx, "bench", in, path, selector)
		e.from = time.Now()
		return e, err
	})
}

func reconnect(ctx context.Context, r *run, out *result) error {
	cut := r.sidecars[:len(r.sidecars)/2]
	began := time.Now()
	for _, s := range cut {
		s.reconnect(nil)
	}
	if err := r.back(ctx, cut); err != nil {
		return err
	}
	out.Delay = spreadOf([]float64{float64(time.Since(began).Milliseconds())})
	return nil
}

func stuck(ctx context.Context, r *run, out *result) error {
	n := max(1, len(r.sidecars)/20)
	still := map[int]bool{}
	for _, s := range r.sidecars[len(r.sidecars)-n:] {
		s.reconnect(func() { s.stuck = true })
		still[s.index] = true
	}
	if err := r.back(ctx, r.sidecars[len(r.sidecars)-n:]); err != nil {
		return err
	}
	return r.oneByOne(ctx, out, r.changes, func(i int) (*expect, error) {
		service, deaf := r.called(), 0
		for _, c := range r.callers[service] {
			if still[c] {
				deaf++
			}
		}
		return r.moveOne(ctx, service, i, deaf)
	})
}

func leave(ctx context.Context, r *run, out *result) error {
	for _, s := range r.sidecars[:len(r.sidecars)/2] {
		s.reconnect(func() { s.gone = true })
	}
	if err := r.streams(ctx, len(r.sidecars)-len(r.sidecars)/2); err != nil {
		return err
	}
	return idle(ctx, r, out)
}

// back waits until sidecars whose streams were cut have others. What a sidecar holds
// is not sent again, so that it may hear nothing.
func (r *run) back(ctx context.Context, cut []*sidecar) error {
	for limit := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		waiting := 0
		for _, s := range cut {
			if !s.isBack() {
				waiting++
			}
		}
		if waiting == 0 {
			return r.streams(ctx, len(r.sidecars))
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%d of %d sidecars did not connect again", waiting, len(cut))
		}
	}
}

// streams waits until the control plane says that so many proxies are connected.
func (r *run) streams(ctx context.Context, want int) error {
	url, metric := r.plane.metrics()
	limit := time.Now().Add(patience)
	for {
		got, err := scrape(ctx, url, metric)
		if err == nil && int(got) == want {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%v proxies are connected, not %d (%w)", got, want, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
