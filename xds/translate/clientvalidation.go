package translate

import (
	"fmt"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Certificates of a Gateway's clients (spec.tls.frontend). They are of the authorities that
// the Gateway names, and give nobody an identity in the mesh, whatever they say (edge).

// ofClients ends the name of what listeners at a port of a gateway ask of their clients'
// certificates: san|namespace/name|port|clients.
const ofClients = "|clients"

// Reasons of conditions that are the Gateway API's.
const (
	reasonInvalidAuthorityKind = "InvalidCACertificateKind"
	reasonConfigurationChanged = "ConfigurationChanged"

	conditionInsecure = "InsecureFrontendValidationMode"
)

// clientAuthorities are the certificates, in PEM, of those who sign the clients' of a listener, and
// what keeps it from some of them.
func clientAuthorities(g *mesh.Gateway, l mesh.Listener, v *mesh.View) (pem []byte, faults []*fault) {
	if l.Clients == nil {
		return nil, nil
	}
	for _, a := range l.Clients.Authorities {
		bad := func(reason, format string, args ...any) {
			faults = append(faults, &fault{conditionResolvedRefs, reason, fmt.Sprintf(format, args...)})
		}
		if a.Kind != mesh.BundleConfigMap {
			bad(reasonInvalidAuthorityKind, "%s %s is no ConfigMap: name one with certificates under the key ca.crt in tls.frontend", a.Kind, a.Name)
			continue
		}
		if f := grantFault(mesh.GrantFrom{Group: gatewayGroup, Kind: KindGateway, Namespace: g.Meta.Namespace}, a.Kind, a.Name, v); f != nil {
			faults = append(faults, f)
			continue
		}
		switch b, ok := v.Bundle(a.Name); {
		case !ok:
			bad(reasonInvalidAuthority, "Tulle sees no ConfigMap %s; create it, or correct caCertificateRefs in tls.frontend", a.Name)
		case b.Invalid != "":
			bad(reasonInvalidAuthority, "%s", b.Invalid)
		default:
			pem = append(pem, b.PEM...)
		}
	}
	return pem, faults
}

// nobodyVouches is that a listener has no authority left by which to know its clients.
func nobodyVouches() *fault {
	return &fault{conditionAccepted, reasonNoValidCertificate, "no certificate can be had by which to verify those of clients, so that nobody is let in: see ResolvedRefs"}
}

// certified is TLS that ends at a gateway's listener, with the listener's certificates, and
// with what it asks of those of its clients.
func certified(g *mesh.Gateway, at mesh.Listener, alpn ...string) *core.TransportSocket {
	out := terminated(each(at.Certificates, func(secret mesh.Backend) string { return PrefixCertificate + secret.Name.String() }), alpn...)
	if at.Clients == nil {
		return downstream(out)
	}
	out.RequireClientCertificate = wrapperspb.Bool(!at.Clients.Insecure)
	check := validation(sanName(g.Meta.Name, at.Port) + ofClients)
	out.CommonTlsContext.ValidationContextType = check
	if at.Clients.Insecure {
		// It comes with the listener, which tells of nobody: what is trusted comes before, to
		// one that still does.
		check.CombinedValidationContext.DefaultValidationContext.TrustChainVerification = tls.CertificateValidationContext_ACCEPT_UNTRUSTED
	} else {
		// Envoy does not verify a certificate anew when a session is resumed, which may be days
		// after it is over.
		out.SessionTicketKeysType = &tls.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true}
		out.DisableStatefulSessionResumption = true
	}
	return downstream(out)
}

// tell has backends be told of the certificate that a client proved to have. Where others
// are let in as well nobody is told of: Envoy does not say whom of them it verified.
func tell(m *hcm.HttpConnectionManager, at mesh.Listener) {
	if at.Clients != nil && !at.Clients.Insecure {
		m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE_SET
		m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{Subject: wrapperspb.Bool(true), Uri: true}
	}
}

// clientValidation is what a port's listeners ask of certificates: nobody's will do, where
// nothing is asked any more, or no authority can be had.
func clientValidation(gateway mesh.Name, port uint16, v *mesh.View) *tls.CertificateValidationContext {
	nobody := &tls.CertificateValidationContext{TrustedCa: inline(v.Trust().PEM), MatchTypedSubjectAltNames: sans(nil)}
	g, ok := gatewayOf(gateway, v)
	if !ok {
		return nobody
	}
	// Those of a port have it alike.
	i := slices.IndexFunc(g.Listeners, func(l mesh.Listener) bool { return l.Port == port && l.Clients != nil })
	if i < 0 {
		return nobody
	}
	pem, _ := clientAuthorities(g, g.Listeners[i], v)
	if len(pem) == 0 {
		return nobody
	}
	return &tls.CertificateValidationContext{TrustedCa: inline(pem)}
}

// insecure reports whether a Gateway lets in clients of TLS whom nobody vouches for though it
// asks for certificates.
func insecure(g *mesh.Gateway) bool {
	return slices.ContainsFunc(g.Listeners, func(l mesh.Listener) bool { return l.Clients != nil && l.Clients.Insecure })
}
