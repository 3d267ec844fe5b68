package apitest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// auditPolicy has the API server write down what service accounts ask for, and what it
// decides (https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/).
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: ["system:serviceaccounts"]
  - level: None
`

// Audit is what an API server has written down of who asked for what.
type Audit struct{ log string }

// StartAudited is [StartWith], of an API server that writes down what service accounts
// ask of it. Clients that are first made afterwards, in this process or those that it
// starts, list what they watch, as they do of an API server that cannot stream lists
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#streaming-lists).
func StartAudited(t testing.TB, configure func(*envtest.Environment)) (*rest.Config, *Audit) {
	t.Helper()
	t.Setenv("KUBE_FEATURE_WatchListClient", "false")
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &Audit{log: filepath.Join(dir, "audit.log")}
	config := StartWith(t, func(e *envtest.Environment) {
		configure(e)
		e.ControlPlane.GetAPIServer().Configure().Set("audit-policy-file", policy).Set("audit-log-path", a.log)
	})
	return config, a
}

// request is one that was made, of an entry of the log.
type request struct {
	verb, url                      string
	group, resource, namespace, of string // resource has the subresource in it
	forbidden                      bool
}

func (r request) String() string {
	if r.resource == "" {
		return r.verb + " " + r.url
	}
	return fmt.Sprintf("%s %s %q in namespace %q", r.verb, kind(r.group, r.resource), r.of, r.namespace)
}

// requests are those of a user, each kind of them once.
func (a *Audit) requests(user string) (map[request]struct{}, error) {
	f, err := os.Open(a.log)
	if err != nil {
		return nil, fmt.Errorf("reading what the API server was asked: %w", err)
	}
	defer func() { _ = f.Close() }()
	out := map[request]struct{}{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			User       struct{ Username string }
			Verb       string
			RequestURI string
			ObjectRef  *struct{ APIGroup, Resource, Subresource, Namespace, Name string }

			ResponseStatus *struct{ Code int }
			Annotations    map[string]string
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // the last one may be half written
		}
		if e.User.Username != user {
			continue
		}
		r := request{verb: e.Verb, forbidden: e.Annotations["authorization.k8s.io/decision"] == "forbid"}
		if o := e.ObjectRef; o != nil {
			r.group, r.resource, r.namespace, r.of = o.APIGroup, o.Resource, o.Namespace, o.Name
			if o.Subresource != "" {
				r.resource += "/" + o.Subresource
			}
		} else {
			r.url, _, _ = strings.Cut(e.RequestURI, "?")
		}
		out[r] = struct{}{}
		if e.Verb == "patch" && e.ResponseStatus != nil && e.ResponseStatus.Code == http.StatusCreated {
			// An object that is applied and was not there is created, which has to be
			// permitted besides.
			r.verb = "create"
			out[r] = struct{}{}
		}
	}
	return out, lines.Err()
}

// permission is one verb of one rule.
type permission struct {
	by                    string // the role
	verb, group, resource string
	names                 []string // none: of all
	namespace             string   // "": in all, or the resource is in none
	url                   string
}

func kind(group, resource string) string {
	if group == "" {
		return resource
	}
	return resource + "." + group
}

func (p permission) String() string {
	what := p.url
	if what == "" {
		what = kind(p.group, p.resource)
	}
	if len(p.names) > 0 {
		what += fmt.Sprintf(" %q", p.names)
	}
	return fmt.Sprintf("%s: %s %s", p.by, p.verb, what)
}

// allows reports whether it is what the request needed.
func (p permission) allows(r request) bool {
	if p.verb != r.verb || p.url != r.url {
		return false
	}
	return p.url != "" || p.group == r.group && p.resource == r.resource &&
		(p.namespace == "" || p.namespace == r.namespace) && (len(p.names) == 0 || slices.Contains(p.names, r.of))
}

// covers reports whether whoever has p needs no q.
func (p permission) covers(q permission) bool {
	return p.verb == q.verb && p.url == q.url && p.group == q.group && p.resource == q.resource &&
		(p.namespace == "" || p.namespace == q.namespace) &&
		(len(p.names) == 0 || len(q.names) > 0 && !slices.ContainsFunc(q.names, func(n string) bool { return !slices.Contains(p.names, n) }))
}

// Complaints says, in words, how what a service account has asked for until now differs
// from what it is permitted by the roles that are bound to it by name: what it was
// refused, and of what it is permitted what it has not used, what it has twice, and what
// it used in its own namespace alone and may do in all.
func (a *Audit) Complaints(ctx context.Context, config *rest.Config, namespace, account string) ([]string, error) {
	permissions, err := permissionsOf(ctx, config, namespace, account)
	if err != nil {
		return nil, err
	}
	if len(permissions) == 0 {
		return nil, fmt.Errorf("no role is bound to service account %s/%s", namespace, account)
	}
	requests, err := a.requests("system:serviceaccount:" + namespace + ":" + account)
	if err != nil {
		return nil, err
	}
	var out []string
	for r := range requests {
		if r.forbidden {
			out = append(out, "refused: "+r.String())
		}
	}
	for i, p := range permissions {
		used, elsewhere := false, false
		for r := range requests {
			if p.allows(r) {
				used, elsewhere = true, elsewhere || r.namespace != namespace
			}
		}
		switch {
		case !used:
			out = append(out, "not used: "+p.String())
		case !elsewhere && p.namespace == "" && p.url == "":
			out = append(out, "used in its own namespace alone: "+p.String())
		}
		for j, q := range permissions {
			// What a role has of all objects, and another one of some, they have because
			// the one is not always there.
			if i != j && q.covers(p) && (p.covers(q) && i > j || !p.covers(q) && p.by == q.by) {
				out = append(out, fmt.Sprintf("there twice: %s, and %s", p, q))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// permissionsOf are those of all roles that are bound to the service account by name.
func permissionsOf(ctx context.Context, config *rest.Config, namespace, account string) ([]permission, error) {
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	api := clients.RbacV1()
	bound := func(subjects []rbacv1.Subject) bool {
		return slices.ContainsFunc(subjects, func(s rbacv1.Subject) bool {
			return s.Kind == rbacv1.ServiceAccountKind && s.Namespace == namespace && s.Name == account
		})
	}
	var out []permission
	cluster, err := api.ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, b := range cluster.Items {
		if !bound(b.Subjects) {
			continue
		}
		role, err := api.ClusterRoles().Get(ctx, b.RoleRef.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		out = append(out, permissions("ClusterRole "+role.Name, "", role.Rules)...)
	}
	local, err := api.RoleBindings(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, b := range local.Items {
		if !bound(b.Subjects) {
			continue
		}
		role, err := api.Roles(b.Namespace).Get(ctx, b.RoleRef.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err // a ClusterRole bound in a namespace is none of ours
		}
		out = append(out, permissions("Role "+role.Name, b.Namespace, role.Rules)...)
	}
	return out, nil
}

func permissions(by, namespace string, rules []rbacv1.PolicyRule) []permission {
	var out []permission
	for _, rule := range rules {
		for _, verb := range rule.Verbs {
			for _, url := range rule.NonResourceURLs {
				out = append(out, permission{by: by, verb: verb, url: url})
			}
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					out = append(out, permission{by: by, verb: verb, group: group, resource: resource, names: rule.ResourceNames, namespace: namespace})
				}
			}
		}
	}
	return out
}
