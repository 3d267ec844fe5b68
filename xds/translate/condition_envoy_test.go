package translate

import (
	"net/http"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

func withHeader(h mesh.HeaderCondition) mesh.Condition {
	return mesh.Condition{Headers: []mesh.HeaderCondition{h}}
}

// Of a header that is sent twice, or in another spelling, nobody can say which the
// application will read. What one reading refuses is refused.
func TestHeaderRulesCannotBeTalkedRound(t *testing.T) {
	t.Run("on a connection that knows of the rules", func(t *testing.T) { talkRoundHeaders(t, true) })
	t.Run("on a connection that is older than the rules", func(t *testing.T) { talkRoundHeaders(t, false) })
}

func talkRoundHeaders(t *testing.T, known bool) {
	const name = "x-user-role"
	for what, c := range map[string]struct {
		action          mesh.Action
		header          mesh.HeaderCondition
		passes, refused []string // headers of the request, lines between "|"
	}{
		"a value is refused": {
			mesh.Deny,
			mesh.HeaderCondition{Values: []string{"admin", "root-*", "*-operator"}},
			[]string{"", "x-user-role: user", "x-user-role: administrator", "x-user-role:", "x-user-role: user, guest", "x-user: admin"},
			[]string{
				"x-user-role: admin", "X-USER-ROLE: admin", "x-user-role: root-x", "x-user-role: an-operator", "x-user-role:\tadmin\t",
				"x-user-role: user|x-user-role: admin", "x-user-role: admin|x-user-role: user", "x-user-role: admin|x-user-role:",
				"x-user-role: user,admin", "x-user-role: admin,user", "x-user-role: user , admin , guest", "x-user-role: user,admin,",
				"x-user-role: user, root-x", "x-user-role: an-operator, user", "x-user-role: \xff,admin", "x-user-role: admin,\xff", "x-user-role: root-\xff",
				"x_user_role: admin", "x_user-role: admin", "X-User_Role: admin", "x-user-role: user|x_user_role: admin", "x_user_role: user",
			},
		},
		"any value is refused": {
			mesh.Deny,
			mesh.HeaderCondition{Values: []string{"*"}},
			[]string{"", "x-user: a"},
			[]string{"x-user-role: a", "x-user-role:", "x-user-role: \xff", "x_user_role: a"},
		},
		"all but a value is refused": {
			mesh.Deny,
			mesh.HeaderCondition{NotValues: []string{"user"}},
			[]string{"x-user-role: user", "X-User-Role: user"},
			[]string{"", "x-user-role:", "x-user-role: admin", "x-user-role: user, admin", "x-user-role: user|x-user-role: admin", "x-user-role: user,\xff", "x-user-role: user, user", "x-user-role: User", "x_user_role: user"},
		},
		"a value is let in": {
			mesh.Allow,
			mesh.HeaderCondition{Values: []string{"user", "dev-*"}},
			[]string{"x-user-role: user", "X-User-Role: user", "x-user-role: dev-x", "x-user-role: dev-\xff"},
			[]string{
				"", "x-user-role:", "x-user-role: admin", "x-user-role: User", "x-user-role: user,admin", "x-user-role: user|x-user-role: admin",
				"x-user-role: dev-x,admin", "x-user-role: dev-x|x-user-role: admin", "x-user-role: user,", "x-user-role: user, dev-x", "x-user-role: user|x-user-role: user",
				"x_user_role: user", "x-user-role: user|x_user_role: admin",
			},
		},
		"any value is let in": {
			mesh.Allow,
			mesh.HeaderCondition{Values: []string{"*"}},
			[]string{"x-user-role: a", "x-user-role: \xff"},
			[]string{"", "x-user-role:", "x-user-role: ,", "x_user_role: a", "x-user-role:|x-user-role:"},
		},
		"all but a value is let in": {
			mesh.Allow,
			mesh.HeaderCondition{Values: []string{"*"}, NotValues: []string{"admin", "root-*"}},
			[]string{"x-user-role: user", "x-user-role: administrator"},
			[]string{"", "x-user-role: admin", "x-user-role: user, admin", "x-user-role: user|x-user-role: admin", "x-user-role: \xff,admin", "x-user-role: a,root-\xff", "x_user_role: user"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			c.header.Name = name
			rules := []*mesh.Policy{authorized(mesh.Rule{Action: c.action, When: withHeader(c.header)})}
			before := rules
			if !known {
				before = nil
			}
			app := startApplication(t)
			at := startEnvoyWith(t, app, before, rules)
			try := func(headers string) (int, bool) {
				lines := []string{"GET / HTTP/1.1", "host: web"}
				if headers != "" {
					lines = append(lines, strings.Split(headers, "|")...)
				}
				status := ask(t, at, lines...)
				return status, len(app.take()) > 0
			}
			for _, h := range c.passes {
				if status, seen := try(h); status != 200 || !seen {
					t.Errorf("%q is answered with %d, want 200", h, status)
				}
			}
			for _, h := range c.refused {
				if status, seen := try(h); seen {
					t.Errorf("%q reaches the application (%d)", h, status)
				}
			}
		})
	}
}

// Of what a template may be nothing is too much for Envoy, which would refuse all rules of
// the workload with it.
func TestTheLargestTemplatesAreTaken(t *testing.T) {
	longest := ""
	for n := 1; ; n++ {
		path := strings.Repeat("/*", n) + "/**"
		if _, problem := mesh.PathTemplate(path); problem != "" || len(path) > 512 {
			break
		}
		longest = path
	}
	text := "/" + strings.Repeat("a", 512-1-len(longest)) + longest
	a := startApplication(t)
	at := startEnvoy(t, a, authorized(mesh.Rule{Action: mesh.Deny, To: []mesh.Operation{{Paths: []string{longest, text}}}}))
	a.take()
	if got := ask(t, at, "GET "+strings.ReplaceAll(longest, "*", "a")+" HTTP/1.1", "host: web"); got != http.StatusForbidden {
		t.Errorf("a request that the longest template matches is answered with %d, want 403", got)
	}
}

// A segment of a template is whatever an application may take for one.
func TestTemplatesAndNotFormsHoldForEveryPath(t *testing.T) {
	for what, c := range map[string]struct {
		rule            mesh.Rule
		passes, refused []string
	}{
		"a template is refused": {
			mesh.Rule{Action: mesh.Deny, To: []mesh.Operation{{Paths: []string{"/users/{id}/orders", "/files/**", "/a/*/{rest=**}"}}}},
			[]string{"/users/orders", "/users/1/orders/2", "/users/1/2/orders", "/users/1/orders/", "/files", "/a/b", "/Users/1/orders"},
			[]string{
				"/users/1/orders", "/users/1/orders?x", `/users/"/orders`, "/users/a|b/orders", "/users/{a/orders", "/users/a*b/orders", "/users/a=b/orders",
				"/users/%22/orders", "/users/%c3%a4/orders", "/users/./1/orders", "/users/1%2forders", "/users/\xff/orders", "/users/\xc3\xa4/orders",
				"/files/", "/files/a/b", "/files/\xff", "/a/b/c/d", "/a/b/",
			},
		},
		"a template is let in": {
			mesh.Rule{To: []mesh.Operation{{Paths: []string{"/users/{id}/orders"}}}},
			[]string{"/users/1/orders", "/users/1/orders?a=/b"},
			[]string{"/users/1/orders/2", "/users/1/2/orders", "/users/a%2fb/orders", "/users/../orders", "/"},
		},
		"paths are excepted": {
			mesh.Rule{To: []mesh.Operation{{NotPaths: []string{"/admin", "/admin/*", "/users/{id}/secrets"}}}},
			[]string{"/", "/admins", "/users/1/orders"},
			[]string{"/admin", "/admin?x", "/admin/x", "/%61dmin", "//admin", "/x/../admin", `/users/"/secrets`, "/users/1/./secrets", "/admin/\xff"},
		},
		"methods are excepted": {
			mesh.Rule{To: []mesh.Operation{{NotMethods: []string{"GET"}}}},
			nil,
			[]string{"/"},
		},
		"hosts are excepted": {
			mesh.Rule{To: []mesh.Operation{{NotHosts: []string{"WEB"}}}},
			nil,
			[]string{"/"},
		},
		"other hosts are excepted": {
			mesh.Rule{To: []mesh.Operation{{NotHosts: []string{"*.internal"}, NotMethods: []string{"PUT"}, NotPorts: []uint16{1}}}},
			[]string{"/"},
			nil,
		},
		"a gRPC method is refused": {
			mesh.Rule{Action: mesh.Deny, To: []mesh.Operation{{GRPC: []mesh.GRPCMethod{{Service: "shop.v1.Cart", Method: "Add"}, {Service: "shop.v1.Till"}, {Method: "Reset"}}}}},
			[]string{"/shop.v1.Cart/Get", "/shop.v1.Cart/Add/x", "/shop.v1.Tills/Get", "/Reset", "/shop_v1.Till/Get"},
			[]string{"/shop.v1.Cart/Add", "/shop.v1.Cart/Add?x", "//shop.v1.Cart/Add", "/shop.v1.Till/Any", "/any.Service/Reset", "/shop.v1.Cart/%41dd"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			rules := []*mesh.Policy{authorized(c.rule)}
			for _, known := range []bool{true, false} {
				before := rules
				if !known {
					before = nil
				}
				app := startApplication(t)
				at := startEnvoyWith(t, app, before, rules)
				for _, path := range c.passes {
					if got := ask(t, at, "GET "+path+" HTTP/1.1", "host: web"); got != 200 {
						t.Errorf("known=%t: %s is answered with %d, want 200", known, path, got)
					}
				}
				app.take()
				for _, path := range c.refused {
					status := ask(t, at, "GET "+path+" HTTP/1.1", "host: web")
					if seen := app.take(); len(seen) > 0 {
						t.Errorf("known=%t: %q reaches the application (%d): %q", known, path, status, seen)
					}
				}
			}
		})
	}
}

// Bounds of lists and texts are such that Envoy takes all that they allow.
func TestLongestHeaderRuleIsTakenByEnvoy(t *testing.T) {
	var values []string
	for i := range 16 {
		values = append(values, strings.Repeat(".", 254)+string(rune('a'+i))+"*")
	}
	long := mesh.HeaderCondition{Name: "a-b-c-d-e-f", Values: values, NotValues: values}
	app := startApplication(t)
	at := startEnvoy(t, app, authorized(mesh.Rule{When: withHeader(long)}, mesh.Rule{Action: mesh.Deny, When: withHeader(long)}))
	if got := ask(t, at, "GET / HTTP/1.1", "host: web"); got != http.StatusForbidden {
		t.Errorf("no header: %d, want 403", got)
	}
}
