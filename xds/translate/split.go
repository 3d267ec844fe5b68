package translate

import (
	"fmt"
	"math"
	"slices"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// splitFor is the split that holds for a service's port: the oldest that is
// sound. One that is not leaves traffic as though it were absent.
func splitFor(svc *mesh.Service, port mesh.ServicePort, v *mesh.View) *mesh.Split {
	for _, s := range v.Splits(svc.Name) {
		if (s.Port == 0 || s.Port == port.Port) && splitFault(s, port.Port, v) == nil {
			return s
		}
	}
	return nil
}

// meshGroup is the API group of our own kinds.
const meshGroup = "mesh.tulle.dev"

// splitRules are the rules of a split, whose backends are spoken to at the root's
// port.
func splitRules(s *mesh.Split, port uint16) []rule {
	one := func(name string, m mesh.RequestMatch, backends []mesh.SplitBackend, mirrors []mesh.Mirror) rule {
		r := rule{name: name, of: mesh.Ref{Kind: mesh.KindSplit, Name: s.Meta.Name}, match: m, affinity: s.Affinity}
		for _, b := range backends {
			r.backends = append(r.backends, share{to: endpointsOf{service: b.Service, port: port, labels: labelsText(b.Labels)}, weight: b.Weight})
		}
		for _, m := range mirrors {
			to := endpointsOf{service: mesh.Name{Namespace: s.Meta.Namespace, Name: m.Service}, port: port}
			r.mirrors = append(r.mirrors, mirror{to: to, numerator: m.Percent, denominator: 100})
		}
		return r
	}
	var out []rule
	for i, r := range s.Rules {
		for j, m := range r.Matches {
			out = append(out, one(fmt.Sprintf("%s#%d.%d", s.Meta.Name, i, j), m, r.Backends, r.Mirrors))
		}
	}
	return append(out, one(s.Meta.Name.String(), mesh.RequestMatch{}, s.Backends, s.Mirrors))
}

// fault is why an object does not hold.
type fault struct{ condition, reason, message string }

// splitFault looks for what keeps a split from holding on the port.
func splitFault(s *mesh.Split, port uint16, v *mesh.View) *fault {
	if s.Invalid != "" {
		return &fault{conditionAccepted, reasonInvalid, s.Invalid}
	}
	lists := [][]mesh.SplitBackend{s.Backends}
	mirrors := slices.Clone(s.Mirrors)
	for _, r := range s.Rules {
		lists = append(lists, r.Backends)
		mirrors = append(mirrors, r.Mirrors...)
	}
	for _, m := range mirrors {
		if f := splitTarget(s, mesh.Name{Namespace: s.Meta.Namespace, Name: m.Service}, port, v); f != nil {
			return f
		}
	}
	for _, bs := range lists {
		var sum uint64
		for _, b := range bs {
			sum += uint64(b.Weight)
			if f := splitTarget(s, b.Service, port, v); f != nil {
				return f
			}
		}
		if sum == 0 || sum > math.MaxUint32 {
			return &fault{conditionAccepted, reasonInvalid, "the weights of each list of backends must add up to more than 0, and to less than 2^32"}
		}
	}
	return nil
}

// splitTarget looks for what keeps a service from being sent what is split.
func splitTarget(s *mesh.Split, n mesh.Name, port uint16, v *mesh.View) *fault {
	if f := grantFault(mesh.GrantFrom{Group: meshGroup, Kind: KindSplit, Namespace: s.Meta.Namespace}, mesh.BackendService, n, v); f != nil {
		return f
	}
	svc, ok := v.Service(n)
	if !ok {
		return &fault{conditionResolvedRefs, reasonServiceNotFound, fmt.Sprintf("there is no Service %s; create it, or take it out of the split", n)}
	}
	if _, ok := svc.Port(port); !ok {
		return &fault{conditionResolvedRefs, reasonPortNotFound, fmt.Sprintf("Service %s has no port %d, which is the port of %s/%s; give it that port", n, port, s.Meta.Namespace, s.Service)}
	}
	return nil
}
