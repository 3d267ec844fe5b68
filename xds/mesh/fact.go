package mesh

// Fact is something that a target can have read and that a change can make
// different: an entity, a name under which there is nothing, or a bucket of an
// index (an empty one too).
type Fact struct {
	Kind FactKind
	Name string
}

// FactKind is a kind of fact; its comment says what Name is.
type FactKind uint8

// The kinds of facts.
const (
	FactConfig        FactKind = iota // ""
	FactTrust                         // ""
	FactSniffing                      // "": which ports are opaque, see [Sniffing]
	FactService                       // namespace/name
	FactServices                      // namespace: the selectors and ports of its services
	FactEndpoints                     // namespace/service: all its slices
	FactVIP                           // address:port of a service
	FactWorkload                      // namespace/name
	FactAddress                       // address of a pod
	FactProfile                       // profile id
	FactPolicy                        // namespace/name
	FactMTLS                          // namespace: its policies with an mtls section
	FactTLS                           // namespace: its policies with a tls section
	FactAuthorization                 // namespace: its policies with an authorization section
	FactJWT                           // namespace: its policies with a jwt section
	FactRateLimit                     // namespace: its policies with a rateLimit section
	FactTraffic                       // namespace: its policies with a traffic section
	FactSplit                         // namespace/name
	FactSplits                        // namespace/service: the splits whose root it is
	FactRoute                         // kind/namespace/name
	FactRoutes                        // namespace/service, or gateway|namespace/name: the routes that have it as a parent
	FactGrants                        // namespace: its grants
	FactNode                          // name of a node
	FactGateway                       // namespace/name
	FactClass                         // name of a class
	FactNamespace                     // name: its labels
	FactCertificate                   // namespace/name
	FactExternal                      // namespace/name
	FactExternals                     // namespace: its external services
	FactEgress                        // namespace/name of a gateway: the external services that name it
	FactBackendTLS                    // namespace: its BackendTLSPolicies
	FactBundle                        // namespace/name
	FactBackend                       // namespace/service: the routes that send something to it
	FactKeys                          // KeysName: its key sets
)

// facts collects what a change made different.
type facts map[Fact]struct{}

func (f facts) add(k FactKind, name string) { f[Fact{k, name}] = struct{}{} }

func (f facts) addIf(changed bool, k FactKind, name string) {
	if changed {
		f.add(k, name)
	}
}
