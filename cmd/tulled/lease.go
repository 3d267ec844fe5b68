package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseName is that of the Lease in the control plane's namespace.
const leaseName = "tulled"

// patientLease keeps a leader in office while the API server is away. A leader
// that cannot renew its lease is made to end its process, and would take the
// streams of its proxies with it at the very time when nothing can be started
// anew.
//
// Nothing is lost by staying: all that a leader does is to write to that API
// server. Another replica that does reach it takes over as ever, and when this
// one reaches it again, it finds that out by the first renewal, and ends then.
// Until that, two may write the same things, under the API server's own checks.
type patientLease struct {
	resourcelock.Interface
	log  logr.Logger
	held atomic.Bool // the last that was heard of the lease is that it is ours
	away atomic.Bool
	last atomic.Pointer[resourcelock.LeaderElectionRecord] // as it was when it was ours
}

// leaseTimeout bounds one request, so that one that hangs does not use up the
// ten seconds that there are to renew a lease.
const leaseTimeout = 5 * time.Second

// newLease is the lock of the namespace's control plane, held under a name that
// no other process has.
func newLease(config *rest.Config, namespace, pod string, log logr.Logger) (*patientLease, error) {
	config = rest.AddUserAgent(rest.CopyConfig(config), "leader-election")
	config.Timeout = leaseTimeout // of this copy alone: it ends watches, too
	client, err := coordination.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for leader election: %w", err)
	}
	return &patientLease{
		Interface: &resourcelock.LeaseLock{
			LeaseMeta:  meta.ObjectMeta{Namespace: namespace, Name: leaseName},
			Client:     client,
			LockConfig: resourcelock.ResourceLockConfig{Identity: pod + "_" + string(uuid.NewUUID())},
		},
		log: log,
	}, nil
}

// Get reads the lease, and sees whose it is. While the API server does not answer it
// is as it was last heard of: a renewal that was carried out, but answered too late,
// has the next one refused, and a leader that then has no answer in ten seconds would
// end. That is what becomes of one whose process is busy with many proxies at once.
func (l *patientLease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	switch last := l.last.Load(); {
	case err == nil:
		l.heard(*record)
	case l.held.Load() && last != nil && unanswered(err):
		copied := *last
		return &copied, nil, nil
	}
	return record, raw, err
}

// heard notes whose the lease is.
func (l *patientLease) heard(record resourcelock.LeaderElectionRecord) {
	ours := record.HolderIdentity == l.Identity()
	if ours {
		l.last.Store(&record)
	}
	l.held.Store(ours)
}

// Create takes the lease for the first time.
func (l *patientLease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, record)
	if err != nil {
		l.held.Store(false)
		return err
	}
	l.heard(record)
	return nil
}

// Update takes, renews or gives up the lease. To renew it succeeds too while
// the API server does not answer.
func (l *patientLease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, record)
	ours := record.HolderIdentity == l.Identity()
	switch {
	case err == nil:
		l.heard(record)
		if l.away.Swap(false) {
			l.log.Info("the leader's lease is renewed again")
		}
	case ours && l.held.Load() && unanswered(err):
		if !l.away.Swap(true) {
			l.log.Info("the API server is away: the leader stays, and cannot write", "error", err.Error())
		}
		return nil
	case apierrors.IsConflict(err):
		// By another, or by a renewal of our own whose answer was late: Get tells.
	default:
		l.held.Store(false)
	}
	return err
}

// unanswered reports whether nobody has decided about a request: it did not
// arrive, or whoever took it is out of order.
func unanswered(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true
	}
	code := status.Status().Code
	return code >= http.StatusInternalServerError || code == http.StatusTooManyRequests
}
