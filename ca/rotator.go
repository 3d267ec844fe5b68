package ca

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

const (
	// Between two looks at a rotation under way, and at whether there ought to be
	// one.
	rotatingTick = time.Second
	idleTick     = maxTick
	// DefaultSpreadTime is how long new roots are distributed at least. Proxies
	// acknowledge those that they verify each other by; those by which they verify
	// the control plane they read from a volume, of which nobody tells. A kubelet
	// brings it up to date when it looks at the pod again, each minute to minute
	// and a half, and some time after its cache was.
	DefaultSpreadTime = 3 * time.Minute
	// maxSettleTime is how long all proxies have had a phase when the next one
	// begins, at most; it is SpreadTime where that is shorter. A connection keeps
	// the certificate and the roots that its proxy had when it was begun, and may
	// reach a peer that is in the next phase already: a handshake failed so in a
	// test. Envoy's time-out includes the handshake (connect_timeout), and is 2 s
	// unless a policy says otherwise. It is longer than certificates take their
	// turn (maxSpread), too: pods that have not started yet are in no report.
	maxSettleTime = 90 * time.Second
	// forcedTime is how long a forced rotation waits in each phase for proxies
	// that may acknowledge yet.
	forcedTime = time.Minute
	// A phase does not wait beyond the end of what signs: then all would be cut off
	// for the sake of those that do not acknowledge. It goes on without them when
	// so much is left to sign for all others, or lastPart of the life where that
	// is shorter.
	lastTime = time.Hour
	lastPart = 20
	// stalledTime is after how long in a phase it is said that it does not go on.
	stalledTime = 5 * time.Minute
)

// Progress is how far all proxies are, over all replicas.
type Progress struct {
	// Done says that all have it. False with nothing below: it is not known yet.
	Done             bool
	Concerned, Have  int
	Waiting, Missing []string // some of the pods that have not; replicas that do not report
	Refusal          string   // what one of the proxies said that refused
}

// Live tells what proxies have acknowledged, of what replicas built for a
// sequence.
type Live interface {
	// Trust is about the roots.
	Trust(sequence int64) Progress
	// Issuer is about certificates of the present issuer.
	Issuer(sequence int64) Progress
}

// Terms are how long a certificate of the authority lives, and when it is
// rotated without being asked.
type Terms struct {
	Lifetime time.Duration
	// Before is the part of its life that is left when it is rotated, from 0 to
	// 1; 0: it is not rotated by itself.
	Before float64
}

// DefaultBefore has a certificate of the authority rotated at two thirds of its
// life.
const DefaultBefore = 1.0 / 3

// Settings are what the mesh's operator wants of the authority.
type Settings struct {
	TrustDomain  string
	Issuer, Root Terms
	// Signer is who is to sign; nil: the authority itself.
	Signer *Signer
	// Roots are the roots that the signer's certificates lead to, in PEM; empty: its
	// answers have them.
	Roots []byte
	// Request is an [Ask], or empty.
	Request string
}

// RotatorOptions are what a Rotator needs.
type RotatorOptions struct {
	Authority *Authority
	// Settings are the present ones.
	Settings func() Settings
	// Brought is where an operator brings an intermediate; nil: nowhere.
	Brought Source
	Live    Live
	// Spread names where the roots that the authority has now have not arrived,
	// of that for which there is no acknowledgement.
	Spread func(context.Context) ([]string, error)
	// SpreadTime is how long roots are distributed at least; 0:
	// DefaultSpreadTime.
	SpreadTime time.Duration
	// ServingNames are the DNS names of the control plane.
	ServingNames []string
	// Namespace and ServiceAccount are the control plane's, in whose name it is tried
	// whether somebody signs leaves.
	Namespace, ServiceAccount string
	// Changed is called when there is something else to say, see
	// [Rotator.State]. It must not block; nil: nobody is told.
	Changed func()
	Log     logr.Logger
}

// Rotator rotates the issuer and the roots: when somebody asks, when their end
// is near, and when an operator brings others. It runs on one replica at a time.
// All that it knows is stored with the authority, so that another one goes on
// where it was.
type Rotator struct {
	opts RotatorOptions
	wake chan struct{}

	mu      sync.Mutex
	leading bool
	settled settled
	began   time.Time // to lead
	waits   string
	held    bool // it does not go on
	problem Problem
	said    string
	outlook Outlook
	failed  failed

	// What follows is that of the goroutine that rotates.
	ordered  map[Signer]*ordered
	looked   time.Time // at how requests fare
	foreign  bool      // the signer may have another root than those that are trusted
	compared time.Time // when that was found not to be so, or was followed
}

// failed is why the last step was not done, and since when none was.
type failed struct {
	why   string
	since time.Time
}

// settled is since when all proxies have what a sequence is about. It is not
// stored: who comes to lead waits once more.
type settled struct {
	sequence int64
	since    time.Time
}

