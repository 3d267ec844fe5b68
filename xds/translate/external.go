package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Which external service a call is for. An address decides where there is one, else the
// name that the client says: the most specific one, then the object of the client's own
// namespace over one for the whole mesh, then the older.

// external is what is meant by a name or address and a port.
type external struct {
	*mesh.External
	port mesh.ExternalPort
	host string // by which it was called; empty: by an address
}

// ForEgress is the For of what concerns calls that leave the cluster: whose they are.
func ForEgress(namespace, serviceAccount string) string { return namespace + "/" + serviceAccount }

func egressFor(k string) mesh.Name {
	namespace, account, _ := strings.Cut(k, "/")
	return mesh.Name{Namespace: namespace, Name: account}
}

// externals are those that hold for a namespace's clients and apply, the first wins.
func externals(client string, v *mesh.View, applies func(*mesh.External) bool) []*mesh.External {
	root := v.Config().RootNamespace
	out := v.Externals(client, applies)
	if client != root {
		out = append(out, v.Externals(root, applies)...)
	}
	return out
}

func every(*mesh.External) bool { return true }

// externalNamed is what a client means by a host, or a wildcard as it stands, and a port.
func externalNamed(client, host string, port uint16, v *mesh.View) (external, bool) {
	return firstExternal(client, port, host, v, func(e *mesh.External, p mesh.ExternalPort) bool {
		return len(e.At(p)) == 0 && slices.Contains(e.Hosts, host)
	})
}

// externalAt is what a client means by an address and a port. It is no range's.
func externalAt(client string, at netip.AddrPort, v *mesh.View) (external, bool) {
	return firstExternal(client, at.Port(), "", v, func(e *mesh.External, p mesh.ExternalPort) bool {
		return slices.Contains(e.At(p), netip.PrefixFrom(at.Addr(), at.Addr().BitLen()))
	})
}

func firstExternal(client string, port uint16, host string, v *mesh.View, applies func(*mesh.External, mesh.ExternalPort) bool) (external, bool) {
	found := externals(client, v, func(e *mesh.External) bool {
		p, ok := e.Port(port)
		return ok && applies(e, p)
	})
	if len(found) == 0 {
		return external{}, false
	}
	p, _ := found[0].Port(port)
	return external{found[0], p, host}, true
}

// refusal is why a service account's calls are refused, and the status of the answer to
// HTTP: 403 for those who may not, 502 where nobody can, 503 where there is no gateway.
func (e external) refusal(account mesh.Name, v *mesh.View) (status uint32, why string) {
	switch {
	case e.Invalid != "":
		return 502, fmt.Sprintf("ExternalService %s cannot be understood, so that what it names is refused: see its status", e.Meta.Name)
	case !e.Admits(account):
		return 403, fmt.Sprintf("ExternalService %s does not admit the service account %s", e.Meta.Name, account)
	case e.Gateway != nil:
		if _, f := wayOut(e.External, v); f != nil {
			return 503, fmt.Sprintf("ExternalService %s is called through a gateway alone, and %s", e.Meta.Name, f.message)
		}
	}
	return 0, ""
}

// name is that of the cluster for what was called.
func (e external) name(called string) string {
	return fmt.Sprintf("%s%s:%d", prefixExternal, called, e.port.Number)
}

// wild reports whether the host stands for any name below another.
func wildHost(host string) bool { return strings.HasPrefix(host, "*.") }

// hostTable is what is known by names: by port, then by host.
type hostTable map[uint16]map[string]external

// named are the external services of a namespace's clients that are known by names and
// whose protocol is as given. A host and a port are one object's, whatever its protocol.
func named(es []*mesh.External, is func(mesh.Protocol) bool) hostTable {
	out := hostTable{}
	for _, e := range es {
		for _, p := range e.Ports {
			if len(e.At(p)) > 0 {
				continue
			}
			if out[p.Number] == nil {
				out[p.Number] = map[string]external{}
			}
			for _, h := range e.Hosts {
				if _, had := out[p.Number][h]; !had {
					out[p.Number][h] = external{e, p, h}
				}
			}
		}
	}
	for number, hosts := range out {
		maps.DeleteFunc(hosts, func(_ string, e external) bool { return !is(e.port.Protocol) })
		if len(hosts) == 0 {
			delete(out, number)
		}
	}
	return out
}

// find is what a host or a wildcard means at a port.
func (t hostTable) find(port uint16, host string) (external, bool) {
	for name := host; ; {
		if e, ok := t[port][name]; ok {
			return e, true
		}
		_, rest, more := strings.Cut(strings.TrimPrefix(name, "*."), ".")
		if !more {
			return external{}, false
		}
		name = "*." + rest
	}
}

func isTLS(p mesh.Protocol) bool { return p == mesh.TLS }

// externalFindings are the conditions of an external service.
func externalFindings(e *mesh.External, v *mesh.View) []mesh.Finding {
	fs := []*fault{invalid(e.Invalid)}
	c := v.Config()
	for _, a := range e.Addresses {
		if slices.ContainsFunc(slices.Concat(c.ServiceRanges, c.PodRanges), a.Overlaps) {
			fs = append(fs, &fault{conditionAccepted, reasonInvalid, fmt.Sprintf("the address %s is in the cluster's own ranges, where pods and Services are called: give an address outside, or leave addresses out", a)})
		}
	}
	for _, p := range e.Ports {
		fs = append(fs, externalConflict(e, p, v))
	}
	if e.Gateway != nil {
		_, f := wayOut(e, v)
		fs = append(fs, f)
	}
	return report(mesh.KindExternal, e.Meta, e.Gateway != nil, fs...)
}

// externalConflict finds an older object of the namespace that names the same at the port.
func externalConflict(e *mesh.External, p mesh.ExternalPort, v *mesh.View) *fault {
	for _, o := range v.Externals(e.Meta.Namespace, every) {
		if o.Meta.Name == e.Meta.Name {
			return nil // those that follow are younger
		}
		q, ok := o.Port(p.Number)
		if !ok {
			continue
		}
		mine, its := e.At(p), o.At(q)
		what := ""
		switch {
		case len(mine) > 0:
			if i := slices.IndexFunc(mine, func(a netip.Prefix) bool { return slices.Contains(its, a) }); i >= 0 {
				what = mine[i].String()
			}
		case len(its) == 0:
			if i := slices.IndexFunc(e.Hosts, func(h string) bool { return slices.Contains(o.Hosts, h) }); i >= 0 {
				what = e.Hosts[i]
			}
		}
		if what != "" {
			return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("ExternalService %s is older and names %s at port %d, and wins; merge the two, or delete one", o.Meta.Name, what, p.Number)}
		}
	}
	return nil
}

// externalTraffic is how the clients of a namespace call an external service: as policies
// say that name it. Those without targets are about Services.
func externalTraffic(client string, e external, v *mesh.View) traffic {
	out := traffic{retries: defaultRetries, locality: mesh.LocalityPreference{Overprovisioning: mesh.DefaultOverprovisioning}}
	target := mesh.Target{Kind: mesh.KindExternal, Name: e.Meta.Name, Port: e.port.Number}
	out.merge(targeting(client, target, v))
	return out
}

// sortedHosts are those of a table at any port, sorted.
func (t hostTable) sortedHosts() []string {
	var out []string
	for _, hosts := range t {
		for h := range hosts {
			out = append(out, h)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (t hostTable) sortedPorts() []uint16 { return slices.Sorted(maps.Keys(t)) }
