package v1alpha1

// ControllerName is the controller of GatewayClasses that are Tulle's, and who writes the
// status of objects of the Gateway API.
const ControllerName = "mesh.tulle.dev/tulle"

// The types of conditions in the status of every kind. Each carries the
// generation of the object that it speaks of.
const (
	// ConditionAccepted says whether the object is understood and in force.
	// Where it is False, the reason and message say what to change.
	ConditionAccepted = "Accepted"
	// ConditionResolvedRefs says whether everything that the object names
	// exists. Kinds and objects that name nothing do not have it.
	ConditionResolvedRefs = "ResolvedRefs"
	// ConditionProgrammed says whether every proxy concerned has acknowledged
	// the configuration that follows from the object.
	ConditionProgrammed = "Programmed"
	// ConditionAuthorityCurrent, of a MeshConfig, says whether the certificate
	// authority is as it ought to be. False while it is rotated, and when it
	// ought to be and is not; the reason says which.
	ConditionAuthorityCurrent = "AuthorityCurrent"
)

// The reasons of conditions.
const (
	// ReasonAccepted is the reason of Accepted=True.
	ReasonAccepted = "Accepted"
	// ReasonInvalid is the reason of Accepted=False where the object contradicts
	// itself, or asks what cannot be, in a way that admission could not see.
	ReasonInvalid = "Invalid"
	// ReasonConflicted is the reason of Accepted=False where another object, of
	// equal standing, speaks about the same thing and wins.
	ReasonConflicted = "Conflicted"
	// ReasonResolvedRefs is the reason of ResolvedRefs=True.
	ReasonResolvedRefs = "ResolvedRefs"
	// ReasonRefNotPermitted is the reason of ResolvedRefs=False where the object
	// names one of another namespace, and no ReferenceGrant there lets it.
	ReasonRefNotPermitted = "RefNotPermitted"
	// ReasonServiceNotFound is the reason of ResolvedRefs=False where a Service
	// that the object names does not exist.
	ReasonServiceNotFound = "ServiceNotFound"
	// ReasonPortNotFound is the reason of ResolvedRefs=False where a Service
	// exists and does not have the port that the object names.
	ReasonPortNotFound = "PortNotFound"
	// ReasonTargetNotFound is the reason of ResolvedRefs=False where a Gateway,
	// listener or route that targetRefs names does not exist, or is not Tulle's.
	ReasonTargetNotFound = "TargetNotFound"
	// ReasonGatewayNotFound is the reason of ResolvedRefs=False where there is no egress
	// gateway of the name.
	ReasonGatewayNotFound = "GatewayNotFound"
	// ReasonAuthorizerNotFound is the reason of ResolvedRefs=False where a Custom
	// rule names an external authorizer that the MeshConfig does not have.
	ReasonAuthorizerNotFound = "AuthorizerNotFound"
	// ReasonKeysNotFound is the reason of ResolvedRefs=False where the public keys of an
	// issuer cannot be had: all of its tokens are refused.
	ReasonKeysNotFound = "KeysNotFound"
	// ReasonKeysIncomplete is the reason of ResolvedRefs=False where some of the public
	// keys of an issuer cannot be used, or the latest cannot be had: the others hold.
	ReasonKeysIncomplete = "KeysIncomplete"
	// ReasonInvalidCertificateRef is the reason of ResolvedRefs=False where a Secret with
	// the certificate for a port is not there or of no use, or Tulle may not see it: TLS
	// of clients is refused at the port.
	ReasonInvalidCertificateRef = "InvalidCertificateRef"
	// ReasonTokensUnknown is the reason of Accepted=False where a rule asks for tokens,
	// and no jwt section holds for the workloads that the policy selects: the rule is
	// against every request.
	ReasonTokensUnknown = "TokensUnknown"
	// ReasonClientUnknown is the reason of Accepted=False where a rule is about the
	// client before the gateways, and the MeshConfig does not say how far
	// X-Forwarded-For is believed: the rule is against every client.
	ReasonClientUnknown = "ClientUnknown"
	// ReasonNotHTTP is the reason of Accepted=True where a rule asks for HTTP
	// attributes on a port that is declared not to be HTTP: it refuses everything
	// there, or allows nothing.
	ReasonNotHTTP = "NotHTTP"
	// ReasonProgrammed is the reason of Programmed=True.
	ReasonProgrammed = "Programmed"
	// ReasonPending is the reason of Programmed=False while proxies have yet to
	// acknowledge.
	ReasonPending = "Pending"
	// ReasonRejected is the reason of Programmed=False where a proxy has refused
	// what it was sent; the message has the proxy's own words.
	ReasonRejected = "Rejected"
	// ReasonNotAccepted is the reason of Programmed=False where the object is not
	// in force as it is written; Accepted says why.
	ReasonNotAccepted = "NotAccepted"
	// ReasonUnknown is the reason of a condition that cannot be told.
	ReasonUnknown = "Unknown"
)

// ProxyCounts says how many running meshed pods run the object's present
// generation. A pod whose proxy is frozen or cut off stays concerned.
type ProxyCounts struct {
	// concerned is the number of running pods whose proxy's configuration depends
	// on the object, whether or not it is connected to the control plane now.
	Concerned int32 `json:"concerned"`
	// programmed is how many of them have acknowledged the configuration that
	// follows from the present generation.
	Programmed int32 `json:"programmed"`
	// rejected is how many of them have refused it, and go on with what they had.
	Rejected int32 `json:"rejected"`
}
