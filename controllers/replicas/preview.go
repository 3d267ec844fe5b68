package replicas

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/preview"
)

// PreviewPath is where a replica says what objects would change at its proxies.
const PreviewPath = "/preview"

const (
	// previewWait is how long a replica may take.
	previewWait = 8 * time.Second
	// maxDryRuns is how many previews for dry runs are asked for at a time: anybody
	// may ask who may write a MeshPolicy somewhere, and each has all replicas build.
	maxDryRuns = 2
	// MaxObjects bounds the objects of a preview, in bytes: as many as the API
	// server takes in one request.
	MaxObjects = 3 << 20
)

// Preview asks all replicas what objects would change.
type Preview struct {
	Builder interface{ Built() *mesh.Snapshot }
	Self    string // this replica's pod
	Service mesh.Name
	Peers   Peers
	// Local is what this replica says itself.
	Local func(context.Context, preview.Question) (*preview.Part, error)

	dryRuns atomic.Int32
}

// DryRun is Ask for a dry run. It fails at once where others take their time.
func (p *Preview) DryRun(ctx context.Context, q preview.Question) (*preview.Answer, error) {
	defer p.dryRuns.Add(-1)
	if p.dryRuns.Add(1) > maxDryRuns {
		return nil, errors.New("too many are asked for at a time; try again")
	}
	return p.Ask(ctx, q)
}

// Handler answers other replicas.
func (p *Preview) Handler(allow func(ctx context.Context, token string) error, log logr.Logger) http.Handler {
	return forPeers(allow, log, MaxObjects, func(ctx context.Context, q preview.Question) (any, error) { return p.Local(ctx, q) })
}

// Ask asks all replicas. It fails where this one has no answer; what others do
// not answer is missing.
func (p *Preview) Ask(ctx context.Context, q preview.Question) (*preview.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, previewWait)
	defer cancel()
	snapshot := p.Builder.Built()
	var (
		lock    sync.Mutex
		wg      sync.WaitGroup
		parts   []preview.Part
		missing map[string]string
	)
	for name, r := range behind(snapshot, p.Service, p.Self) {
		if name == p.Self {
			continue
		}
		wg.Go(func() {
			part := preview.Part{}
			_, err := p.Peers.ask(ctx, r.address, PreviewPath, q, &part)
			lock.Lock()
			defer lock.Unlock()
			switch {
			case err == nil:
				parts = append(parts, part)
			case r.ready:
				if missing == nil {
					missing = map[string]string{}
				}
				missing[name] = err.Error()
			}
		})
	}
	own, err := p.Local(ctx, q)
	wg.Wait()
	if err != nil {
		return nil, err
	}
	answer := preview.Merge(append(parts, *own), missing, runningNames(snapshot))
	return &answer, nil
}

func runningNames(s *mesh.Snapshot) map[string]struct{} {
	out := map[string]struct{}{}
	for w := range running(s) {
		out[w.Name.String()] = struct{}{}
	}
	return out
}
