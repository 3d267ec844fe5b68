package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/version"
)

// Native sidecars are on by default since 1.29 and stable since 1.33 (KEP-753);
// without them there is no mesh. ValidatingAdmissionPolicy, which keeps pods from
// starting outside of it, is stable since 1.30 (KEP-3488).
var (
	oldest = version.MustParseGeneric("1.30.0")
	stable = version.MustParseGeneric("1.33.0")
)

func checkKubernetes(_ context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "Kubernetes"
	info, err := c.client.Discovery().ServerVersion()
	if !to.could(name, err) {
		return
	}
	v, err := version.ParseGeneric(info.GitVersion)
	switch {
	case err != nil:
		to.add(name, unknown, "", "the version %q cannot be read", info.GitVersion)
	case v.LessThan(oldest):
		to.add(name, failed, "upgrade the cluster to "+stable.String()+" or newer", "version %s is older than %s, the first that has what the mesh is built on: native sidecars, and ValidatingAdmissionPolicy", v, oldest)
	case v.LessThan(stable):
		to.add(name, warning, "see that the feature gate SidecarContainers is not switched off", "version %s has native sidecars as a beta", v)
	default:
		to.add(name, fine, "", "version %s has native sidecars", v)
	}
	for _, api := range []string{"admissionregistration.k8s.io/v1", "discovery.k8s.io/v1", "coordination.k8s.io/v1"} {
		if _, err := c.client.Discovery().ServerResourcesForGroupVersion(api); err != nil {
			to.add("APIs", failed, "see what the API server's --runtime-config switches off", "the API server does not serve %s: %v", api, err)
			return
		}
	}
}

func checkNodes(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "nodes"
	nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if !to.could(name, err) {
		return
	}
	var old, ranges []string
	linux := 0
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if n.Status.NodeInfo.OperatingSystem != "" && n.Status.NodeInfo.OperatingSystem != "linux" {
			continue
		}
		linux++
		if v, err := version.ParseGeneric(n.Status.NodeInfo.KubeletVersion); err == nil && v.LessThan(oldest) {
			old = append(old, n.Name)
		}
		if n.Spec.PodCIDR == "" {
			ranges = append(ranges, n.Name)
		}
	}
	switch {
	case linux == 0:
		to.add(name, failed, "add a node", "no node runs Linux")
	case len(old) > 0:
		to.add(name, failed, "upgrade these nodes", "kubelets without native sidecars: %s", list(old, 5))
	case len(ranges) > 0:
		to.add(name, warning, "write the pods' address ranges into the MeshConfig's spec.clusterRanges.pods", "nodes do not tell the address ranges of their pods: %s", list(ranges, 5))
	default:
		to.add(name, fine, "", "%s with native sidecars", count(linux, "node", "nodes"))
	}
}

// right is something that an installation does.
type right struct{ verb, group, resource string }

func checkRights(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "your rights"
	var missing []string
	for _, r := range []right{
		{"create", "", "namespaces"},
		{"create", "", "serviceaccounts"},
		{"create", "", "services"},
		{"create", "apps", "deployments"},
		{"create", "policy", "poddisruptionbudgets"},
		{"create", "apiextensions.k8s.io", "customresourcedefinitions"},
		{"create", "rbac.authorization.k8s.io", "clusterroles"},
		{"create", "rbac.authorization.k8s.io", "clusterrolebindings"},
		{"create", "rbac.authorization.k8s.io", "roles"},
		{"create", "rbac.authorization.k8s.io", "rolebindings"},
		{"create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations"},
		{"create", "admissionregistration.k8s.io", "validatingwebhookconfigurations"},
		{"create", "admissionregistration.k8s.io", "validatingadmissionpolicies"},
		{"create", "admissionregistration.k8s.io", "validatingadmissionpolicybindings"},
	} {
		review, err := c.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: c.meshNamespace, Verb: r.verb, Group: r.group, Resource: r.resource,
			}},
		}, metav1.CreateOptions{})
		if !to.could(name, err) {
			return
		}
		if !review.Status.Allowed {
			missing = append(missing, r.verb+" "+r.resource)
		}
	}
	if len(missing) > 0 {
		to.add(name, failed, "install as somebody who may: --as, --context", "you may not %s, which an installation does", list(missing, 4))
		return
	}
	to.add(name, fine, "", "you may do what an installation does")
}

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// checkDefinitions looks for CRDs of the mesh that store what this version does
// not read.
func checkDefinitions(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name, group = "CRDs", "mesh.tulle.dev"
	client, err := c.objects()
	if !to.could(name, err) {
		return
	}
	crds, err := client.dynamic.Resource(crdResource).List(ctx, metav1.ListOptions{})
	if !to.could(name, err) {
		return
	}
	var found, foreign []string
	for i := range crds.Items {
		crd := &crds.Items[i]
		if g, _, _ := unstructured.NestedString(crd.Object, "spec", "group"); g != group {
			continue
		}
		found = append(found, crd.GetName())
		stored, _, _ := unstructured.NestedStringSlice(crd.Object, "status", "storedVersions")
		if slices.ContainsFunc(stored, func(v string) bool { return v != "v1alpha1" }) {
			foreign = append(foreign, fmt.Sprintf("%s (%s)", crd.GetName(), strings.Join(stored, ", ")))
		}
	}
	switch {
	case len(foreign) > 0:
		to.add(name, failed, "use the version of this program that the objects are of", "objects are stored in a version that this one does not read: %s", list(foreign, 3))
	case len(found) > 0:
		to.add(name, fine, "", "%s of the mesh are there already; they are brought up to date, and objects stay", count(len(found), "CRD", "CRDs"))
	default:
		to.add(name, fine, "", "no CRD of the mesh is there yet")
	}
}

// checkOtherMeshes looks for pods that two meshes would inject.
func checkOtherMeshes(ctx context.Context, c *cluster, to *checks, _ time.Time) {
	const name = "other meshes"
	namespaces, err := c.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if !to.could(name, err) {
		return
	}
	var both []string
	for i := range namespaces.Items {
		n := &namespaces.Items[i]
		other := n.Labels["istio-injection"] == "enabled" || n.Labels["istio.io/rev"] != "" || n.Labels["istio.io/dataplane-mode"] != "" ||
			n.Annotations["linkerd.io/inject"] == "enabled" || n.Labels["kuma.io/sidecar-injection"] == "enabled"
		if other && n.Labels[labelInject] == "enabled" {
			both = append(both, n.Name)
		}
	}
	if len(both) > 0 {
		to.add(name, failed, "take these namespaces out of one of the two", "namespaces are in another mesh, too: %s", list(both, 5))
		return
	}
	to.add(name, fine, "", "no namespace is in two meshes")
}
