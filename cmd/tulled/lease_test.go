package main

import (
	"context"
	"errors"
	"testing"

	"github.com/go-logr/logr/testr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// answering is a lock whose API server answers with the error.
type answering struct {
	resourcelock.Interface
	holder string
	err    error
}

func (l *answering) Identity() string { return "us" }

func (l *answering) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	return &resourcelock.LeaderElectionRecord{HolderIdentity: l.holder}, nil, l.err
}

func (l *answering) Update(context.Context, resourcelock.LeaderElectionRecord) error { return l.err }

func TestLeaderStaysOnlyWhileNobodyAnswers(t *testing.T) {
	leases := schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}
	refused := errors.New("connection refused")
	ours, released := resourcelock.LeaderElectionRecord{HolderIdentity: "us"}, resourcelock.LeaderElectionRecord{}
	for name, c := range map[string]struct {
		leads  bool
		record resourcelock.LeaderElectionRecord
		err    error
		stays  bool
	}{
		"nobody is there":                 {true, ours, refused, true},
		"etcd is away":                    {true, ours, apierrors.NewInternalError(errors.New("etcd: no leader")), true},
		"too busy":                        {true, ours, apierrors.NewTooManyRequests("later", 1), true},
		"another has it":                  {true, ours, apierrors.NewConflict(leases, leaseName, errors.New("changed")), false},
		"it is gone":                      {true, ours, apierrors.NewNotFound(leases, leaseName), false},
		"no right to it any more":         {true, ours, apierrors.NewForbidden(leases, leaseName, nil), false},
		"it was never ours":               {false, ours, refused, false},
		"giving it up does not come true": {true, released, refused, false},
	} {
		t.Run(name, func(t *testing.T) {
			api := &answering{}
			lease := &patientLease{Interface: api, log: testr.New(t)}
			if c.leads {
				if err := lease.Update(t.Context(), ours); err != nil {
					t.Fatal(err)
				}
			}
			api.err = c.err
			if err := lease.Update(t.Context(), c.record); (err == nil) != c.stays {
				t.Errorf("renewing: %v", err)
			}
		})
	}

	t.Run("another was seen to have it", func(t *testing.T) {
		api := &answering{holder: "them"}
		lease := &patientLease{Interface: api, log: testr.New(t)}
		if err := lease.Update(t.Context(), ours); err != nil {
			t.Fatal(err)
		}
		if _, _, err := lease.Get(t.Context()); err != nil {
			t.Fatal(err)
		}
		api.err = refused
		if lease.Update(t.Context(), ours) == nil {
			t.Error("it leads beside the other")
		}
	})

	// A renewal came true though its answer was late, and then nobody answers.
	t.Run("a late answer", func(t *testing.T) {
		api := &answering{holder: "us"}
		lease := &patientLease{Interface: api, log: testr.New(t)}
		if err := lease.Update(t.Context(), ours); err != nil {
			t.Fatal(err)
		}
		api.err = apierrors.NewConflict(leases, leaseName, errors.New("changed"))
		if lease.Update(t.Context(), ours) == nil {
			t.Error("what another may have is renewed")
		}
		api.err = refused
		record, _, err := lease.Get(t.Context())
		if err != nil || record.HolderIdentity != "us" {
			t.Fatalf("the lease is %+v, %v", record, err)
		}
		if err := lease.Update(t.Context(), ours); err != nil {
			t.Errorf("it ends: %v", err)
		}
		// Whose it is in the end, the API server tells.
		api.err, api.holder = nil, "them"
		if _, _, err := lease.Get(t.Context()); err != nil {
			t.Fatal(err)
		}
		api.err = refused
		if _, _, err := lease.Get(t.Context()); err == nil {
			t.Error("it believes that it leads beside the other")
		}
	})
}

// A time-out of all requests would end the watches of all caches, time and again.
func TestTheTimeOutOfTheLeaseIsOfNothingElse(t *testing.T) {
	config := &rest.Config{Host: "https://10.0.0.1", UserAgent: "tulled"}
	if _, err := newLease(config, "tulle-system", "tulled-1", testr.New(t)); err != nil {
		t.Fatal(err)
	}
	if config.Timeout != 0 || config.UserAgent != "tulled" {
		t.Errorf("other clients have a time-out of %v, and call themselves %q", config.Timeout, config.UserAgent)
	}
}
