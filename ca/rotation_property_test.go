package ca

import (
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
)

// errCrash is what a process that dies learns of its write.
var errCrash = errors.New("the process has died")

// crashing is a store whose next update is the last thing that a process does:
// it is carried out, or it is not.
type crashing struct {
	*memoryStore
	crash, done bool
}

func (s *crashing) Update(ctx context.Context, c Stored) (Stored, error) {
	if !s.crash {
		return s.memoryStore.Update(ctx, c)
	}
	s.crash = false
	if s.done {
		if _, err := s.memoryStore.Update(ctx, c); err != nil {
			return Stored{}, err
		}
	}
	return Stored{}, errCrash
}

// simulated is a proxy: what it trusts and presents, and the volume by which it
// verifies the control plane.
type simulated struct {
	replica int
	trust   []byte
	chain   []*x509.Certificate
	issuer  string
	volume  []byte
	pending []byte // what the kubelet is to bring
	by      time.Time
	before  []begun
}

// begun are connections that a proxy began with what it had until a moment ago.
type begun struct {
	until time.Time
	trust []byte
	chain []*x509.Certificate
}

// longest is how long a connection takes to reach its peer.
const longest = 20 * time.Second

// simulation is a mesh of two replicas and some proxies, of which each is behind
// as far as it may be.
type simulation struct {
	t        *testing.T
	random   *mathrand.Rand
	clock    time.Time
	store    *crashing
	replicas []*Authority
	leader   *Rotator
	settings Settings
	proxies  []*simulated
	crashes  int
	serving  map[string][]*x509.Certificate // by issuer
	known    map[[2]string]error
	seen     map[pair]error // the same for what was looked at before
	remote   Remote         // nil: nobody but the authority signs
}

func newSimulation(t *testing.T, seed uint64) *simulation {
	return newSimulationOf(t, seed, func(*simulation) Remote { return nil })
}

func newSimulationOf(t *testing.T, seed uint64, remote func(*simulation) Remote) *simulation {
	s := &simulation{t: t, random: mathrand.New(mathrand.NewPCG(seed, 0)), clock: start, store: &crashing{memoryStore: &memoryStore{}}, settings: defaults(), serving: map[string][]*x509.Certificate{}, known: map[[2]string]error{}, seen: map[pair]error{}}
	s.remote = remote(s)
	for range 2 {
		s.replicas = append(s.replicas, s.open())
	}
	s.lead()
	for i := range 3 {
		p := &simulated{replica: i % 2}
		s.proxies = append(s.proxies, p)
		s.subscribe(p)
		s.renew(p)
		p.volume = s.replicas[0].Roots()
	}
	return s
}

func (s *simulation) open() *Authority {
	a, err := Open(s.t.Context(), AuthorityOptions{Store: s.store, Log: logr.Discard(), Now: func() time.Time { return s.clock }, Remote: s.remote})
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *simulation) lead() {
	s.leader = NewRotator(RotatorOptions{Authority: s.replicas[0], Settings: func() Settings { return s.settings }, Live: s, Namespace: "tulle-system", ServiceAccount: "tulled", Log: logr.Discard()})
}

func (s *simulation) subscribe(p *simulated) {
	s.begun(p)
	p.trust = s.replicas[p.replica].Bundle().Roots
}

// begun keeps what the proxy has, which is to be replaced.
func (s *simulation) begun(p *simulated) {
	p.before = slices.DeleteFunc(p.before, func(b begun) bool { return s.clock.Sub(b.until) > longest })
	if p.chain != nil {
		p.before = append(p.before, begun{s.clock, p.trust, p.chain})
	}
}

// renew has the proxy present another certificate; where nobody signs one now, it
// goes on with what it has.
func (s *simulation) renew(p *simulated) {
	key, err := newKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	signed, err := s.replicas[p.replica].Sign(s.t.Context(), Request{Kind: Workload, ID: frontend, Key: key, Lifetime: DefaultLifetime})
	if err != nil {
		if s.remote == nil {
			s.t.Fatal(err)
		}
		return
	}
	s.begun(p)
	p.chain, p.issuer = signed.Chain, signed.Epoch.Issuer
}

