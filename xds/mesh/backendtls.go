package mesh

// BackendTLS is a BackendTLSPolicy: how a service is called whose pods speak TLS of their
// own.
type BackendTLS struct {
	Meta
	Targets []BackendTLSTarget
	// Hostname is the name that servers are asked for, and which their certificates must
	// have where neither Names nor URIs are said.
	Hostname string
	// Names and URIs are of a certificate's alternative names, of which it must have one.
	// A name may begin with "*.".
	Names, URIs []string
	// Authorities are objects with the certificates that are trusted. Kind is
	// "ConfigMap", or what else is named. None: those of the proxy's own system.
	Authorities []Backend
	// Invalid is set when the object cannot be understood, and says why: nobody is
	// called.
	Invalid string
}

// BackendTLSTarget is a Service of the policy's namespace, or one of its ports.
type BackendTLSTarget struct {
	Service string
	Port    string // its name; empty: all
}

// BundleConfigMap is the Kind of an authority that Tulle can read.
const BundleConfigMap = "ConfigMap"

// Bundle is a ConfigMap with certificates of authorities, in PEM.
type Bundle struct {
	Name
	PEM []byte
	// Invalid says why it is of no use.
	Invalid string
}

func (s *Snapshot) setBackendTLS(f facts, c Change) {
	if !set(&s.backendTLS, c) {
		return
	}
	f.add(FactBackendTLS, c.name.Namespace)
	if now, has := s.backendTLS.get(c.name.key()); has {
		s.stand(Ref{KindBackendTLS, c.name}, now.Generation)
	} else {
		s.fall(Ref{KindBackendTLS, c.name})
	}
}

// BackendTLS are the namespace's BackendTLSPolicies that apply, the oldest first and then
// by name: the order in which equals win.
func (v *View) BackendTLS(namespace string, applies func(*BackendTLS) bool) []*BackendTLS {
	v.read(FactBackendTLS, namespace)
	return oldestFirst(v, v.s.backendTLS, KindBackendTLS, namespace, applies)
}

// Bundle returns the bundle with the name.
func (v *View) Bundle(n Name) (*Bundle, bool) {
	v.read(FactBundle, n.key())
	return v.s.bundles.get(n.key())
}

// RoutesTo are the routes that send something to the service, sorted by kind, namespace
// and name.
func (v *View) RoutesTo(service Name) []*Route {
	v.read(FactBackend, service.String())
	return v.s.byBackend.prefix(service.String() + "/")
}

// services are those that the route sends something to.
func (r *Route) services() []Name {
	var out []Name
	for i := range r.Rules {
		for _, b := range r.Rules[i].Backends {
			if b.Kind != BackendExternal {
				out = append(out, b.Name)
			}
		}
		for _, m := range r.Rules[i].Filters.Mirrors {
			if m.Kind != BackendExternal {
				out = append(out, m.Name)
			}
		}
	}
	return out
}

// BackendTLSPolicies are all of them, sorted by namespace and name.
func (s *Snapshot) BackendTLSPolicies() []*BackendTLS { return s.backendTLS.prefix("") }
