package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// View reads a snapshot and records every fact that was read, the absent ones
// too, and which objects of the API had a part in it. It is for one build of
// one target, by one goroutine.
type View struct {
	s     *Snapshot
	reads map[Fact]struct{}
	uses  map[Ref]struct{}
}

// NewView reads the snapshot.
func NewView(s *Snapshot) *View {
	return &View{s: s, reads: map[Fact]struct{}{}, uses: map[Ref]struct{}{}}
}

// Reads are the facts that were read, in no order.
func (v *View) Reads() []Fact {
	out := make([]Fact, 0, len(v.reads))
	for f := range v.reads {
		out = append(out, f)
	}
	return out
}

// Uses are the objects of the API that had a part in what was built, sorted.
// They are fewer than those that were read: a policy that was looked at and
// selects others has none.
func (v *View) Uses() []Ref {
	return slices.SortedFunc(maps.Keys(v.uses), Ref.Compare)
}

func (v *View) use(k Kind, n Name) { v.uses[Ref{k, n}] = struct{}{} }

func (v *View) read(k FactKind, name string) { v.reads[Fact{k, name}] = struct{}{} }

// Config is the mesh's configuration.
func (v *View) Config() *Config {
	v.read(FactConfig, "")
	v.use(KindConfig, Name{})
	return v.s.config
}

// Trust is the bundle of root certificates.
func (v *View) Trust() *TrustBundle {
	v.read(FactTrust, "")
	v.use(KindTrust, Name{})
	return v.s.trust
}

// Sniffing says on which ports first bytes are looked at.
func (v *View) Sniffing() *Sniffing {
	v.read(FactSniffing, "")
	return v.s.sniffing
}

// Service returns the service with the name.
func (v *View) Service(n Name) (*Service, bool) {
	v.read(FactService, n.String())
	return v.s.services.get(n.String())
}

// Services are the namespace's services, sorted by name.
func (v *View) Services(namespace string) []*Service {
	v.read(FactServices, namespace)
	return v.s.services.prefix(namespace + "/")
}

// ServiceAt returns the service that has the address and port as its own.
func (v *View) ServiceAt(vip netip.AddrPort) (*Service, ServicePort, bool) {
	v.read(FactVIP, vip.String())
	n, ok := v.s.vips.get(vip.String())
	if !ok {
		return nil, ServicePort{}, false
	}
	svc, ok := v.Service(n)
	if !ok {
		return nil, ServicePort{}, false
	}
	p, ok := svc.Port(vip.Port())
	return svc, p, ok
}

// Slices are the parts of a service's endpoints, sorted by name.
func (v *View) Slices(service Name) []*Slice {
	v.read(FactEndpoints, service.String())
	return v.s.slices.prefix(service.String() + "/")
}

// Workload returns the workload with the name.
func (v *View) Workload(n Name) (*Workload, bool) {
	v.read(FactWorkload, n.String())
	return v.s.workloads.get(n.String())
}

// WorkloadAt returns the workload that has the address. An address is given to
// the next pod when the one before has ended, which may be known only later: of
// several workloads it is one that is not ending.
func (v *View) WorkloadAt(a netip.Addr) (*Workload, bool) {
	v.read(FactAddress, a.String())
	var found *Workload
	for _, w := range v.s.addresses.prefix(a.String() + "/") {
		if found == nil || found.Terminating && !w.Terminating {
			found = w
		}
	}
	return found, found != nil
}

// Node returns the node with the name, if it says where it is.
func (v *View) Node(name string) (*Node, bool) {
	v.read(FactNode, name)
	return v.s.nodes.get(name)
}

// Profile returns the profile with the id.
func (v *View) Profile(id string) (*Profile, bool) {
	v.read(FactProfile, id)
	return v.s.profiles.get(id)
}

// Policy returns the policy with the name.
func (v *View) Policy(n Name) (*Policy, bool) {
	v.read(FactPolicy, n.String())
	return v.s.policies.get(n.String())
}

// Split returns the split with the name.
func (v *View) Split(n Name) (*Split, bool) {
	v.read(FactSplit, n.String())
	return v.s.splits.get(n.String())
}

// Section is a section of a policy.
type Section uint8

// The sections.
const (
	SectionMTLS Section = iota
	SectionTLS
	SectionAuthorization
	SectionJWT
	SectionRateLimit
	SectionTraffic
)

var sectionFacts = [...]FactKind{FactMTLS, FactTLS, FactAuthorization, FactJWT, FactRateLimit, FactTraffic}

