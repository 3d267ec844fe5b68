package webhook

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func (c *checks) policy(p *v1alpha1.MeshPolicy) {
	spec := field.NewPath("spec")
	if s := p.Spec.Selector; s != nil {
		c.labels(spec.Child("selector", "matchLabels"), s.MatchLabels)
	}
	edge := false
	for i, t := range p.Spec.TargetRefs {
		at := spec.Child("targetRefs").Index(i)
		if t.Group == "" {
			c.serviceName(at.Child("name"), t.Name)
		}
		edge = edge || t.Kind == "Gateway"
		if t.Namespace != "" {
			c.namespace(at.Child("namespace"), t.Namespace)
		}
	}
	if t := p.Spec.TLS; t != nil {
		c.endedTLS(spec.Child("tls"), t, p.Namespace)
	}
	if j := p.Spec.JWT; j != nil {
		c.jwt(spec.Child("jwt"), j)
	}
	if a := p.Spec.Authorization; a != nil {
		for i, rule := range a.Rules {
			c.rule(spec.Child("authorization", "rules").Index(i), rule, edge)
			for j, s := range rule.From {
				c.atGateway(edge, spec.Child("authorization", "rules").Index(i).Child("from").Index(j), s)
			}
		}
	}
	if l := p.Spec.RateLimit; l != nil {
		c.rateLimit(spec.Child("rateLimit"), l)
		for i, rule := range l.Rules {
			for j, s := range rule.From {
				c.atGateway(edge, spec.Child("rateLimit", "rules").Index(i).Child("from").Index(j), s)
			}
		}
	}
	if t := p.Spec.Traffic; t != nil && t.Fault != nil {
		c.headers(spec.Child("traffic", "fault", "headers"), t.Fault.Headers, "the fault")
	}
	if t := p.Spec.Traffic; t != nil && t.Timeout != nil && t.Timeout.Duration > 0 && t.Retries != nil && t.Retries.PerTryTimeout != nil {
		if try := t.Retries.PerTryTimeout.Duration; try >= t.Timeout.Duration {
			c.warn(spec.Child("traffic", "retries", "perTryTimeout"),
				"an attempt may take %s, and the request with all its attempts %s: no attempt that times out is followed by another", try, t.Timeout.Duration)
		}
	}
}

func (c *checks) endedTLS(at *field.Path, t *v1alpha1.TLS, namespace string) {
	if namespace == c.root {
		c.problems = append(c.problems, field.Forbidden(at, fmt.Sprintf(
			"a policy of %s is about the whole mesh, and tls about workloads of the policy's own namespace, where its Secret is: write it in their namespace", namespace)))
	}
	own := func(at *field.Path, port int32) {
		if port >= portFirst && port <= portLast {
			c.refuse(at, port, "ports %d to %d are the sidecar's own: write one of the application's", portFirst, portLast)
		}
	}
	for i, p := range t.Ports {
		at := at.Child("ports").Index(i)
		own(at.Child("port"), p.Port)
		own(at.Child("targetPort"), p.TargetPort)
	}
}

func (c *checks) rateLimit(at *field.Path, l *v1alpha1.RateLimit) {
	for i, r := range l.Rules {
		at := at.Child("rules").Index(i)
		if n := r.TextBytes(); n > mesh.MaxRateLimitText {
			c.refuse(at, n, "the rule compares with %d bytes of text, and proxies take %d: write fewer or shorter entries, or two rules", n, mesh.MaxRateLimitText)
		}
		for j, s := range r.From {
			c.source(at.Child("from").Index(j), s)
		}
		for j, o := range r.To {
			headers := make([]v1alpha1.HeaderMatch, len(o.Headers))
			for k, h := range o.Headers {
				headers[k] = v1alpha1.HeaderMatch{Name: h.Name, Value: h.Value}
			}
			c.headers(at.Child("to").Index(j).Child("headers"), headers, "the entry")
		}
	}
}

