package mesh

import "cmp"

// Kind is a kind of entity.
type Kind uint8

// The kinds of entities. There is one Config and one TrustBundle, under the
// empty Name.
const (
	KindConfig Kind = iota + 1
	KindTrust
	KindService
	KindSlice
	KindWorkload
	KindPolicy
	KindSplit
	KindHTTPRoute
	KindGRPCRoute
	KindGrant
	KindNode
	KindGateway
	KindClass
	KindNamespace
	KindCertificate
	KindExternal
	KindTLSRoute
	KindTCPRoute
	KindBackendTLS
	KindBundle
	KindKeys
	// KindIssuer is no entity: it stands for the issuer that the TrustBundle
	// names.
	KindIssuer
)

// Entity is a *Config, *TrustBundle, *Service, *Slice, *Workload, *Policy, *Split,
// *Route, *Grant, *Node, *Gateway, *Class, *Namespace, *Certificate, *External, *BackendTLS,
// *Bundle or *Keys. Once put into a Change it must not be modified.
type Entity interface {
	kind() Kind
	id() Name
}

func (*Config) kind() Kind      { return KindConfig }
func (*TrustBundle) kind() Kind { return KindTrust }
func (*Service) kind() Kind     { return KindService }
func (*Slice) kind() Kind       { return KindSlice }
func (*Workload) kind() Kind    { return KindWorkload }
func (*Policy) kind() Kind      { return KindPolicy }
func (*Split) kind() Kind       { return KindSplit }
func (r *Route) kind() Kind     { return r.Of }
func (*Grant) kind() Kind       { return KindGrant }
func (*Node) kind() Kind        { return KindNode }
func (*Gateway) kind() Kind     { return KindGateway }
func (*Class) kind() Kind       { return KindClass }
func (*Namespace) kind() Kind   { return KindNamespace }
func (*Certificate) kind() Kind { return KindCertificate }
func (*External) kind() Kind    { return KindExternal }
func (*BackendTLS) kind() Kind  { return KindBackendTLS }
func (*Bundle) kind() Kind      { return KindBundle }
func (*Keys) kind() Kind        { return KindKeys }

func (*Config) id() Name        { return Name{} }
func (*TrustBundle) id() Name   { return Name{} }
func (s *Service) id() Name     { return s.Name }
func (s *Slice) id() Name       { return s.Name }
func (w *Workload) id() Name    { return w.Name }
func (p *Policy) id() Name      { return p.Meta.Name }
func (s *Split) id() Name       { return s.Meta.Name }
func (r *Route) id() Name       { return r.Meta.Name }
func (g *Grant) id() Name       { return g.Name }
func (n *Node) id() Name        { return Name{Name: n.Name} }
func (g *Gateway) id() Name     { return g.Meta.Name }
func (c *Class) id() Name       { return Name{Name: c.Name} }
func (n *Namespace) id() Name   { return Name{Name: n.Name} }
func (c *Certificate) id() Name { return c.Name }
func (e *External) id() Name    { return e.Meta.Name }
func (b *BackendTLS) id() Name  { return b.Meta.Name }
func (b *Bundle) id() Name      { return b.Name }
func (k *Keys) id() Name        { return KeysName(k.Namespace, k.Secret) }

// Change says what an entity is now, or that it is no more.
type Change struct {
	kind   Kind
	name   Name
	entity Entity // nil: deleted
}

// Put is the change to the given state.
func Put(e Entity) Change { return Change{kind: e.kind(), name: e.id(), entity: e} }

// Delete is the change to nothing.
func Delete(k Kind, n Name) Change { return Change{kind: k, name: n} }

// Ref names what the change is about.
func (c Change) Ref() Ref { return Ref{Kind: c.kind, Name: c.name} }

// Ref names an object of the API: a MeshConfig (under the empty name), a
// MeshPolicy, a TrafficSplit, an ExternalService, a Gateway, a route or a
// BackendTLSPolicy.
type Ref struct {
	Kind Kind
	Name Name
}

// Compare orders refs by kind, namespace and name.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(cmp.Compare(r.Kind, o.Kind), cmp.Compare(r.Name.Namespace, o.Name.Namespace), cmp.Compare(r.Name.Name, o.Name.Name))
}

// Applier takes changes, in order. It does not block on anything slower than
// a lock, and may keep the entities.
type Applier interface {
	Apply(changes ...Change)
}

// Finding is something to tell the owner of an object: it becomes the
// condition Type of the object with status False (or True where OK is set).
type Finding struct {
	Kind   Kind
	Object Name
	// Generation is the object's, as it was when this was found.
	Generation int64
	// Parent is of a route which of its parentRefs it is about, and of a Gateway which
	// listener; -1 is the Gateway itself.
	Parent int
	// Ancestor is of a BackendTLSPolicy what Parent stands for: a Gateway or a Service.
	Ancestor Ref
	Count    int    // of the type AttachedRoutes
	Type     string // condition type: Accepted, ResolvedRefs; or AttachedRoutes
	OK       bool   // the condition's status is True
	Reason   string // CamelCase
	Message  string // a sentence that says what to do
}

// Revision counts the snapshots that were made: each has a higher one than the
// one before.
type Revision uint64
