package translate

import (
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// The certificate that a Gateway shows to backends (spec.tls.backend): to those whose TLS it
// begins, by a BackendTLSPolicy or an ExternalService's tls, if they ask for one. Without it,
// while it cannot be had, they are not called.

// byGateway is in the names of clusters of a gateway that has such a certificate, before its
// own name: h1|namespace/name|port|by|gateway. Other gateways of its namespace share those
// without.
const byGateway = "|by|"

// kindSecret is the Kind of what has a certificate with its key.
const kindSecret = "Secret"

const (
	reasonInvalidClientCertificate = "InvalidClientCertificateRef"
	reasonListenersNotResolved     = "ListenersNotResolved"
)

// clientCertificate is the one that a gateway shows; nil: it names none. The fault is why it
// cannot be had.
func clientCertificate(g *mesh.Gateway, v *mesh.View) (*mesh.Certificate, *fault) {
	if g.Certificate == nil {
		return nil, nil
	}
	c, why := certificateFor(g, *g.Certificate, reasonInvalidClientCertificate, "tls.backend.clientCertificateRef", v)
	if why != nil {
		why.message += "; until then none of the backends is called whose TLS begins at the gateway"
	}
	return c, why
}

// shown is what a gateway shows to backends, as their clusters name it: nothing, or its
// certificate. ok is false where that cannot be had.
func shown(gateway mesh.Name, v *mesh.View) (secrets []*tls.SdsSecretConfig, ok bool) {
	g, known := gatewayOf(gateway, v)
	if !known {
		return nil, true
	}
	c, f := clientCertificate(g, v)
	if c != nil {
		secrets = append(secrets, sds(PrefixCertificate+c.Name.String()))
	}
	return secrets, f == nil
}

// own is the name of the gateway's own cluster of a service, where it shows its certificate
// there.
func (o *outbound) own(name string, to endpointsOf) string {
	if o.gateway == nil || o.gateway.Certificate == nil {
		return name
	}
	svc, ok := o.view.Service(to.service)
	if !ok {
		return name
	}
	if port, ok := svc.Port(to.port); !ok || backendTLS(to.service, port, o.view) == nil {
		return name
	}
	return name + byGateway + o.gateway.Meta.Name.Name
}
