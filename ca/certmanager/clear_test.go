package certmanager

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/tulle-mesh/tulle/ca"
	"github.com/tulle-mesh/tulle/ca/certmanager/fake"
)

func (h *house) cleared(t *testing.T) {
	defer h.controller.Behave(fake.Sign)
	h.controller.Behave(fake.Hold)
	now := &clock{}
	dead := h.remote(t, func(o *Options) { o.Replica = "tulled-dead" })
	_, err := dead.Sign(soon(t), order(t, by("company", ca.SignsLeaves), "of-a-dead-replica"))
	refuses(t, err, ca.ReasonPending, "")
	before := h.remote(t)
	_, err = before.Sign(soon(t), order(t, by("company", ca.SignsLeaves), "of-a-process-before"))
	refuses(t, err, ca.ReasonPending, "")
	r := h.remote(t, func(o *Options) {
		o.Now, o.Alive = now.now, func(pod string) bool { return pod == "tulled-1" }
	})
	_, err = r.Sign(soon(t), order(t, by("company", ca.SignsLeaves), "web"))
	refuses(t, err, ca.ReasonPending, "")
	of := func() (all []string) {
		for _, cr := range h.requests(t) {
			all = append(all, cr.Annotations[AnnotationIdentity])
		}
		return all
	}
	if got := fmt.Sprint(of()); strings.Contains(got, "of-a-process-before") || !strings.Contains(got, "of-a-dead-replica") || !strings.Contains(got, "web") {
		t.Errorf("requests are %s", got)
	}
	_, err = r.Look(t.Context(), nil)
	must(t, err)
	if n := len(of()); n != 2 {
		t.Errorf("of a replica that has just begun, the request is deleted: %v", of())
	}
	now.ahead = orphaned + time.Second
	_, err = r.Look(t.Context(), nil)
	must(t, err)
	if got := of(); len(got) != 1 || !strings.HasSuffix(got[0], "web") {
		t.Errorf("requests are %v", got)
	}
	now.ahead = abandoned + time.Second // the identity is no longer in use
	r.prune(t.Context())
	if got := of(); len(got) != 0 {
		t.Errorf("requests are %v", got)
	}
	// One that was refused is kept for people to read, and not for ever.
	h.controller.Behave(fake.Deny)
	_, err = r.Sign(t.Context(), order(t, by("company", ca.SignsLeaves), "denied"))
	refuses(t, err, ca.ReasonDenied, "")
	now.ahead += kept - time.Minute - abandoned
	_, err = r.Look(t.Context(), nil)
	must(t, err)
	if n := len(of()); n != 1 {
		t.Error("what was refused is deleted at once")
	}
	now.ahead += kept
	_, err = r.Look(t.Context(), nil)
	must(t, err)
	if n := len(of()); n != 0 {
		t.Error("what was refused stays for ever")
	}
}

func (h *house) withdrawn(t *testing.T) {
	defer h.controller.Behave(fake.Sign)
	h.controller.Behave(fake.Hold)
	r := h.remote(t)
	go func() { _ = r.Run(t.Context()) }()
	for _, o := range []ca.Order{order(t, by("company", ca.SignsLeaves), "between-two-turns"), order(t, by("company", ca.SignsIntermediate), "")} {
		_, err := r.Sign(soon(t), o)
		refuses(t, err, ca.ReasonPending, "")
	}
	ctx, another := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := r.Sign(ctx, order(t, by("company", ca.SignsLeaves), "waits"))
		done <- err
	}()
	until := func(n int) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); len(h.requests(t)) != n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d requests are left, not %d", len(h.requests(t)), n)
			}
		}
	}
	until(3)
	another()
	r.Withdraw(by("company", ca.SignsLeaves))
	refuses(t, <-done, ca.ReasonPending, "")
	until(1)
	r.Withdraw(by("company", ca.SignsIntermediate))
	until(0)
}

func TestWhatWasRefusedIsAskedForAgainAfterTheClockWasSetBack(t *testing.T) {
	now := &clock{ahead: 72 * time.Hour}
	r, err := New(Options{Log: logr.Discard(), Now: now.now})
	must(t, err)
	s := subject{by("company", ca.SignsLeaves), "web"}
	r.refused(t.Context(), s, &ca.NotSigned{Reason: ca.ReasonDenied, Message: "no"}, "")
	refuses(t, r.paused(s), ca.ReasonDenied, "no")
	now.ahead = 0
	must(t, r.paused(s))
}