// NewRotator makes a Rotator.
func NewRotator(o RotatorOptions) *Rotator {
	if o.SpreadTime == 0 {
		o.SpreadTime = DefaultSpreadTime
	}
	if o.Spread == nil {
		o.Spread = func(context.Context) ([]string, error) { return nil, nil }
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	r := &Rotator{opts: o, wake: make(chan struct{}, 1), ordered: map[Signer]*ordered{}}
	o.Authority.Notify(r.Wake)
	return r
}

// Wake has the Rotator look now: settings are others.
func (r *Rotator) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run rotates until the context ends.
func (r *Rotator) Run(ctx context.Context) error {
	r.began = r.opts.Authority.now()
	r.ordered, r.looked, r.foreign = map[Signer]*ordered{}, time.Time{}, false
	defer r.tell(func() {
		r.leading, r.waits, r.held, r.problem, r.outlook, r.failed = false, "", false, Problem{}, Outlook{}, failed{}
	})
	r.tell(func() { r.leading = true })
	for {
		if err := r.Step(ctx); err != nil && ctx.Err() == nil {
			r.opts.Authority.failures.Inc()
			r.opts.Log.Error(err, "the certificate authority cannot be rotated now; trying again")
		}
		pause := idleTick
		switch record := r.opts.Authority.material.Load().record; {
		case record.Rotation != nil || len(r.ordered) > 0:
			pause = rotatingTick
		case record.Delegation != nil:
			pause = lookInterval
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-r.wake:
			timer.Stop()
		}
	}
}

// Step does what is to be done now: one write at most.
func (r *Rotator) Step(ctx context.Context) error {
	err := r.step(ctx)
	now := r.opts.Authority.now()
	r.tell(func() {
		switch {
		case err == nil:
			r.failed = failed{}
		case r.failed.since.IsZero():
			r.failed.since = now
			fallthrough
		default:
			r.failed.why = err.Error()
		}
	})
	return err
}

func (r *Rotator) step(ctx context.Context) error {
	m := r.opts.Authority.material.Load()
	r.look(ctx, m)
	if m.record.Rotation == nil {
		return r.consider(ctx, m)
	}
	return r.drive(ctx, m)
}

// drive goes on with a rotation, if everybody is ready for it.
func (r *Rotator) drive(ctx context.Context, m *material) error {
	a := r.opts.Authority
	now, rotation := a.now(), m.record.Rotation
	r.began = earlier(r.began, now) // the clock was set back
	if now.Before(rotation.Since) {
		return r.amend(ctx, m, "", func(to *Rotation) { to.Since = now })
	}
	if rotation.Phase == PhaseDistribute && m.late(now) {
		r.opts.Log.Info("a rotation is given up: the issuer that it leads to ends before it signs", "scope", rotation.Scope, "issuer", rotation.To.Issuer)
		stored, err := m.abandon()
		if err != nil {
			return err
		}
		return a.write(ctx, stored)
	}
	settings := r.opts.Settings()
	if to := rotation.To.Signer; to != nil && rotation.Phase != PhaseRetire && !sameSigner(to, settings.Signer) && !rotation.upkeep() {
		r.opts.Log.Info("a rotation is given up: it leads to a signer that the MeshConfig does not name any more", "signer", to.String(), "phase", rotation.Phase)
		stored, err := m.giveUp(now)
		if err != nil {
			return err
		}
		return a.write(ctx, stored)
	}
	if r.foreign && r.overtaken(ctx, m, now, settings) {
		r.opts.Log.Info("a rotation is given up: the signer that it leads to has another root by now", "signer", rotation.To.Signer.String(), "phase", rotation.Phase)
		stored, err := m.giveUp(now)
		if err != nil {
			return err
		}
		return a.write(ctx, stored)
	}
	queued := ""
	request := settings.Request
	if ask, _ := m.asked(request, now); ask != nil {
		switch {
		case ask.Scope == rotation.Scope && ask.Forced && !rotation.Forced:
			r.opts.Log.Info("the rotation goes on without proxies that do not acknowledge", "scope", rotation.Scope)
			return r.amend(ctx, m, request, func(to *Rotation) { to.Forced = true })
		default:
			queued = fmt.Sprintf("; another one, of the %s, was asked for and follows", ask.Scope)
		}
	}
	g := r.gate(ctx, m, now)
	if g.open {
		stored, err := m.advance(now, g.without)
		if err != nil {
			return err
		}
		if _, err := parseMaterial(stored); err != nil { // somebody has changed it
			r.opts.Log.Error(err, "a rotation is given up: what it leads to cannot be used", "scope", rotation.Scope, "phase", rotation.Phase)
			if stored, err = m.giveUp(now); err != nil {
				return err
			}
		}
		if err := a.write(ctx, stored); err != nil {
			return err
		}
		r.tell(func() { r.waits, r.held, r.problem = "", false, Problem{} })
		r.log(m, a.material.Load(), g.without)
		return nil
	}
	r.tell(func() {
		r.waits, r.problem = g.waits+queued, Problem{}
		r.held = g.others && now.Sub(rotation.Since) >= stalledTime
	})
	return nil
}

// gate is whether a phase may end, and for what it waits if not.
type gate struct {
	open    bool
	waits   string
	others  bool     // it is for others that it waits, not for time alone
	without []string // who is cut off by opening it
}

func (r *Rotator) gate(ctx context.Context, m *material, now time.Time) gate {
	rotation, sequence := m.record.Rotation, m.record.Sequence
	in := now.Sub(rotation.Since)
	// Who comes to lead knows of nobody for a while, and would cut off all of them.
	forced := (rotation.Forced || m.last(now)) && now.Sub(later(rotation.Since, r.began)) >= forcedTime
	var p Progress
	if rotation.Phase == PhaseSign {
		p = r.opts.Live.Issuer(sequence)
	} else {
		p = r.opts.Live.Trust(sequence)
	}
	var without []string
	if !p.Done {
		r.settled = settled{}
		if !forced {
			return gate{waits: p.waits(rotation.Phase), others: true}
		}
		without = p.Waiting
	} else if left := r.settling(sequence, now); left > 0 && (rotation.Phase == PhaseDistribute || m.leaving()) {
		return gate{waits: fmt.Sprintf("all proxies have it; for %s more, for connections that were begun before", left.Round(time.Second))}
	}
	if rotation.Phase != PhaseDistribute {
		return gate{open: true, without: without}
	}
	behind, err := r.opts.Spread(ctx)
	switch left := r.opts.SpreadTime - in; {
	case err != nil:
		return gate{waits: "whether all namespaces and webhooks have the new roots is not known: " + err.Error(), others: true}
	case len(behind) > 0 && !forced:
		return gate{waits: "the new roots have not been written to " + few(behind, len(behind)), others: true}
	case left > 0:
		return gate{waits: fmt.Sprintf("for %s more, for kubelets to bring the new roots to their pods", left.Round(time.Second))}
	}
	return gate{open: true, without: without}
}

// settling is how long it has to last yet that all proxies have what the sequence
// is about.
func (r *Rotator) settling(sequence int64, now time.Time) time.Duration {
	if r.settled.sequence != sequence || now.Before(r.settled.since) {
		r.settled = settled{sequence, now}
	}
	return min(r.opts.SpreadTime, maxSettleTime) - now.Sub(r.settled.since)
}

// waits says for whom a phase waits.
func (p Progress) waits(phase Phase) string {
	what := map[Phase]string{
		PhaseDistribute: "have acknowledged the new roots", PhaseSign: "present a certificate of the new issuer", PhaseRetire: "have given up the old roots",
	}[phase]
	switch {
	case len(p.Missing) > 0:
		return "no report of control plane replica " + few(p.Missing, len(p.Missing))
	case p.Refusal != "":
		return fmt.Sprintf("%d of %d proxies %s; one refused: %s", p.Have, p.Concerned, what, p.Refusal)
	case p.Concerned > p.Have:
		return fmt.Sprintf("%d of %d proxies %s; waiting for %s", p.Have, p.Concerned, what, few(p.Waiting, p.Concerned-p.Have))
	}
	return "what control plane replicas report is of before"
}

// few names some, of so many.
func few(names []string, of int) string {
	const most = 3
	names = names[:min(len(names), most)]
	text := strings.Join(names, ", ")
	if more := of - len(names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func (r *Rotator) amend(ctx context.Context, m *material, request string, change func(*Rotation)) error {
	stored, err := m.amend(request, change)
	if err != nil {
		return err
	}
	return r.opts.Authority.write(ctx, stored)
}

// consider begins a rotation, if there is a reason to.
func (r *Rotator) consider(ctx context.Context, m *material) error {
	now, settings := r.opts.Authority.now(), r.opts.Settings()
	plan, problem, err := r.plan(ctx, m, now, settings)
	if err != nil {
		problem = Problem{Reason: ReasonUnavailable, Message: err.Error()}
		var n *NotSigned
		if errors.As(err, &n) { // it is said, and nothing that went wrong here
			problem, err = Problem{n.Reason, n.Message}, nil
			if end := m.notAfter(); left(m.issuer().NotBefore, end, now) < DefaultBefore/2 {
				problem.Message += "; what signs now ends at " + end.UTC().Format(time.RFC3339)
			}
		}
	}
	r.tell(func() { r.waits, r.held, r.problem = "", false, problem })
	if plan == nil {
		return err
	}
	stored, err := m.begin(now, plan.next, Rotation{Why: plan.why, Forced: plan.forced}, plan.request)
	if err != nil {
		return err
	}
	if err := r.opts.Authority.write(ctx, stored); err != nil {
		return err
	}
	r.log(m, r.opts.Authority.material.Load(), nil)
	return nil
}

// log tells of a step; whoever was first with it.
func (r *Rotator) log(before, after *material, without []string) {
	if before.stored.Revision == after.stored.Revision {
		return
	}
	if now := after.record.Rotation; now != nil {
		r.opts.Log.Info("rotating the certificate authority", "scope", now.Scope, "why", now.Why, "phase", now.Phase,
			"issuer", now.To.Issuer, "root", now.To.Root, "without", without)
	} else if len(after.record.History) > 0 {
		past := after.record.History[0]
		r.opts.Log.Info("rotated the certificate authority", "scope", past.Scope, "why", past.Why,
			"issuer", past.To.Issuer, "root", past.To.Root, "took", past.Ended.Sub(past.Started), "cutOff", past.CutOff)
	}
}
