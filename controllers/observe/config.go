package observe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// What holds where the MeshConfig says nothing, or there is none. The API
// server fills in the same for one that is there.
const (
	defaultTrustDomain = "cluster.local"
	defaultLifetime    = 24 * time.Hour
)

// sources are the objects that the one mesh.Config is made of, cut down to what
// is used. The zero value is a cluster that tells nothing.
type sources struct {
	config   *v1alpha1.MeshConfig
	services map[string][]netip.Prefix // by ServiceCIDR
	pods     map[string][]netip.Prefix // by Node
}

// put takes note of an object; changed is false where nothing that is used
// differs, as for a node's heartbeat. It ignores objects of other kinds, and a
// MeshConfig that is not the one that counts.
func (s *sources) put(obj any) (changed bool) {
	switch o := obj.(type) {
	case *v1alpha1.MeshConfig:
		if o.Name != v1alpha1.MeshConfigName {
			return false
		}
		s.config = o
		return true
	case *networkingv1.ServiceCIDR:
		return putRange(&s.services, o.Name, prefixes(o.Spec.CIDRs))
	case *corev1.Node:
		return putRange(&s.pods, o.Name, nodeRanges(o))
	}
	return false
}

// drop forgets an object of the kind of obj.
func (s *sources) drop(obj any, name string) (changed bool) {
	switch obj.(type) {
	case *v1alpha1.MeshConfig:
		if name != v1alpha1.MeshConfigName {
			return false
		}
		s.config = nil
		return true
	case *networkingv1.ServiceCIDR:
		return putRange(&s.services, name, nil)
	case *corev1.Node:
		return putRange(&s.pods, name, nil)
	}
	return false
}

func putRange(to *map[string][]netip.Prefix, name string, ps []netip.Prefix) (changed bool) {
	if slices.Equal((*to)[name], ps) {
		return false
	}
	if *to == nil {
		*to = map[string][]netip.Prefix{}
	}
	if len(ps) == 0 {
		delete(*to, name)
	} else {
		(*to)[name] = ps
	}
	return true
}

func nodeRanges(n *corev1.Node) []netip.Prefix {
	texts := n.Spec.PodCIDRs
	if len(texts) == 0 && n.Spec.PodCIDR != "" {
		texts = []string{n.Spec.PodCIDR}
	}
	return prefixes(texts)
}

// mesh makes the configuration. A value that this version does not know, since
// a newer one wrote it, is read as the strictest.
func (s *sources) mesh(rootNamespace string) *mesh.Config {
	var spec v1alpha1.MeshConfigSpec
	var generation int64
	if s.config != nil {
		spec, generation = s.config.Spec, s.config.Generation
	}
	out := &mesh.Config{
		Generation:          generation,
		TrustDomain:         cmp.Or(spec.TrustDomain, defaultTrustDomain),
		Aliases:             spec.TrustDomainAliases,
		RootNamespace:       rootNamespace,
		MTLS:                meshMTLS(spec.MTLS.Mode),
		Egress:              egress(spec.Egress.Mode),
		CertificateLifetime: defaultLifetime,
		ServiceRanges:       ranges(s.services, spec.ClusterRanges.Services),
		PodRanges:           ranges(s.pods, spec.ClusterRanges.Pods),
		TrustedHops:         uint32(max(0, spec.ForwardedFor.TrustedHops)),
		Authorizers:         authorizers(spec.ExternalAuthorizers),
	}
	out.RateLimitService = rateLimitService(spec.RateLimitService)
	if l := spec.Certificates.Lifetime; l != nil {
		out.CertificateLifetime = l.Duration
	}
	if spec.AccessLog.Mode == v1alpha1.AccessLogDisabled {
		out.AccessLog = map[string]string{}
	} else {
		out.AccessLog = spec.AccessLog.Formats()
	}
	return out
}

func meshMTLS(m v1alpha1.MTLSMode) mesh.MTLSMode {
	if m == "" {
		return mesh.MTLSPermissive
	}
	if mode, ok := mtlsMode(m); ok {
		return mode
	}
	return mesh.MTLSStrict
}

func egress(m v1alpha1.EgressMode) mesh.EgressMode {
	if m == "" || m == v1alpha1.EgressAllowAny {
		return mesh.AllowAny
	}
	return mesh.RegistryOnly
}

func ranges(told map[string][]netip.Prefix, added []string) []netip.Prefix {
	all := prefixes(added)
	for _, ps := range told {
		all = append(all, ps...)
	}
	return mergeRanges(all)
}
