package translate

import (
	"slices"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Which policies hold for whom, and how they merge: mesh, then namespace, then
// workload, the most specific wins; between equals the stricter mTLS mode, else
// the older policy, then the name.

// selected are the policies with the section that select a workload of the
// namespace with the labels, from the least specific to the most; equally
// specific ones stand with the winner first. Those that name Gateways select none.
func selected(namespace string, labels map[string]string, section mesh.Section, v *mesh.View) [][]*mesh.Policy {
	root := v.Config().RootNamespace
	levels := make([][]*mesh.Policy, 3)
	add := func(ns string, broad int) {
		for _, p := range v.Policies(ns, section, func(p *mesh.Policy) bool { return len(p.Targets) == 0 && p.Selector.Matches(labels) }) {
			level := broad
			if p.Selector != nil {
				level = 2
			}
			levels[level] = append(levels[level], p)
		}
	}
	add(root, 0)
	if namespace != root {
		add(namespace, 1)
	}
	return levels
}

// attached are the policies with the section that hold at a listener of a Gateway: those
// that name the Gateway, and then, more specific, those that name the listener. No
// others do: who comes in there is outside of the mesh.
func attached(g *mesh.Gateway, listener string, section mesh.Section, v *mesh.View) [][]*mesh.Policy {
	names := func(p *mesh.Policy, section string) bool {
		return slices.Contains(p.Targets, mesh.Target{Kind: mesh.KindGateway, Name: g.Meta.Name, Section: section})
	}
	levels := make([][]*mesh.Policy, 2)
	for _, p := range v.Policies(g.Meta.Namespace, section, func(p *mesh.Policy) bool { return names(p, "") || names(p, listener) }) {
		if names(p, "") {
			levels[0] = append(levels[0], p)
		} else {
			levels[1] = append(levels[1], p)
		}
	}
	return levels
}

// modes is what a workload accepts: by port, and on all others.
type modes struct {
	all   mesh.MTLSMode
	ports map[uint16]mesh.MTLSMode
}

func (m modes) at(port uint16) mesh.MTLSMode {
	if p, ok := m.ports[port]; ok {
		return p
	}
	return m.all
}

// mtlsModes merges the mtls sections. A policy that cannot be understood
// leaves its workloads with Strict: it fails closed.
func mtlsModes(namespace string, labels map[string]string, v *mesh.View) modes {
	out := modes{all: v.Config().MTLS, ports: map[uint16]mesh.MTLSMode{}}
	if out.all == mesh.MTLSUnset {
		out.all = mesh.MTLSPermissive
	}
	for _, level := range selected(namespace, labels, mesh.SectionMTLS, v) {
		if slices.ContainsFunc(level, func(p *mesh.Policy) bool { return p.Invalid != "" }) {
			// It may have meant any port, and nothing is stricter.
			out = modes{all: mesh.MTLSStrict, ports: map[uint16]mesh.MTLSMode{}}
			continue
		}
		all, ports := mesh.MTLSUnset, map[uint16]mesh.MTLSMode{}
		for _, p := range level {
			all = max(all, p.MTLS.Mode)
			for port, mode := range p.MTLS.Ports {
				ports[port] = max(ports[port], mode)
			}
		}
		if all != mesh.MTLSUnset {
			out.all = all
		}
		for port, mode := range ports {
			if mode != mesh.MTLSUnset {
				out.ports[port] = mode
			}
		}
	}
	return out
}

// takesMTLS reports whether clients speak mesh mTLS to the workload's port.
func takesMTLS(w *mesh.Workload, port uint16, v *mesh.View) bool {
	return w.Meshed && !slices.Contains(w.Direct, port) && mtlsModes(w.Namespace, w.Labels, v).at(port) != mesh.MTLSDisabled
}

// takesMTLS reports the same of what is sent there: bytes that may be TLS of the client's
// own go as they are to a port that ends it.
func (d destination) takesMTLS(w *mesh.Workload, port uint16, v *mesh.View) bool {
	return takesMTLS(w, port, v) && (d.http || d.prefix == prefixDecoded || !endsTLS(w, port, v))
}

// authorizations are all authorization sections that hold for a workload: they
// add up.
func authorizations(namespace string, labels map[string]string, v *mesh.View) []*mesh.Policy {
	return slices.Concat(selected(namespace, labels, mesh.SectionAuthorization, v)...)
}
