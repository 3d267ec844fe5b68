package mesh

import (
	"iter"
	"net/netip"
	"reflect"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// Snapshot is the mesh at one revision. It is immutable: [Snapshot.Apply]
// makes another that shares what did not change. The zero value is not usable;
// see [New].
//
// Trees are keyed by "namespace/…", so that a prefix walk is a sorted bucket.
type Snapshot struct {
	revision   Revision
	config     *Config
	trust      *TrustBundle
	services   tree[*Service]  // namespace/name
	slices     tree[*Slice]    // namespace/service/name
	sliceOf    tree[string]    // the service, by namespace/name
	workloads  tree[*Workload] // namespace/name
	addresses  tree[*Workload] // address/namespace/name of a pod that has not ended
	vips       tree[Name]      // address:port of a service
	profiles   tree[*Profile]  // id
	policies   tree[*Policy]   // namespace/name
	splits     tree[*Split]    // namespace/name
	byRoot     tree[*Split]    // namespace/service/name
	routes     tree[*Route]    // kind/namespace/name
	byParent   tree[*Route]    // namespace/service/kind/namespace/name
	grants     tree[*Grant]    // namespace/name
	gateways   tree[*Gateway]  // namespace/name
	classes    tree[*Class]
	spaces     tree[*Namespace]
	certs      tree[*Certificate] // namespace/name
	byBackend  tree[*Route]       // namespace/service/kind/namespace/name
	bundles    tree[*Bundle]      // namespace/name
	backendTLS tree[*BackendTLS]  // namespace/name
	keys       tree[*Keys]        // KeysName
	nodes      tree[*Node]        // name
	externals  tree[*External]    // namespace/name
	byGateway  tree[*External]    // namespace/gateway/namespace/name
	sniffing   *Sniffing
	standing   tree[Standing] // kind/namespace/name of an object of the API
}

// Standing is which form of an object of the API a snapshot has.
type Standing struct {
	// Generation is the object's; 0 for a MeshConfig that does not exist.
	Generation int64
	// Since is the revision with which the mesh came to have it.
	Since Revision
}

// tree is a persistent sorted map.
type tree[T any] struct{ t *iradix.Tree[T] }

func newTree[T any]() tree[T]              { return tree[T]{iradix.New[T]()} }
func (t tree[T]) get(key string) (T, bool) { return t.t.Get([]byte(key)) }
func (t *tree[T]) put(key string, v T)     { t.t, _, _ = t.t.Insert([]byte(key), v) }
func (t *tree[T]) delete(key string)       { t.t, _, _ = t.t.Delete([]byte(key)) }
func (t tree[T]) prefix(prefix string) []T {
	var out []T
	t.t.Root().WalkPrefix([]byte(prefix), func(_ []byte, v T) bool {
		out = append(out, v)
		return false
	})
	return out
}

// New is an empty mesh with the given configuration.
func New(c *Config) *Snapshot {
	return &Snapshot{
		config: c, trust: &TrustBundle{}, sniffing: (&Snapshot{services: newTree[*Service]()}).sniff(),
		services: newTree[*Service](), slices: newTree[*Slice](), sliceOf: newTree[string](),
		workloads: newTree[*Workload](), addresses: newTree[*Workload](), vips: newTree[Name](),
		profiles: newTree[*Profile](), policies: newTree[*Policy](),
		splits: newTree[*Split](), byRoot: newTree[*Split](), nodes: newTree[*Node](),
		routes: newTree[*Route](), byParent: newTree[*Route](), grants: newTree[*Grant](),
		gateways: newTree[*Gateway](), classes: newTree[*Class](), spaces: newTree[*Namespace](), certs: newTree[*Certificate](),
		byBackend: newTree[*Route](), bundles: newTree[*Bundle](), backendTLS: newTree[*BackendTLS](), externals: newTree[*External](), byGateway: newTree[*External](), keys: newTree[*Keys](), standing: newTree[Standing](),
	}
}

// Revision is higher than that of every snapshot that this one came from.
func (s *Snapshot) Revision() Revision { return s.revision }

// Config is the mesh's configuration; never nil.
func (s *Snapshot) Config() *Config { return s.config }

// Trust is what proxies trust; never nil.
func (s *Snapshot) Trust() *TrustBundle { return s.trust }

// SameStanding reports whether objects of the API and workloads are the same in both
// snapshots, of which one came from the other.
func (s *Snapshot) SameStanding(other *Snapshot) bool {
	return s.standing == other.standing && s.workloads == other.workloads
}

// Workload returns the workload with the name.
func (s *Snapshot) Workload(n Name) (*Workload, bool) { return s.workloads.get(n.String()) }

// VIPs calls f for each address and port of a service that carries traffic
// which proxies route (all but declared opaque ports), sorted by its text.
func (s *Snapshot) VIPs(f func(vip string)) {
	s.vips.t.Root().Walk(func(k []byte, _ Name) bool {
		if s.Routed(string(k)) {
			f(string(k))
		}
		return false
	})
}

// Routed reports whether [Snapshot.VIPs] has the address and port.
func (s *Snapshot) Routed(vip string) bool {
	n, ok := s.vips.get(vip)
	if !ok {
		return false
	}
	svc, ok := s.services.get(n.String())
	if !ok {
		return false
	}
	at, err := netip.ParseAddrPort(vip)
	if err != nil {
		return false
	}
	p, ok := svc.Port(at.Port())
	return ok && !p.Protocol.Opaque()
}

// Apply returns the snapshot after the changes, and the facts that differ. When
// nothing differs it returns the receiver itself.
func (s *Snapshot) Apply(changes ...Change) (*Snapshot, []Fact) {
	next := *s
	f := facts{}
	sniffing := false // it may differ
	for _, c := range changes {
		switch c.kind {
		case KindConfig:
			next.setConfig(f, c)
		case KindTrust:
			next.setTrust(f, c)
		case KindService:
			sniffing = next.setService(f, c) || sniffing
		case KindSlice:
			next.setSlice(f, c)
		case KindWorkload:
			next.setWorkload(f, c)
		case KindPolicy:
			next.setPolicy(f, c)
		case KindSplit:
			next.setSplit(f, c)
		case KindHTTPRoute, KindGRPCRoute, KindTLSRoute, KindTCPRoute:
			next.setRoute(f, c)
		case KindGrant:
			f.addIf(set(&next.grants, c), FactGrants, c.name.Namespace)
		case KindNode:
			f.addIf(set(&next.nodes, c), FactNode, c.name.key())
		case KindGateway:
			next.setGateway(f, c)
		case KindClass:
			f.addIf(set(&next.classes, c), FactClass, c.name.key())
		case KindNamespace:
			f.addIf(set(&next.spaces, c), FactNamespace, c.name.key())
		case KindCertificate:
			f.addIf(set(&next.certs, c), FactCertificate, c.name.key())
		case KindExternal:
			next.setExternal(f, c)
		case KindBackendTLS:
			next.setBackendTLS(f, c)
		case KindBundle:
			f.addIf(set(&next.bundles, c), FactBundle, c.name.key())
		case KindKeys:
			f.addIf(set(&next.keys, c), FactKeys, c.name.key())
		case KindIssuer: // is no entity
		}
	}
	if len(f) == 0 {
		return s, nil
	}
	if sniffing {
		next.updateSniffing(f)
	}
	next.revision++
	out := make([]Fact, 0, len(f))
	for k := range f {
		out = append(out, k)
	}
	return &next, out
}

// same reports whether an entity is what it was; an entity that is there is
// never the same as none.
func same[T any](old T, had bool, c Change) (T, bool, bool) {
	now, has := c.entity.(T)
	return now, has, had == has && (!has || reflect.DeepEqual(old, now))
}

func (s *Snapshot) setConfig(f facts, c Change) {
	now, has := c.entity.(*Config)
	if !has || reflect.DeepEqual(now, s.config) {
		return // there always is a configuration; absence is for observe to fill in
	}
	s.config = now
	s.stand(Ref{Kind: KindConfig}, now.Generation)
	f.add(FactConfig, "")
}

func (s *Snapshot) setTrust(f facts, c Change) {
	now, has := c.entity.(*TrustBundle)
	if !has || reflect.DeepEqual(now, s.trust) {
		return
	}
	s.trust = now
	s.stand(Ref{Kind: KindTrust}, now.Generation)
	s.stand(Ref{Kind: KindIssuer}, now.Generation)
	f.add(FactTrust, "")
}

// setService reports whether Sniffing may differ.
func (s *Snapshot) setService(f facts, c Change) bool {
	key := c.name.String()
	old, had := s.services.get(key)
	now, has, equal := same(old, had, c)
	if equal {
		return false
	}
	f.add(FactService, key)
	f.add(FactServices, c.name.Namespace)
	if had {
		for _, vip := range old.VIPs() {
			if n, ok := s.vips.get(vip); ok && n == c.name {
				s.vips.delete(vip)
			}
			f.add(FactVIP, vip)
		}
	}
	if has {
		s.services.put(key, now)
		for _, vip := range now.VIPs() {
			s.vips.put(vip, c.name)
			f.add(FactVIP, vip)
		}
	} else {
		s.services.delete(key)
	}
	return s.sniffs(old) || s.sniffs(now)
}

// VIPs are the service's address:port pairs.
func (s *Service) VIPs() []string {
	out := make([]string, 0, len(s.Addresses)*len(s.Ports))
	for _, a := range s.Addresses {
		for _, p := range s.Ports {
			out = append(out, netip.AddrPortFrom(a, p.Port).String())
		}
	}
	return out
}

func (s *Snapshot) setSlice(f facts, c Change) {
	key := c.name.String()
	service, had := s.sliceOf.get(key)
	old, _ := s.slices.get(sliceKey(c.name, service))
	now, has, equal := same(old, had, c)
	if equal {
		return
	}
	if had {
		f.add(FactEndpoints, c.name.Namespace+"/"+service)
	}
	if had && (!has || service != now.Service) {
		s.slices.delete(sliceKey(c.name, service))
		s.sliceOf.delete(key)
	}
	if has {
		f.add(FactEndpoints, c.name.Namespace+"/"+now.Service)
		s.slices.put(sliceKey(c.name, now.Service), now)
		if !had || service != now.Service { // endpoints move often, slices hardly ever
			s.sliceOf.put(key, now.Service)
		}
	}
}

// sliceKey sorts slices by their service.
func sliceKey(n Name, service string) string { return n.Namespace + "/" + service + "/" + n.Name }

func (s *Snapshot) setWorkload(f facts, c Change) {
	key := c.name.String()
	old, had := s.workloads.get(key)
	now, has, equal := same(old, had, c)
	if equal {
		return
	}
	f.add(FactWorkload, key)
	if had {
		s.dropAddresses(f, old)
	}
	if has {
		s.workloads.put(key, now)
		if !now.Terminal {
			for _, a := range now.Addresses {
				s.addresses.put(a.String()+"/"+key, now)
				f.add(FactAddress, a.String())
			}
		}
	} else {
		s.workloads.delete(key)
	}
	s.updateProfile(f, old, now)
}

func (s *Snapshot) dropAddresses(f facts, w *Workload) {
	for _, a := range w.Addresses {
		s.addresses.delete(a.String() + "/" + w.Name.String())
		f.add(FactAddress, a.String())
	}
}

func (s *Snapshot) setPolicy(f facts, c Change) {
	key := c.name.String()
	old, had := s.policies.get(key)
	now, has, equal := same(old, had, c)
	if equal {
		return
	}
	f.add(FactPolicy, key)
	if !had {
		old = &Policy{}
	}
	if has {
		s.policies.put(key, now)
		s.stand(Ref{KindPolicy, c.name}, now.Generation)
	} else {
		s.policies.delete(key)
		s.fall(Ref{KindPolicy, c.name})
		now = &Policy{}
	}
	s.policySections(f, c.name.Namespace, old, now)
}

// policySections marks the buckets of the sections in which two forms of a
// policy differ.
func (s *Snapshot) policySections(f facts, namespace string, old, now *Policy) {
	reach := reflect.DeepEqual(old.Selector, now.Selector) && reflect.DeepEqual(old.Targets, now.Targets) &&
		old.Created.Equal(now.Created) && old.Invalid == now.Invalid
	mark := func(k FactKind, a, b any, had, has bool) {
		if (had || has) && !(reach && reflect.DeepEqual(a, b)) {
			f.add(k, namespace)
		}
	}
	mark(FactMTLS, old.MTLS, now.MTLS, old.MTLS != nil, now.MTLS != nil)
	mark(FactTLS, old.TLS, now.TLS, old.TLS != nil, now.TLS != nil)
	mark(FactAuthorization, old.Authorization, now.Authorization, old.Authorization != nil, now.Authorization != nil)
	mark(FactJWT, old.JWT, now.JWT, old.JWT != nil, now.JWT != nil)
	mark(FactRateLimit, old.RateLimit, now.RateLimit, old.RateLimit != nil, now.RateLimit != nil)
	mark(FactTraffic, old.Traffic, now.Traffic, old.Traffic != nil, now.Traffic != nil)
}

func (s *Snapshot) setSplit(f facts, c Change) {
	key := c.name.String()
	old, had := s.splits.get(key)
	now, has, equal := same(old, had, c)
	if equal {
		return
	}
	f.add(FactSplit, key)
	ns := c.name.Namespace
	if had {
		f.add(FactSplits, ns+"/"+old.Service)
		s.byRoot.delete(ns + "/" + old.Service + "/" + c.name.Name)
	}
	if has {
		f.add(FactSplits, ns+"/"+now.Service)
		s.byRoot.put(ns+"/"+now.Service+"/"+c.name.Name, now)
		s.splits.put(key, now)
		s.stand(Ref{KindSplit, c.name}, now.Generation)
	} else {
		s.splits.delete(key)
		s.fall(Ref{KindSplit, c.name})
	}
}

func (s *Snapshot) setRoute(f facts, c Change) {
	ref := Ref{c.kind, c.name}
	key := ref.key()
	old, had := s.routes.get(key)
	now, has, equal := same(old, had, c)
	if equal {
		return
	}
	f.add(FactRoute, key)
	if had {
		for _, p := range old.Parents {
			f.add(FactRoutes, p.key())
			s.byParent.delete(p.key() + "/" + key)
		}
		for _, n := range old.services() {
			f.add(FactBackend, n.String())
			s.byBackend.delete(n.String() + "/" + key)
		}
	}
	if has {
		for _, p := range now.Parents {
			f.add(FactRoutes, p.key())
			s.byParent.put(p.key()+"/"+key, now)
		}
		for _, n := range now.services() {
			f.add(FactBackend, n.String())
			s.byBackend.put(n.String()+"/"+key, now)
		}
		s.routes.put(key, now)
		s.stand(ref, now.Generation)
	} else {
		s.routes.delete(key)
		s.fall(ref)
	}
}

// set is for entities that are in no index. It reports whether there is another than
// before.
func set[T any](t *tree[T], c Change) bool {
	key := c.name.key()
	old, had := t.get(key)
	now, has, equal := same(old, had, c)
	switch {
	case equal:
		return false
	case has:
		t.put(key, now)
	default:
		t.delete(key)
	}
	return true
}

// key is the name alone where there is no namespace.
func (n Name) key() string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.String()
}