func (c *checks) labels(at *field.Path, labels map[string]v1alpha1.LabelValue) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		for _, problem := range content.IsLabelKey(key) {
			c.refuse(at.Key(key), key, "no pod can have a label of this name: %s", problem)
		}
		if mesh.RevisionLabel(key) {
			c.refuse(at.Key(key), key, "this label differs from one rollout to the next: name a label of the workload, such as app")
		}
	}
}

// atGateway warns of what no caller of a Gateway has.
func (c *checks) atGateway(edge bool, at *field.Path, s v1alpha1.Source) {
	if edge && len(s.Identities)+len(s.TrustDomains)+len(s.Namespaces)+len(s.ServiceAccounts) > 0 {
		c.warn(at, "callers of a Gateway are outside of the mesh and have no identity in it, but at listeners of the protocol mesh.tulle.dev/Egress: elsewhere this entry never matches, in a Deny rule either; tell them apart by ipBlocks, or put the rule into a policy about workloads")
	}
}

// maxIdentity is the length in bytes that a SPIFFE ID may have (SPIFFE-ID,
// section 2.3).
const maxIdentity = 2048

// identity checks a SPIFFE ID, or the beginning of one when it ends in '*', by
// the rules of SPIFFE-ID, section 2: one that breaks them matches nobody, which
// in a Deny rule would go unnoticed.
func (c *checks) identity(at *field.Path, text string) {
	const form = "write spiffe://<trust domain>/ns/<namespace>/sa/<service account>, such as spiffe://cluster.local/ns/shop/sa/web"
	id, open := strings.CutSuffix(text, "*")
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		c.refuse(at, text, "this is not a SPIFFE ID: %s", form)
		return
	}
	domain, path, hasPath := strings.Cut(rest, "/")
	switch {
	case len(id) > maxIdentity:
		c.refuse(at, text, "a SPIFFE ID has %d bytes at most", maxIdentity)
	case domain == "" && open:
		c.refuse(at, text, "this matches every identity of every trust domain: name the trust domain, such as spiffe://cluster.local/*")
	case domain == "":
		c.refuse(at, text, "a SPIFFE ID names its trust domain: %s", form)
	case !only(domain, domainBytes):
		c.refuse(at, text, "the trust domain %q may have lower-case letters, digits, '.', '-' and '_', and no port: %s", domain, form)
	case !hasPath && open:
		c.refuse(at, text, "this matches other trust domains too, whose names begin with %q: put a '/' before the '*'", domain)
	case !hasPath:
		c.refuse(at, text, "a trust domain alone is nobody's identity: %s; or end it in \"/*\" for all of the trust domain", form)
	default:
		c.identityPath(at, text, path, open)
	}
}

const (
	domainBytes  = "abcdefghijklmnopqrstuvwxyz0123456789.-_"
	segmentBytes = domainBytes + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// identityPath checks what follows the trust domain; open says that more may
// follow.
func (c *checks) identityPath(at *field.Path, text, path string, open bool) {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == "" && last && open:
			return // ends in "/*": whole segments follow
		case s == "" && last:
			c.refuse(at, text, "a SPIFFE ID does not end in '/': leave it out, or end in \"/*\" for all below it")
		case s == "":
			c.refuse(at, text, "a SPIFFE ID has no empty segment: leave out one '/'")
		case s == "." || s == "..":
			c.refuse(at, text, "a SPIFFE ID has no segment %q", s)
		case !only(s, segmentBytes):
			c.refuse(at, text, "the segment %q may have letters, digits, '.', '-' and '_'", s)
		case last && open:
			c.warn(at, "%s matches every identity that begins so, those with %q as well: end it in \"/*\" to match what is below %q alone", text, s+"2", s)
		}
	}
}

// only reports whether s is made of the given bytes.
func only(s, bytes string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(bytes, r) })
}

// serviceName checks the name of a Service.
func (c *checks) serviceName(at *field.Path, name string) {
	for _, problem := range validation.IsDNS1123Label(name) {
		c.refuse(at, name, "no Service can have this name: %s", problem)
	}
}

func (c *checks) namespace(at *field.Path, name string) {
	for _, problem := range validation.IsDNS1123Label(name) {
		c.refuse(at, name, "no namespace can have this name: %s", problem)
	}
}
