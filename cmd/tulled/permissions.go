package main

// Permissions are asked for beside the code that needs them, in the form of
// markers from which make generate writes deploy/base/rbac/role.yaml. Those here
// are what wiring the parts needs, and no part alone.
//
// Leader election:
//
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=tulle-system,resources=leases,verbs=create
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=tulle-system,resources=leases,resourceNames=tulled,verbs=get;update
//
// Verifying the tokens of proxies, by the API server's published keys, and by
// asking it where those do not tell:
//
// +kubebuilder:rbac:urls=/openid/v1/jwks;/.well-known/openid-configuration,verbs=get
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