func (s *Snapshot) setGateway(f facts, c Change) {
	if !set(&s.gateways, c) {
		return
	}
	f.add(FactGateway, c.name.key())
	if now, has := s.gateways.get(c.name.key()); has {
		s.stand(Ref{KindGateway, c.name}, now.Generation)
	} else {
		s.fall(Ref{KindGateway, c.name})
	}
}

// stand notes that an object is what it is from the coming revision on.
func (s *Snapshot) stand(r Ref, generation int64) {
	s.standing.put(r.key(), Standing{Generation: generation, Since: s.revision + 1})
}

func (s *Snapshot) fall(r Ref) { s.standing.delete(r.key()) }

func (r Ref) key() string { return string(rune('0'+r.Kind)) + "/" + r.Name.String() }

// Objects are all objects of the API, sorted.
func (s *Snapshot) Objects() iter.Seq2[Ref, Standing] {
	return func(yield func(Ref, Standing) bool) {
		s.standing.t.Root().Walk(func(k []byte, v Standing) bool {
			_, rest, _ := strings.Cut(string(k), "/")
			namespace, name, _ := strings.Cut(rest, "/")
			return !yield(Ref{Kind(k[0] - '0'), Name{namespace, name}}, v)
		})
	}
}

// Standing says which form of the object the snapshot has; false when it has
// none.
func (s *Snapshot) Standing(r Ref) (Standing, bool) { return s.standing.get(r.key()) }

// Services are all services, sorted by namespace and name.
func (s *Snapshot) Services() iter.Seq[*Service] { return s.services.all() }

// Workloads are all workloads, sorted by namespace and name.
func (s *Snapshot) Workloads() iter.Seq[*Workload] { return s.workloads.all() }

// Policies are all policies, sorted by namespace and name.
func (s *Snapshot) Policies() iter.Seq[*Policy] { return s.policies.all() }

// Splits are all splits, sorted by namespace and name.
func (s *Snapshot) Splits() iter.Seq[*Split] { return s.splits.all() }

// Gateways are all gateways, sorted by namespace and name.
func (s *Snapshot) Gateways() iter.Seq[*Gateway] { return s.gateways.all() }

// Routes are all routes, sorted by kind, namespace and name.
func (s *Snapshot) Routes() iter.Seq[*Route] { return s.routes.all() }

func (t tree[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		t.t.Root().Walk(func(_ []byte, v T) bool { return !yield(v) })
	}
}
