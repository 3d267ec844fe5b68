package jwks

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	// MaxURIs is how many URIs are fetched; of more, those of the youngest policies are
	// not.
	MaxURIs = 64
	// maxStored bounds all that is kept: a ConfigMap has 1 MiB at most.
	maxStored = 900 << 10

	defaultInterval = 10 * time.Minute
	minInterval     = time.Minute
	// maxStretch is how many intervals a max-age may make of one.
	maxStretch = 6
	// firstRetry is the pause after a failure, which doubles until it is the interval.
	firstRetry = 5 * time.Second
	// pause is between two looks at what is wanted, which changes in bursts.
	pause = time.Second
	// atOnce is how many URIs are asked at a time: a slow one delays few others.
	atOnce = 16
)

// Options say what is fetched for whom.
type Options struct {
	// Reader has MeshPolicies and the MeshConfig, Keys the ConfigMap, in caches.
	Reader, Keys client.Reader
	Writer       client.Writer
	// Namespace is Tulle's own, where the ConfigMap is.
	Namespace  string
	Log        logr.Logger
	Registerer prometheus.Registerer
	// TLS has the roots that servers are verified by; nil: the system's.
	TLS *tls.Config
}

// Fetcher keeps the ConfigMap as it ought to be.
type Fetcher struct {
	Options
	changed chan struct{}
	fetches *prometheus.CounterVec

	// These are Start's.
	last settings
	due  map[string]*schedule // by URI
}

type schedule struct {
	next     time.Time
	failures int
}

// New makes a fetcher, for a manager to run on its leader.
func New(o Options) *Fetcher {
	f := &Fetcher{
		Options: o, changed: make(chan struct{}, 1), due: map[string]*schedule{},
		fetches: promauto.With(o.Registerer).NewCounterVec(prometheus.CounterOpts{
			Name: "tulle_jwks_fetches_total", Help: "How often the keys of an issuer were fetched, by outcome: ok or failed.",
		}, []string{"outcome"}),
	}
	for _, outcome := range []string{"ok", "failed"} {
		f.fetches.WithLabelValues(outcome) // so that the first failure is an increase
	}
	return f
}

// SetupWithManager has the manager run a fetcher on its leader.
//
// +kubebuilder:rbac:groups="",namespace=tulle-system,resources=configmaps,resourceNames=tulle-jwks,verbs=patch
func SetupWithManager(mgr manager.Manager, o Options) error {
	o.Reader, o.Writer = mgr.GetClient(), mgr.GetClient()
	f := New(o)
	for _, obj := range []client.Object{&v1alpha1.MeshPolicy{}, &v1alpha1.MeshConfig{}} {
		informer, err := mgr.GetCache().GetInformer(context.Background(), obj)
		if err != nil {
			return fmt.Errorf("set up the fetching of keys: %w", err)
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { f.Poke() }, UpdateFunc: func(any, any) { f.Poke() }, DeleteFunc: func(any) { f.Poke() },
		}); err != nil {
			return fmt.Errorf("set up the fetching of keys: %w", err)
		}
	}
	return mgr.Add(f)
}

// Poke has the fetcher look at what is wanted.
func (f *Fetcher) Poke() {
	select {
	case f.changed <- struct{}{}:
	default: // a look that is to come covers this one
	}
}

// Start fetches until the context ends.
func (f *Fetcher) Start(ctx context.Context) error {
	for {
		wait := f.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.changed:
		case <-time.After(wait):
		}
	}
}

// round fetches what is due, writes what has changed, and says when the next is due.
func (f *Fetcher) round(ctx context.Context) time.Duration {
	wait, err := f.tryRound(ctx)
	if err != nil && ctx.Err() == nil {
		f.Log.Error(err, "keeping the keys of issuers")
		return firstRetry
	}
	return wait
}

func (f *Fetcher) tryRound(ctx context.Context) (time.Duration, error) {
	uris, now, err := f.wanted(ctx)
	if err != nil {
		return 0, err
	}
	if !reflect.DeepEqual(now, f.last) { // what was refused may be allowed, and the other way round
		f.last, f.due = now, map[string]*schedule{}
	}
	stored, exists, err := f.stored(ctx)
	if err != nil {
		return 0, err
	}
	patch := map[string]any{}
	size := 0
	for key, text := range stored {
		size += len(text)
		if strings.HasPrefix(key, mesh.FetchedPrefix) && !slices.ContainsFunc(uris, func(u string) bool { return mesh.FetchedKey(u) == key }) {
			patch[key] = nil
			size -= len(text)
		}
	}
	for uri := range f.due {
		if !slices.Contains(uris, uri) {
			delete(f.due, uri)
		}
	}
	for uri, set := range f.fetchDue(ctx, uris, stored) {
		key := mesh.FetchedKey(uri)
		text, err := mesh.WriteFetched(uri, set)
		if err != nil {
			return 0, err
		}
		if grown := size + len(text) - len(stored[key]); grown > maxStored && len(text) > len(stored[key]) {
			f.Log.Info("there is no room for the keys of an issuer", "uri", withoutQuery(uri))
			continue
		}
		if text != stored[key] {
			patch[key] = text
			size += len(text) - len(stored[key])
		}
	}
	if err := f.write(ctx, patch, exists); err != nil {
		f.due = map[string]*schedule{} // what was fetched is not kept
		return 0, err
	}
	wait := time.Hour
	for _, s := range f.due {
		wait = min(wait, time.Until(s.next))
	}
	return max(wait, 0), nil
}

