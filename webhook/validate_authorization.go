package webhook

import (
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

// rule checks one; edge says that it is for a Gateway, where all is HTTP and clients are
// heard themselves.
func (c *checks) rule(at *field.Path, r v1alpha1.AuthorizationRule, edge bool) {
	allows := r.Action == "" || r.Action == v1alpha1.AuthorizationAllow
	refuses := !allows && r.Action != v1alpha1.AuthorizationAudit
	for i, s := range r.From {
		at := at.Child("from").Index(i)
		c.source(at, s)
		named := len(s.Identities) > 0 || len(s.TrustDomains) > 0 || len(s.Namespaces) > 0 || len(s.ServiceAccounts) > 0
		if !edge && allows && len(s.RemoteIPBlocks)+len(s.NotRemoteIPBlocks) > 0 && !named {
			c.warn(at, "any workload of the mesh that calls without a gateway can say that it calls for such a client: name the gateway's service account in serviceAccounts as well")
		}
	}
	for i, o := range r.To {
		at := at.Child("to").Index(i)
		c.operation(at, o)
		if !edge && refuses && len(o.Ports) == 0 && hasHTTP(o) {
			c.warn(at, "of connections that are not HTTP nobody knows this, so that the rule refuses them all: name the ports of HTTP in ports")
		}
	}
	if r.When != nil {
		c.condition(at.Child("when"), *r.When)
		ports := slices.ContainsFunc(r.To, func(o v1alpha1.Operation) bool { return len(o.Ports) > 0 })
		if !edge && refuses && len(r.When.Claims) > 0 && !ports {
			c.warn(at.Child("when", "claims"), "connections that are not HTTP have no tokens, so that the rule refuses them all: name the ports of HTTP in to")
		}
		if !edge && refuses && len(r.When.Headers) > 0 && !ports {
			c.warn(at.Child("when", "headers"), "connections that are not HTTP have none, so that the rule refuses them all: name the ports of HTTP in to")
		}
	}
}

func hasHTTP(o v1alpha1.Operation) bool {
	return len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths)+len(o.Hosts)+len(o.NotHosts)+len(o.GRPC) > 0
}

func (c *checks) source(at *field.Path, s v1alpha1.Source) {
	for i, id := range s.Identities {
		c.identity(at.Child("identities").Index(i), id)
	}
	for i, id := range s.NotIdentities {
		c.identity(at.Child("notIdentities").Index(i), id)
	}
	for _, list := range []struct {
		name       string
		principals []string
	}{{"requestPrincipals", s.RequestPrincipals}, {"notRequestPrincipals", s.NotRequestPrincipals}} {
		for i, p := range list.principals {
			if _, problem := mesh.ParseRequestPrincipal(p); problem != "" {
				c.refuse(at.Child(list.name).Index(i), p, "%s", problem)
			}
		}
	}
	for _, list := range []struct {
		name   string
		blocks []string
	}{
		{"ipBlocks", s.IPBlocks},
		{"notIpBlocks", s.NotIPBlocks},
		{"remoteIpBlocks", s.RemoteIPBlocks},
		{"notRemoteIpBlocks", s.NotRemoteIPBlocks},
	} {
		for i, block := range list.blocks {
			c.prefix(at.Child(list.name).Index(i), block, "10.0.0.0/8, or 192.0.2.7/32 for one address")
		}
	}
}

// method is as the CRD has it of methods.
var method = regexp.MustCompile(`^[A-Z][A-Z_-]*$`)

func (c *checks) operation(at *field.Path, o v1alpha1.Operation) {
	for i, m := range o.NotMethods {
		if !method.MatchString(m) {
			c.refuse(at.Child("notMethods").Index(i), m, "an HTTP method is written in capitals: GET, POST, PUT")
		}
	}
	for i, p := range o.Paths {
		if mesh.IsPathTemplate(p) {
			c.path(at.Child("paths").Index(i), p)
		}
	}
	for i, p := range o.NotPaths {
		c.path(at.Child("notPaths").Index(i), p)
	}
	for i, h := range o.Hosts {
		if problem := mesh.HostProblem(h); problem != "" {
			c.refuse(at.Child("hosts").Index(i), h, "%s", problem)
		}
	}
	for i, h := range o.NotHosts {
		at := at.Child("notHosts").Index(i)
		if problem := mesh.HostProblem(h); problem != "" {
			c.refuse(at, h, "%s", problem)
		}
		c.open(at, h, "*.example or shop.*")
		if strings.ContainsAny(h, "/:") {
			c.refuse(at, h, "a host has no scheme, port or path: write shop.example, and the port in notPorts")
		}
	}
}

func (c *checks) path(at *field.Path, p string) {
	if strings.ContainsAny(p, "?#") {
		c.refuse(at, p, "a path has no query and no fragment: leave out '?' or '#' and what follows")
		return
	}
	if mesh.IsPathTemplate(p) {
		if _, problem := mesh.PathTemplate(p); problem != "" {
			c.refuse(at, p, "%s", problem)
		}
		return
	}
	if !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "*") {
		c.refuse(at, p, "a path begins with '/', or with '*' for a suffix: write /cart, /cart/* or *.png")
	}
	c.open(at, p, "/cart/* or *.png")
}

// open refuses a '*' that is not alone at the beginning or the end.
func (c *checks) open(at *field.Path, text, example string) {
	if n := strings.Count(text, "*"); n > 1 || n == 1 && !strings.HasPrefix(text, "*") && !strings.HasSuffix(text, "*") {
		c.refuse(at, text, "one '*' at most, at the beginning or the end: write %s", example)
	}
}

func (c *checks) condition(at *field.Path, w v1alpha1.Condition) {
	seen := map[string]bool{}
	for i, h := range w.Headers {
		at := at.Child("headers").Index(i)
		if problem := mesh.HeaderProblem(h.Name); problem != "" {
			c.refuse(at.Child("name"), h.Name, "%s", problem)
		}
		if name := strings.ToLower(h.Name); seen[name] {
			c.refuse(at.Child("name"), h.Name, "the rule names this header twice, and names of headers are the same in any case: write one entry with all values")
		} else {
			seen[name] = true
		}
		c.values(at, h.Values, h.NotValues, "admin*, *-admin or *", func(at *field.Path, v string) {
			if problem := mesh.ValueProblem(v); problem != "" {
				c.refuse(at, v, "%s", problem)
			}
		})
	}
	for i, claim := range w.Claims {
		c.values(at.Child("claims").Index(i), claim.Values, claim.NotValues, "admin*, *-admin or *", func(*field.Path, string) {})
	}
	if w.SNI != nil {
		c.values(at.Child("sni"), w.SNI.Values, w.SNI.NotValues, "*.example or shop.*", func(at *field.Path, v string) {
			name := strings.Trim(strings.ToLower(strings.Trim(v, "*")), ".")
			if name != "" && len(validation.IsDNS1123Subdomain(name)) > 0 {
				c.refuse(at, v, "no client asks for such a name: write that of a server, such as shop.example")
			}
		})
	}
}

func (c *checks) values(at *field.Path, values, not []string, example string, check func(*field.Path, string)) {
	for i, v := range values {
		c.open(at.Child("values").Index(i), v, example)
		check(at.Child("values").Index(i), v)
	}
	for i, v := range not {
		c.open(at.Child("notValues").Index(i), v, example)
		check(at.Child("notValues").Index(i), v)
	}
}
