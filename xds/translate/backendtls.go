package translate

import (
	"fmt"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	// KindBackendTLS is a kind of objects that have findings.
	KindBackendTLS = "BackendTLSPolicy"

	// ofTLS ends the name of what a BackendTLSPolicy trusts: san|namespace/name|port|tls.
	ofTLS = "|tls"
	// systemRoots is where the published image of Envoy has the authorities that the
	// world trusts, as Debian's package ca-certificates has.
	systemRoots = "/etc/ssl/certs/ca-certificates.crt"
	// maxAncestors is how many a policy's status can have (GEP-713).
	maxAncestors = 16
)

// Reasons of conditions of a BackendTLSPolicy that are the Gateway API's.
const (
	reasonNoValidCertificate = "NoValidCACertificate"
	reasonInvalidAuthority   = "InvalidCACertificateRef"
)

// originates reports whether a cluster's connections are ones that a BackendTLSPolicy of
// the service is about: requests, and what was decrypted. Others are the client's own,
// TLS or not, and left as they are; so are those to a pod's own address.
func (d destination) originates() bool {
	return d.prefix != "" && d.prefix != prefixBytes
}

// backendTLS is the BackendTLSPolicy that holds for a service's port; nil: none. One that
// names the port wins over one for all, and then the older.
func backendTLS(service mesh.Name, port mesh.ServicePort, v *mesh.View) *mesh.BackendTLS {
	for _, section := range []string{port.Name, ""} {
		if ps := tlsPolicies(mesh.BackendTLSTarget{Service: service.Name, Port: section}, service.Namespace, v); len(ps) > 0 {
			return ps[0]
		}
	}
	return nil
}

func tlsPolicies(t mesh.BackendTLSTarget, namespace string, v *mesh.View) []*mesh.BackendTLS {
	return v.BackendTLS(namespace, func(p *mesh.BackendTLS) bool { return slices.Contains(p.Targets, t) })
}

// usable reports whether anybody can be called by the policy. Where not, nobody is: not
// in the clear either.
func usable(p *mesh.BackendTLS, v *mesh.View) bool {
	return p.Invalid == "" && (len(p.Authorities) == 0 || len(authorities(p, v)) > 0)
}

// authorities are the certificates that a policy trusts, in PEM.
func authorities(p *mesh.BackendTLS, v *mesh.View) []byte {
	var out []byte
	for _, a := range p.Authorities {
		if b, ok := v.Bundle(a.Name); ok && a.Kind == mesh.BundleConfigMap && b.Invalid == "" {
			out = append(out, b.PEM...)
		}
	}
	return out
}

// originated is TLS as a policy says, with the client's certificates of the secrets. Envoy
// itself offers by ALPN what it speaks.
func originated(p *mesh.BackendTLS, service mesh.Name, port uint16, secrets []*tls.SdsSecretConfig) *core.TransportSocket {
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(&tls.UpstreamTlsContext{
		Sni: p.Hostname,
		CommonTlsContext: &tls.CommonTlsContext{
			TlsCertificateSdsSecretConfigs: secrets,

			TlsParams:             &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3},
			ValidationContextType: validation(sanName(service, port) + ofTLS),
		},
	})}}
}

// trusted is what a policy for the port trusts: nobody, where there is none any more, or
// none of use.
func trusted(service mesh.Name, number uint16, v *mesh.View) *tls.CertificateValidationContext {
	nobody := &tls.CertificateValidationContext{TrustedCa: inline(v.Trust().PEM), MatchTypedSubjectAltNames: sans(nil)}
	svc, ok := v.Service(service)
	if !ok {
		return nobody
	}
	port, ok := svc.Port(number)
	if !ok {
		return nobody
	}
	p := backendTLS(service, port, v)
	if p == nil || !usable(p, v) {
		return nobody
	}
	out := &tls.CertificateValidationContext{TrustedCa: inline(authorities(p, v))}
	if len(p.Authorities) == 0 {
		out.TrustedCa = &core.DataSource{Specifier: &core.DataSource_Filename{Filename: systemRoots}}
	}
	names := p.Names
	if len(p.Names)+len(p.URIs) == 0 {
		names = []string{p.Hostname}
	}
	for _, n := range names {
		m := &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_DNS, Matcher: exact(n)}
		if suffixed, wild := strings.CutPrefix(n, "*"); wild {
			m.Matcher = suffix(suffixed)
		}
		out.MatchTypedSubjectAltNames = append(out.MatchTypedSubjectAltNames, m)
	}
	for _, u := range p.URIs {
		out.MatchTypedSubjectAltNames = append(out.MatchTypedSubjectAltNames, &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_URI, Matcher: exact(u)})
	}
	return out
}

