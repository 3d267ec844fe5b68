package deploy_test

import (
	"fmt"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// permission is one thing that the control plane's service account may do, or
// must not be able to.
type permission struct {
	verb, group, resource, subresource, namespace, name string
}

func (p permission) String() string {
	return fmt.Sprintf("%s %s/%s/%s in %q named %q", p.verb, p.group, p.resource, p.subresource, p.namespace, p.name)
}

// needed is what the control plane does in the course of its life.
func needed() []permission {
	var all []permission
	for _, verb := range []string{"list", "watch"} {
		for group, resources := range map[string][]string{
			"":                  {"pods", "services", "namespaces", "nodes"},
			"discovery.k8s.io":  {"endpointslices"},
			"networking.k8s.io": {"servicecidrs"},
			"mesh.tulle.dev":    {"meshpolicies", "trafficsplits", "externalservices", "meshconfigs"},
		} {
			for _, resource := range resources {
				all = append(all, permission{verb: verb, group: group, resource: resource})
			}
		}
		// By name, as a field selector has it.
		all = append(all, permission{verb: verb, resource: "configmaps", name: "tulle-trust"})
	}
	for _, resource := range []string{"meshpolicies", "trafficsplits", "externalservices", "meshconfigs"} {
		all = append(all, permission{verb: "patch", group: "mesh.tulle.dev", resource: resource, subresource: "status", namespace: "shop"})
	}
	for _, resource := range []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"} {
		for _, verb := range []string{"list", "watch"} {
			all = append(all, permission{verb: verb, group: "admissionregistration.k8s.io", resource: resource})
		}
		all = append(all, permission{verb: "update", group: "admissionregistration.k8s.io", resource: resource, name: "tulle"})
	}
	return append(
		all,
		permission{verb: "create", group: "events.k8s.io", resource: "events", namespace: "shop"},
		permission{verb: "patch", group: "events.k8s.io", resource: "events", namespace: "shop"},
		permission{verb: "create", resource: "configmaps", namespace: "shop"},
		permission{verb: "update", resource: "configmaps", namespace: "shop", name: "tulle-trust"},
		// One that somebody made immutable is made anew.
		permission{verb: "delete", resource: "configmaps", namespace: "shop", name: "tulle-trust"},
		permission{verb: "get", resource: "namespaces", name: "shop"},
		permission{verb: "create", resource: "secrets", namespace: "tulle-system"},
		permission{verb: "get", resource: "secrets", namespace: "tulle-system", name: "tulle-ca"},
		permission{verb: "watch", resource: "secrets", namespace: "tulle-system", name: "tulle-ca"},
		permission{verb: "update", resource: "secrets", namespace: "tulle-system", name: "tulle-ca"},
		permission{verb: "get", resource: "secrets", namespace: "tulle-system", name: "tulle-ca-issuer"},
		permission{verb: "create", group: "cert-manager.io", resource: "certificaterequests", namespace: "tulle-system"},
		permission{verb: "get", group: "cert-manager.io", resource: "certificaterequests", namespace: "tulle-system", name: "tulle-1"},
		permission{verb: "list", group: "cert-manager.io", resource: "certificaterequests", namespace: "tulle-system"},
		permission{verb: "watch", group: "cert-manager.io", resource: "certificaterequests", namespace: "tulle-system"},
		permission{verb: "delete", group: "cert-manager.io", resource: "certificaterequests", namespace: "tulle-system", name: "tulle-1"},
		permission{verb: "get", group: "cert-manager.io", resource: "issuers", namespace: "tulle-system", name: "mesh"},
		permission{verb: "get", group: "cert-manager.io", resource: "clusterissuers", name: "mesh"},
		permission{verb: "delete", resource: "secrets", namespace: "tulle-system", name: "tulle-ca-request"},
		permission{verb: "create", group: "coordination.k8s.io", resource: "leases", namespace: "tulle-system"},
		permission{verb: "get", group: "coordination.k8s.io", resource: "leases", namespace: "tulle-system", name: "tulled"},
		permission{verb: "update", group: "coordination.k8s.io", resource: "leases", namespace: "tulle-system", name: "tulled"},
		permission{verb: "create", group: "authentication.k8s.io", resource: "tokenreviews"},
	)
}