func (s Section) in(p *Policy) bool {
	switch s {
	case SectionMTLS:
		return p.MTLS != nil
	case SectionTLS:
		return p.TLS != nil
	case SectionAuthorization:
		return p.Authorization != nil
	case SectionJWT:
		return p.JWT != nil
	case SectionRateLimit:
		return p.RateLimit != nil
	default:
		return p.Traffic != nil
	}
}

// BackendTLSPolicy returns the policy with the name.
func (v *View) BackendTLSPolicy(n Name) (*BackendTLS, bool) {
	v.read(FactBackendTLS, n.Namespace)
	return v.s.backendTLS.get(n.key())
}

// Policies are the namespace's policies that have the section and that apply,
// the oldest first and then by name: the order in which equals win.
func (v *View) Policies(namespace string, section Section, applies func(*Policy) bool) []*Policy {
	v.read(sectionFacts[section], namespace)
	return oldestFirst(v, v.s.policies, KindPolicy, namespace, func(p *Policy) bool { return section.in(p) && applies(p) })
}

// oldestFirst are the namespace's objects that apply, the oldest first and then by
// name. They are used.
func oldestFirst[T interface{ meta() Meta }](v *View, all tree[T], kind Kind, namespace string, applies func(T) bool) []T {
	var out []T
	for _, o := range all.prefix(namespace + "/") {
		if applies(o) {
			v.use(kind, o.meta().Name)
			out = append(out, o)
		}
	}
	slices.SortStableFunc(out, func(a, b T) int {
		return cmp.Or(a.meta().Created.Compare(b.meta().Created), cmp.Compare(a.meta().Name.Name, b.meta().Name.Name))
	})
	return out
}

// Splits are the splits of a service, the oldest first and then by name.
func (v *View) Splits(service Name) []*Split {
	v.read(FactSplits, service.String())
	out := v.s.byRoot.prefix(service.String() + "/")
	for _, s := range out {
		v.use(KindSplit, s.Meta.Name)
	}
	slices.SortStableFunc(out, func(a, b *Split) int { return a.Created.Compare(b.Created) })
	return out
}

// Route returns the route that the ref names.
func (v *View) Route(r Ref) (*Route, bool) {
	v.read(FactRoute, r.key())
	return v.s.routes.get(r.key())
}

// Routes are the routes that have the Service or Gateway as a parent and that apply,
// the oldest first and then by namespace and name: the order in which equals win.
func (v *View) Routes(of Kind, parent Name, applies func(*Route) bool) []*Route {
	key := parentKey(of, parent)
	v.read(FactRoutes, key)
	var out []*Route
	for _, r := range v.s.byParent.prefix(key + "/") {
		if applies(r) {
			v.use(r.Of, r.Meta.Name)
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b *Route) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Meta.Namespace, b.Meta.Namespace), cmp.Compare(a.Meta.Name.Name, b.Meta.Name.Name), a.Ref().Compare(b.Ref()))
	})
	return out
}

// Granted reports whether a ReferenceGrant lets objects refer to the one with the
// name.
func (v *View) Granted(from GrantFrom, to GrantTo, namespace string) bool {
	v.read(FactGrants, namespace)
	for _, g := range v.s.grants.prefix(namespace + "/") {
		named := slices.ContainsFunc(g.To, func(t GrantTo) bool {
			return t.Group == to.Group && t.Kind == to.Kind && (t.Name == "" || t.Name == to.Name)
		})
		if named && slices.Contains(g.From, from) {
			return true
		}
	}
	return false
}

// Gateway returns the gateway with the name.
func (v *View) Gateway(n Name) (*Gateway, bool) {
	v.read(FactGateway, n.key())
	g, ok := v.s.gateways.get(n.key())
	if ok {
		v.use(KindGateway, n)
	}
	return g, ok
}

// Class reports whether the class of gateways is Tulle's.
func (v *View) Class(name string) bool {
	v.read(FactClass, name)
	_, ok := v.s.classes.get(name)
	return ok
}

// NamespaceLabels are the labels of a namespace; false where it is not known.
func (v *View) NamespaceLabels(name string) (map[string]string, bool) {
	v.read(FactNamespace, name)
	n, ok := v.s.spaces.get(name)
	if !ok {
		return nil, false
	}
	return n.Labels, true
}

// Certificate returns the certificate with the name.
func (v *View) Certificate(n Name) (*Certificate, bool) {
	v.read(FactCertificate, n.key())
	return v.s.certs.get(n.key())
}

// KeySet returns a key set of a namespace's ConfigMap, or of its Secret.
func (v *View) KeySet(namespace string, secret bool, name string) (*KeySet, bool) {
	of := KeysName(namespace, secret).key()
	v.read(FactKeys, of)
	keys, ok := v.s.keys.get(of)
	if !ok {
		return nil, false
	}
	set, ok := keys.Sets[name]
	return set, ok
}