// progress is what the replicas' reports would say together.
func (s *simulation) progress(sequence int64, has func(*simulated, Bundle) bool) Progress {
	out := Progress{Concerned: len(s.proxies)}
	for _, a := range s.replicas {
		if a.Bundle().Sequence != sequence {
			return Progress{}
		}
	}
	for i, p := range s.proxies {
		if has(p, s.replicas[p.replica].Bundle()) {
			out.Have++
		} else {
			out.Waiting = append(out.Waiting, fmt.Sprint("shop/", i))
		}
	}
	out.Done = out.Have == out.Concerned
	return out
}

func (s *simulation) Trust(sequence int64) Progress {
	return s.progress(sequence, func(p *simulated, b Bundle) bool { return string(p.trust) == string(b.Roots) })
}

func (s *simulation) Issuer(sequence int64) Progress {
	return s.progress(sequence, func(p *simulated, b Bundle) bool { return p.issuer == b.Issuer })
}

// move does one thing at random.
func (s *simulation) move() {
	p := s.proxies[s.random.IntN(len(s.proxies))]
	switch s.random.IntN(8) {
	case 0, 1:
		s.rotate()
	case 2:
		if err := s.replicas[1].refresh(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
	case 3:
		if s.answers(p) {
			s.subscribe(p)
		}
	case 4:
		if s.answers(p) {
			s.renew(p)
		}
	case 5: // it connects to another replica, and is sent what that one has
		if s.answers(p) {
			p.replica = 1 - p.replica
			s.subscribe(p)
		}
	case 6:
		s.clock = s.clock.Add(time.Duration(s.random.IntN(30)) * time.Second)
		s.kubelets()
	case 7:
		s.store.crash, s.store.done = true, s.random.IntN(2) == 0
		s.rotate()
		s.store.crash = false
	}
}

// answers is rarely true of the last proxy, which is frozen for most of the time.
func (s *simulation) answers(p *simulated) bool {
	return p != s.proxies[len(s.proxies)-1] || s.random.IntN(30) == 0
}

// kubelets bring to each volume what the ConfigMap has, within the time that
// they are given.
func (s *simulation) kubelets() {
	roots := s.replicas[0].Roots() // the leader writes it
	for _, p := range s.proxies {
		if p.pending != nil && !s.clock.Before(p.by) {
			p.volume, p.pending = p.pending, nil
		}
		last := p.volume
		if p.pending != nil { // a kubelet brings what there is when it looks
			last = p.pending
		}
		if string(last) != string(roots) {
			if p.pending != nil && s.random.IntN(2) == 0 { // it looked in between
				p.volume = p.pending
			}
			p.pending, p.by = roots, s.clock.Add(time.Duration(s.random.Int64N(int64(DefaultSpreadTime)-int64(30*time.Second))))
		}
	}
}

// rotate is one step of the leader; when it dies, another takes its place.
func (s *simulation) rotate() {
	err := s.leader.Step(s.t.Context())
	s.kubelets()
	if errors.Is(err, errCrash) {
		s.crashes++
		s.replicas[0] = s.open()
		s.lead()
		return
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// check is the promise: everybody verifies everybody, and the control plane.
func (s *simulation) check() {
	s.t.Helper()
	serving := make([][]*x509.Certificate, len(s.replicas))
	for i, a := range s.replicas {
		serving[i] = s.serves(a)
	}
	for i, p := range s.proxies {
		for j, q := range s.proxies {
			if err := s.verified(p.trust, q.chain); err != nil {
				s.t.Fatalf("proxy %d refuses proxy %d: %v", i, j, err)
			}
		}
		for _, b := range p.before {
			if s.clock.Sub(b.until) > longest {
				continue
			}
			for j, q := range s.proxies {
				if err := errors.Join(s.verified(b.trust, q.chain), s.verified(q.trust, b.chain)); err != nil {
					s.t.Fatalf("a connection that proxy %d began is refused, or refuses proxy %d: %v", i, j, err)
				}
			}
		}
		for j, chain := range serving {
			if err := s.verified(p.volume, chain); err != nil {
				s.t.Fatalf("proxy %d refuses replica %d: %v", i, j, err)
			}
		}
	}
}

// serves is the replica's own certificate, of its present issuer.
func (s *simulation) serves(a *Authority) []*x509.Certificate {
	s.t.Helper()
	issuer := a.Epoch().Issuer
	if chain := s.serving[issuer]; chain != nil {
		return chain
	}
	key, err := newKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	signed, err := a.Sign(s.t.Context(), Request{Kind: Serving, DNSNames: []string{"tulled"}, Key: key, Lifetime: DefaultLifetime})
	if err != nil {
		s.t.Fatal(err)
	}
	s.serving[issuer] = signed.Chain
	return signed.Chain
}

// pair is who verifies whom.
type pair struct {
	roots *byte
	leaf  *x509.Certificate
}

// verified verifies, what was verified before excepted: certificates of one
// issuer are all alike.
func (s *simulation) verified(roots []byte, chain []*x509.Certificate) error {
	looked := pair{&roots[0], chain[0]}
	if err, ok := s.seen[looked]; ok {
		return err
	}
	k := [2]string{string(roots), chainID(chain[1:]) + string(chain[0].AuthorityKeyId)}
	if _, ok := s.known[k]; !ok {
		s.known[k] = verify(roots, chain, chain[0].NotAfter.Add(-DefaultLifetime), x509.ExtKeyUsageServerAuth) // when it was signed
	}
	s.seen[looked] = s.known[k]
	return s.known[k]
}

func TestNobodyIsEverRefusedWhereverARotationIsBrokenOff(t *testing.T) {
	crashes := 0
	for seed := range uint64(16) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := newSimulation(t, seed)
			first := s.replicas[0].Epoch()
			s.settings.Request = ask([]Scope{ScopeRoot, ScopeIssuer}[seed%2], false)
			moves := 0
			for ; len(s.replicas[0].material.Load().record.History) == 0; moves++ {
				if moves > 50_000 {
					t.Fatalf("not rotated: %+v", s.replicas[0].material.Load().record.Rotation)
				}
				s.move()
				s.check()
			}
			m := s.replicas[0].material.Load()
			if m.epoch.Issuer == first.Issuer || len(m.roots) != 1 || len(m.stored.NextRoot) > 0 || (m.epoch.Root == first.Root) != (seed%2 == 1) {
				t.Errorf("it ends with %d roots and %+v", len(m.roots), m.record)
			}
			crashes += s.crashes
		})
	}
	if crashes < 16 {
		t.Errorf("only %d crashes", crashes)
	}
}