// wanted are the URIs that policies name, those of the oldest first, and the settings.
func (f *Fetcher) wanted(ctx context.Context) ([]string, settings, error) {
	out := settings{interval: defaultInterval}
	var policies v1alpha1.MeshPolicyList
	if err := f.Reader.List(ctx, &policies); err != nil {
		return nil, out, fmt.Errorf("list MeshPolicies: %w", err)
	}
	slices.SortStableFunc(policies.Items, func(a, b v1alpha1.MeshPolicy) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	var uris []string
	for _, p := range policies.Items {
		if p.Spec.JWT == nil {
			continue
		}
		for _, i := range p.Spec.JWT.Issuers {
			if u := i.JWKS.URI; u != "" && !slices.Contains(uris, u) && len(uris) < MaxURIs {
				uris = append(uris, u)
			}
		}
	}
	var config v1alpha1.MeshConfig
	if err := f.Reader.Get(ctx, client.ObjectKey{Name: v1alpha1.MeshConfigName}, &config); client.IgnoreNotFound(err) != nil {
		return nil, out, fmt.Errorf("get the MeshConfig: %w", err)
	}
	said := config.Spec.JWKS
	if said.RefreshInterval != nil {
		out.interval = max(said.RefreshInterval.Duration, minInterval)
	}
	for _, r := range said.AllowedRanges {
		if p, err := netip.ParsePrefix(r); err == nil {
			out.allowed = append(out.allowed, p)
		}
	}
	out.allowHTTP = said.AllowHTTP
	return uris, out, nil
}

func (f *Fetcher) stored(ctx context.Context) (data map[string]string, exists bool, err error) {
	var c corev1.ConfigMap
	err = f.Keys.Get(ctx, f.name(), &c)
	if client.IgnoreNotFound(err) != nil {
		return nil, false, fmt.Errorf("get the ConfigMap %s: %w", f.name(), err)
	}
	return c.Data, err == nil, nil
}

func (f *Fetcher) name() types.NamespacedName {
	return types.NamespacedName{Namespace: f.Namespace, Name: mesh.JWKSName}
}

// fetchDue asks those whose time has come. Of one that fails the keys from before stay.
func (f *Fetcher) fetchDue(ctx context.Context, uris []string, stored map[string]string) map[string]*mesh.KeySet {
	var (
		lock  sync.Mutex
		group sync.WaitGroup
		out   = map[string]*mesh.KeySet{}
		slots = make(chan struct{}, atOnce)
	)
	for _, uri := range uris {
		s := f.due[uri]
		if s == nil {
			s = &schedule{}
			f.due[uri] = s
		}
		if time.Now().Before(s.next) {
			continue
		}
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			set, maxAge, err := f.last.fetch(ctx, uri, f.TLS)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				set = f.failed(uri, s, err, stored[mesh.FetchedKey(uri)])
			} else {
				f.fetches.WithLabelValues("ok").Inc()
				s.failures, s.next = 0, time.Now().Add(jittered(f.last.pause(maxAge)))
			}
			lock.Lock()
			defer lock.Unlock()
			out[uri] = set
		})
	}
	group.Wait()
	return out
}

func (f *Fetcher) failed(uri string, s *schedule, why error, stored string) *mesh.KeySet {
	f.fetches.WithLabelValues("failed").Inc()
	if s.failures == 0 {
		f.Log.Info("the keys of an issuer cannot be fetched", "uri", withoutQuery(uri), "why", why.Error())
	}
	s.next = time.Now().Add(jittered(min(firstRetry<<min(s.failures, 10), f.last.interval)))
	s.failures++
	_, set, err := mesh.ReadFetched(stored)
	if err != nil || set.JWKS == "" {
		return &mesh.KeySet{Problem: fmt.Sprintf("they cannot be fetched: %s", why)}
	}
	set.Problem = fmt.Sprintf("they cannot be fetched again, and those from before hold: %s", why)
	return set
}

// withoutQuery is the URI as it may be logged: some have a secret in their query.
func withoutQuery(uri string) string {
	uri, _, _ = strings.Cut(uri, "?")
	return uri
}

// pause is between two fetches of keys that hold for maxAge as their server says.
func (s *settings) pause(maxAge time.Duration) time.Duration {
	if maxAge == 0 {
		return s.interval
	}
	return min(max(maxAge, minInterval), maxStretch*s.interval)
}

// jittered is up to a tenth less, so that not all are fetched at the same time.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/10+1) }

// write changes entries of the ConfigMap, each by itself: others are somebody else's.
func (f *Fetcher) write(ctx context.Context, data map[string]any, exists bool) error {
	if len(data) == 0 {
		return nil
	}
	if !exists {
		c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
			Namespace: f.Namespace, Name: mesh.JWKSName,
			Labels: map[string]string{"app.kubernetes.io/part-of": "tulle", "app.kubernetes.io/managed-by": "tulle"},
		}, Data: map[string]string{}}
		for key, text := range data {
			if text, ok := text.(string); ok {
				c.Data[key] = text
			}
		}
		if err := f.Writer.Create(ctx, c); !apierrors.IsAlreadyExists(err) {
			return wrap(err, "create")
		}
	}
	b, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return wrap(err, "write")
	}
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: f.Namespace, Name: mesh.JWKSName}}
	err = f.Writer.Patch(ctx, c, client.RawPatch(types.MergePatchType, b))
	if apierrors.IsNotFound(err) {
		return errors.New("the ConfigMap of keys was deleted as it was written to")
	}
	return wrap(err, "patch")
}

func wrap(err error, doing string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s the ConfigMap %s: %w", doing, mesh.JWKSName, err)
}
