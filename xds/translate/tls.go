package translate

import (
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

const tlsSocket = "envoy.transport_sockets.tls"

// noIdentity is a SPIFFE ID that nobody has: what a proxy is told to expect
// where nobody may answer.
const noIdentity = "spiffe://nobody.invalid/"

// WorkloadSecret is a workload's own certificate and key, as the secret
// "workload". Both are PEM; the chain starts with the leaf.
func WorkloadSecret(chain, key []byte) proto.Message {
	return &tls.Secret{Name: SecretWorkload, Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}}
}

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

// secret makes the trust bundle, and for a service the bundle together with
// the identities that may answer for it.
func secret(k Key, v *mesh.View) Result {
	if strings.HasPrefix(k.Name, PrefixCertificate) {
		return Result{Message: gatewaySecret(k, v)}
	}
	if strings.HasPrefix(k.Name, PrefixEnded) {
		return Result{Message: endedSecret(k, v)}
	}
	vc := &tls.CertificateValidationContext{TrustedCa: inline(v.Trust().PEM)}
	if rest, ok := strings.CutPrefix(k.Name, PrefixSAN); ok {
		if rest, ok := strings.CutSuffix(rest, ofTLS); ok {
			if n, port, ok := servicePort(rest); ok {
				return Result{Message: validationSecret(k.Name, trusted(n, port, v))}
			}
		}
		if rest, ok := strings.CutSuffix(rest, ofClients); ok {
			if n, port, ok := servicePort(rest); ok {
				return Result{Message: validationSecret(k.Name, clientValidation(n, port, v))}
			}
		}
		var ids []string
		rest, split := strings.CutSuffix(rest, ofSplit)
		if n, port, ok := servicePort(rest); ok && split {
			ids = splitIdentities(n, port, v)
		} else if ok {
			ids = serverIdentities(n, v)
		}
		vc.MatchTypedSubjectAltNames = sans(ids)
	}
	return Result{Message: validationSecret(k.Name, vc)}
}

func validationSecret(name string, vc *tls.CertificateValidationContext) *tls.Secret {
	return &tls.Secret{Name: name, Type: &tls.Secret_ValidationContext{ValidationContext: vc}}
}

// serverIdentities are the SPIFFE IDs of the pods behind a service, sorted.
// Pods that are not ready or that are ending count: their connections live on.
func serverIdentities(service mesh.Name, v *mesh.View) []string {
	domains := v.Config().TrustDomains()
	var ids []string
	for _, s := range v.Slices(service) {
		for _, e := range s.Endpoints {
			if e.Workload == "" {
				continue
			}
			if w, ok := v.Workload(mesh.Name{Namespace: s.Namespace, Name: e.Workload}); ok && w.Meshed {
				ids = append(ids, spellings(Identity(domains[0], w.Namespace, w.ServiceAccount), domains)...)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Identity is the SPIFFE ID of a service account's pods.
func Identity(trustDomain, namespace, serviceAccount string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + serviceAccount
}

// sans matches certificates with one of the identities; nobody's, where there
// is none: no matcher at all would match everybody.
func sans(ids []string) []*tls.SubjectAltNameMatcher {
	if len(ids) == 0 {
		ids = []string{noIdentity}
	}
	out := make([]*tls.SubjectAltNameMatcher, 0, len(ids))
	for _, id := range ids {
		out = append(out, &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_URI, Matcher: exact(id)})
	}
	return out
}

// validation is a validation context that comes over SDS under the name, and
// wants one of the matchers besides, if there are any.
func validation(secretName string, matchers ...*tls.SubjectAltNameMatcher) *tls.CommonTlsContext_CombinedValidationContext {
	return &tls.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tls.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tls.CertificateValidationContext{MatchTypedSubjectAltNames: matchers},
			ValidationContextSdsSecretConfig: sds(secretName),
		},
	}
}

func sds(name string) *tls.SdsSecretConfig { return &tls.SdsSecretConfig{Name: name, SdsConfig: ads()} }

// clientTLS is mesh mTLS as its client speaks it. Only the mesh's own ALPN is
// offered: with more of them, HTTP/1 inside fails.
func clientTLS(alpn string, check *tls.CommonTlsContext_CombinedValidationContext) *core.TransportSocket {
	return namingTLS("", alpn, check)
}

// namingTLS is clientTLS that asks for a server name.
func namingTLS(sni, alpn string, check *tls.CommonTlsContext_CombinedValidationContext) *core.TransportSocket {
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(&tls.UpstreamTlsContext{
		Sni: sni,
		CommonTlsContext: &tls.CommonTlsContext{
			TlsParams:                      &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3},
			AlpnProtocols:                  []string{alpn},
			TlsCertificateSdsSecretConfigs: []*tls.SdsSecretConfig{sds(SecretWorkload)},
			ValidationContextType:          check,
		},
	})}}
}

// serverTLS is mesh mTLS as its server speaks it: any workload of the trust
// domain, under any of its names, may connect. ALPN is left to the client, or HTTP/2 inside fails.
func serverTLS(domains []string) *core.TransportSocket {
	return serverOnlyFor(each(domains, func(d string) *tls.SubjectAltNameMatcher {
		return &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_URI, Matcher: prefix("spiffe://" + d + "/")}
	}))
}

// serverOnlyFor is serverTLS for those whom a matcher matches. No session is resumed: Envoy
// would not verify the client's certificate anew, which may have ended since.
func serverOnlyFor(peers []*tls.SubjectAltNameMatcher) *core.TransportSocket {
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: typed(&tls.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		SessionTicketKeysType:    &tls.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
		CommonTlsContext: &tls.CommonTlsContext{
			TlsParams:                      &tls.TlsParameters{TlsMinimumProtocolVersion: tls.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tls.TlsParameters_TLSv1_3},
			TlsCertificateSdsSecretConfigs: []*tls.SdsSecretConfig{sds(SecretWorkload)},
			ValidationContextType:          validation(SecretRoots, peers...),
		},
	})}}
}