func TestNobodyIsEverRefusedWhileTheMeshIsSwitchedBetweenAuthorities(t *testing.T) {
	crashes, given, replaced := 0, 0, 0
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := newSimulationOf(t, seed, func(s *simulation) Remote {
				companies := map[string]*company{}
				return &elsewhere{t: t, keeps: true, clock: func() time.Time { return s.clock }, signer: func(signer Signer) (*company, bool) {
					if companies[signer.Name] == nil || s.random.IntN(150) == 0 { // it has another root
						companies[signer.Name] = newCompany(t, ecKey(t, elliptic.P256()))
					}
					return companies[signer.Name], s.random.IntN(3) > 0
				}}
			})
			another := *by(SignsLeaves)
			another.Name = "another"
			targets := []*Signer{by(SignsIntermediate), by(SignsLeaves), &another, nil, by(SignsLeaves), by(SignsIntermediate), nil}
			moves := 0
			for i, to := range targets {
				s.settings.Signer = to
				minds := 2   // that are changed on the way, and back
				stays := 600 // moves at least
				for m := s.replicas[0].material.Load(); stays > 0 || m.record.Rotation != nil || !sameSigner(m.record.Signer, to); m = s.replicas[0].material.Load() {
					if moves++; moves > 30_000 {
						t.Fatalf("not switched to %d: %+v: it waits %s, at %s", i, m.record.Rotation, s.leader.waits, s.clock)
					}
					if minds > 0 && s.random.IntN(500) == 0 {
						s.settings.Signer = targets[s.random.IntN(len(targets))]
						minds--
					} else if s.random.IntN(500) == 0 {
						s.settings.Signer = to
					}
					s.move()
					s.check()
					stays--
				}
			}
			m := s.replicas[0].material.Load()
			if len(m.roots) != 1 || len(m.servers) != 0 || m.rootKey == nil || len(m.stored.NextRoot) > 0 {
				t.Errorf("it ends with %d roots and %+v", len(m.roots), m.record)
			}
			crashes += s.crashes
			for _, past := range m.record.History {
				if past.GivenUp {
					given++
				}
				if past.From.Signer != nil && sameSigner(past.From.Signer, past.To.Signer) {
					replaced++
				}
			}
		})
	}
	t.Logf("%d crashes, %d rotations given up, %d roots replaced", crashes, given, replaced)
	if crashes < 8 || given == 0 || replaced == 0 {
		t.Errorf("only %d crashes, %d rotations that were given up, %d roots that were replaced", crashes, given, replaced)
	}
}