// forbidden is what an attacker who got hold of the control plane would like.
func forbidden() []permission {
	return []permission{
		{verb: "get", resource: "secrets", namespace: "shop", name: "tulle-ca"},
		{verb: "get", resource: "secrets", namespace: "tulle-system", name: "other"},
		{verb: "update", resource: "secrets", namespace: "tulle-system", name: "tulle-ca-issuer"},
		{verb: "update", group: "mesh.tulle.dev", resource: "meshconfigs"},
		{verb: "list", resource: "secrets", namespace: "tulle-system"},
		{verb: "list", resource: "secrets"},
		{verb: "delete", resource: "secrets", namespace: "tulle-system", name: "tulle-ca"},
		{verb: "get", resource: "secrets", namespace: "tulle-system", name: "tulle-ca-request"},
		{verb: "create", group: "cert-manager.io", resource: "certificaterequests", namespace: "shop"},
		{verb: "list", group: "cert-manager.io", resource: "certificaterequests"},
		{verb: "update", group: "cert-manager.io", resource: "certificaterequests", subresource: "status", namespace: "tulle-system"},
		{verb: "update", group: "cert-manager.io", resource: "certificaterequests", subresource: "approval", namespace: "tulle-system"},
		{verb: "approve", group: "cert-manager.io", resource: "signers"},
		{verb: "list", group: "cert-manager.io", resource: "issuers", namespace: "tulle-system"},
		{verb: "update", group: "cert-manager.io", resource: "issuers", namespace: "tulle-system"},
		{verb: "create", group: "cert-manager.io", resource: "certificates", namespace: "tulle-system"},
		{verb: "get", resource: "configmaps", namespace: "shop", name: "other"},
		{verb: "list", resource: "configmaps"},
		{verb: "update", resource: "configmaps", namespace: "shop", name: "other"},
		{verb: "patch", resource: "configmaps", namespace: "kube-system", name: "kube-root-ca.crt"},
		{verb: "delete", resource: "configmaps", namespace: "shop", name: "other"},
		{verb: "create", resource: "pods", namespace: "shop"},
		{verb: "create", resource: "pods", subresource: "exec", namespace: "shop"},
		{verb: "patch", resource: "pods", namespace: "shop"},
		{verb: "create", resource: "serviceaccounts", subresource: "token", namespace: "shop"},
		{verb: "impersonate", resource: "serviceaccounts", namespace: "shop"},
		{verb: "update", resource: "namespaces", name: "shop"},
		{verb: "update", group: "mesh.tulle.dev", resource: "meshpolicies", namespace: "shop"},
		{verb: "delete", group: "mesh.tulle.dev", resource: "meshpolicies", namespace: "shop"},
		{verb: "update", group: "coordination.k8s.io", resource: "leases", namespace: "kube-system", name: "kube-scheduler"},
		{verb: "update", group: "coordination.k8s.io", resource: "leases", namespace: "tulle-system", name: "other"},
		{verb: "update", group: "admissionregistration.k8s.io", resource: "mutatingwebhookconfigurations", name: "other"},
		{verb: "create", group: "admissionregistration.k8s.io", resource: "mutatingwebhookconfigurations"},
		{verb: "delete", group: "admissionregistration.k8s.io", resource: "mutatingwebhookconfigurations", name: "tulle"},
		{verb: "bind", group: "rbac.authorization.k8s.io", resource: "clusterroles"},
		{verb: "escalate", group: "rbac.authorization.k8s.io", resource: "clusterroles"},
	}
}

func testPermissions(t *testing.T, config *rest.Config) {
	for _, p := range needed() {
		if !mayDo(t, config, p) {
			t.Errorf("the control plane may not %s", p)
		}
	}
	for _, p := range forbidden() {
		if mayDo(t, config, p) {
			t.Errorf("the control plane may %s", p)
		}
	}
	asControlPlane := rest.CopyConfig(config)
	asControlPlane.Impersonate = rest.ImpersonationConfig{UserName: controlPlaneUser(), Groups: []string{"system:authenticated"}}
	clients := kubernetes.NewForConfigOrDie(asControlPlane)
	for _, path := range []string{"/openid/v1/jwks", "/.well-known/openid-configuration"} {
		if err := clients.RESTClient().Get().AbsPath(path).Do(t.Context()).Error(); err != nil {
			t.Errorf("the control plane cannot read the token issuer's %s: %v", path, err)
		}
	}
	// The form in which a cache reads the trust bundles of all namespaces.
	maps := clients.CoreV1().ConfigMaps(metav1.NamespaceAll)
	if _, err := maps.List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=tulle-trust"}); err != nil {
		t.Errorf("listing the trust bundles by name: %v", err)
	}
	if _, err := maps.List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing all ConfigMaps: %v", err)
	}
	if _, err := clients.CoreV1().Secrets(corev1.NamespaceDefault).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing Secrets: %v", err)
	}
}

func controlPlaneUser() string { return "system:serviceaccount:tulle-system:tulled" }

func mayDo(t *testing.T, config *rest.Config, p permission) bool {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:   controlPlaneUser(),
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:tulle-system", "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: p.verb, Group: p.group, Resource: p.resource, Subresource: p.subresource, Namespace: p.namespace, Name: p.name,
		},
	}}
	result, err := kubernetes.NewForConfigOrDie(config).AuthorizationV1().SubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("asking whether the control plane may %s: %v", p, err)
	}
	return result.Status.Allowed
}
