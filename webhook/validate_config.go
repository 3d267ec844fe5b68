package webhook

import (
	"crypto/x509"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
)

func (c *checks) config(m *v1alpha1.MeshConfig) {
	spec := field.NewPath("spec")
	ranges := spec.Child("clusterRanges")
	services := c.clusterRanges(ranges.Child("services"), m.Spec.ClusterRanges.Services, "10.96.0.0/12")
	pods := c.clusterRanges(ranges.Child("pods"), m.Spec.ClusterRanges.Pods, "10.244.0.0/16")
	for _, s := range services {
		for _, p := range pods {
			if s.Overlaps(p) {
				c.warn(ranges, "the services' %s and the pods' %s overlap, which no cluster's do", s, p)
			}
		}
	}
	if image := m.Spec.Proxy.Image; strings.ContainsFunc(image, func(r rune) bool { return r <= ' ' || r > '~' }) {
		c.refuse(spec.Child("proxy", "image"), image, "the name of an image has no blanks: write registry/name:tag")
	}
	if r := m.Spec.Proxy.Resources; r != nil {
		c.resources(spec.Child("proxy", "resources"), *r)
	}
	c.accessLog(spec.Child("accessLog", "fields"), m.Spec.AccessLog.Formats())
	if s := m.Spec.RateLimitService; s != nil {
		c.serviceName(spec.Child("rateLimitService", "name"), s.Name)
		c.namespace(spec.Child("rateLimitService", "namespace"), s.Namespace)
	}
	for i, a := range m.Spec.TrustDomainAliases {
		if a == m.Spec.TrustDomain {
			c.refuse(spec.Child("trustDomainAliases").Index(i), a, "this is the trust domain itself: write its other names")
		}
	}
	for i, r := range m.Spec.JWKS.AllowedRanges {
		c.prefix(spec.Child("jwks", "allowedRanges").Index(i), r, "10.96.0.0/12")
	}
	if cm := m.Spec.CA.CertManager; cm != nil && cm.Roots != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(cm.Roots)) {
		c.refuse(spec.Child("ca", "certManager", "roots"), "…", "there is no certificate in it: write those of the issuer's roots, in PEM (-----BEGIN CERTIFICATE-----)")
	}
	for i, a := range m.Spec.ExternalAuthorizers {
		at := spec.Child("externalAuthorizers").Index(i).Child("service")
		c.namespace(at.Child("namespace"), a.Service.Namespace)
		c.serviceName(at.Child("name"), a.Service.Name)
	}
}

// clusterRanges checks ranges whose traffic goes to the mesh's own listener.
func (c *checks) clusterRanges(at *field.Path, texts []string, example string) []netip.Prefix {
	var ranges []netip.Prefix
	for i, text := range texts {
		p, ok := c.prefix(at.Index(i), text, example)
		if !ok {
			continue
		}
		switch {
		case p.Bits() == 0:
			c.refuse(at.Index(i), text, "this is every address there is, so nothing would be outside of the cluster: write the cluster's own range, such as %s", example)
		case p.Addr().IsLoopback(), p.Addr().IsMulticast(), p.Addr().IsLinkLocalUnicast():
			c.refuse(at.Index(i), text, "loopback, link-local and multicast addresses are no cluster's: write the cluster's own range, such as %s", example)
		default:
			ranges = append(ranges, p)
		}
	}
	return ranges
}

// resources refuses what would make the API server refuse every injected pod.
func (c *checks) resources(at *field.Path, r corev1.ResourceRequirements) {
	for _, list := range []struct {
		at        *field.Path
		resources corev1.ResourceList
	}{{at.Child("requests"), r.Requests}, {at.Child("limits"), r.Limits}} {
		for _, name := range slices.Sorted(maps.Keys(list.resources)) {
			q := list.resources[name]
			if q.Sign() < 0 {
				c.refuse(list.at.Key(string(name)), q.String(), "a quantity of %s is not below zero", name)
			}
			if name != corev1.ResourceCPU && name != corev1.ResourceMemory && name != corev1.ResourceEphemeralStorage {
				c.refuse(list.at.Key(string(name)), q.String(), "a proxy uses cpu, memory and ephemeral-storage: leave %s out", name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Limits)) {
		request, limit := r.Requests[name], r.Limits[name]
		if request.Cmp(limit) > 0 {
			c.refuse(at.Child("requests").Key(string(name)), request.String(), "the request is above the limit of %s, so every injected pod would be refused: lower it, or raise the limit", limit.String())
		}
	}
}

// accessLog checks the form of Envoy's command operators: %NAME%, %NAME(...)%,
// %NAME:42% or %NAME(...):42%, and %% for a percent sign (Envoy: Access
// logging, Format strings). Which names there are is Envoy's to say.
func (c *checks) accessLog(at *field.Path, formats map[string]string) {
	operator := regexp.MustCompile(`^%(%|[A-Z][A-Z0-9_]*(\([^()]*\))?(:[0-9]+)?%)`)
	for _, key := range slices.Sorted(maps.Keys(formats)) {
		rest := formats[key]
		for {
			_, after, found := strings.Cut(rest, "%")
			if !found {
				break
			}
			rest = "%" + after
			match := operator.FindString(rest)
			if match == "" {
				c.refuse(at.Key(key), formats[key], "what begins with %q is not one of Envoy's command operators: write %%NAME%%, %%NAME(argument)%% or, for a percent sign, %%%%", head(rest))
				break
			}
			rest = rest[len(match):]
		}
	}
}

// head is the beginning of a long text.
func head(s string) string {
	const most = 24
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