// backendTLSFindings are two conditions for each ancestor: each gateway of ours that sends
// something to a target, and each target, which sidecars call by the policy as well.
func backendTLSFindings(p *mesh.BackendTLS, v *mesh.View) []mesh.Finding {
	var own []*fault // whatever the target
	if p.Invalid != "" {
		own = append(own, &fault{conditionAccepted, reasonInvalid, p.Invalid})
	}
	own = append(own, authorityFaults(p, v)...)

	// Whatever the targets are, it was looked at in this generation.
	out := []mesh.Finding{{Kind: mesh.KindBackendTLS, Object: p.Meta.Name, Generation: p.Generation, Parent: -1}}
	faults := map[mesh.Ref][]*fault{}
	for _, t := range p.Targets {
		service := mesh.Name{Namespace: p.Meta.Namespace, Name: t.Service}
		f := backendTLSTargetFault(p, t, v)
		ancestors := []mesh.Ref{{Kind: mesh.KindService, Name: service}}
		for _, r := range v.RoutesTo(service) {
			ancestors = append(ancestors, gatewaysOf(r, v)...)
		}
		slices.SortFunc(ancestors, mesh.Ref.Compare)
		for _, a := range slices.Compact(ancestors) {
			faults[a] = append(faults[a], f)
		}
	}
	ancestors := make([]mesh.Ref, 0, len(faults))
	for a := range faults {
		ancestors = append(ancestors, a)
	}
	slices.SortFunc(ancestors, func(a, b mesh.Ref) int { return b.Compare(a) }) // gateways first
	for i, a := range ancestors[:min(len(ancestors), maxAncestors)] {
		for _, f := range report(mesh.KindBackendTLS, p.Meta, true, append(slices.Clone(own), faults[a]...)...) {
			f.Parent, f.Ancestor = i, a
			out = append(out, f)
		}
	}
	return out
}

// gatewaysOf are the gateways of ours that a route is attached to.
func gatewaysOf(r *mesh.Route, v *mesh.View) []mesh.Ref {
	var out []mesh.Ref
	for _, parent := range r.Parents {
		if parent.Kind != mesh.KindGateway || r.Invalid != "" {
			continue
		}
		if g, ok := gatewayOf(parent.Name, v); ok && attachmentFault(g, r, parent, v) == nil {
			out = append(out, mesh.Ref{Kind: mesh.KindGateway, Name: parent.Name})
		}
	}
	return out
}

// authorityFaults are what keeps a policy from the certificates that it is to trust.
func authorityFaults(p *mesh.BackendTLS, v *mesh.View) []*fault {
	var out []*fault
	for _, a := range p.Authorities {
		b, ok := v.Bundle(a.Name)
		switch {
		case a.Kind != mesh.BundleConfigMap:
			out = append(out, &fault{conditionResolvedRefs, reasonInvalidKind, fmt.Sprintf("%s %s is no ConfigMap: name one with certificates under the key ca.crt", a.Kind, a.Name)})
		case !ok:
			out = append(out, &fault{conditionResolvedRefs, reasonInvalidAuthority, fmt.Sprintf("there is no ConfigMap %s; create it, or correct validation.caCertificateRefs", a.Name)})
		case b.Invalid != "":
			out = append(out, &fault{conditionResolvedRefs, reasonInvalidAuthority, b.Invalid})
		}
	}
	if len(out) > 0 && len(authorities(p, v)) == 0 {
		out = append(out, &fault{conditionAccepted, reasonNoValidCertificate, "no certificate can be trusted, so that nobody is called: see ResolvedRefs"})
	}
	return out
}

// backendTLSTargetFault looks for what keeps a policy from holding for a target.
func backendTLSTargetFault(p *mesh.BackendTLS, t mesh.BackendTLSTarget, v *mesh.View) *fault {
	service := mesh.Name{Namespace: p.Meta.Namespace, Name: t.Service}
	svc, ok := v.Service(service)
	if !ok {
		return &fault{conditionAccepted, reasonTargetNotFound, fmt.Sprintf("there is no Service %s; create it, or correct targetRefs", service)}
	}
	if t.Port != "" && !slices.ContainsFunc(svc.Ports, func(sp mesh.ServicePort) bool { return sp.Name == t.Port }) {
		return &fault{conditionAccepted, reasonTargetNotFound, fmt.Sprintf("Service %s has no port of the name %s; name one of its ports in sectionName", service, t.Port)}
	}
	if first := tlsPolicies(t, p.Meta.Namespace, v)[0]; first.Meta.Name != p.Meta.Name {
		return &fault{conditionAccepted, reasonConflicted, fmt.Sprintf("BackendTLSPolicy %s is older and for the same target, and wins; delete one of the two", first.Meta.Name)}
	}
	return nil
}
