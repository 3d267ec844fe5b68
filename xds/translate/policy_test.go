package translate

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// view is of a mesh with the entities.
func view(es ...mesh.Entity) *mesh.View {
	return viewOf(&mesh.Config{
		TrustDomain: "cluster.local", RootNamespace: "tulle-system", MTLS: mesh.MTLSPermissive,
		PodRanges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
	}, es...)
}

func viewOf(c *mesh.Config, es ...mesh.Entity) *mesh.View {
	var cs []mesh.Change
	for _, e := range es {
		cs = append(cs, mesh.Put(e))
	}
	s, _ := mesh.New(c).Apply(cs...)
	return mesh.NewView(s)
}

func mtlsPolicy(namespace, name, app string, age int, m mesh.MTLS) *mesh.Policy {
	p := &mesh.Policy{Meta: mesh.Meta{Name: mesh.Name{Namespace: namespace, Name: name}, Created: time.Unix(int64(-age), 0)}, MTLS: &m}
	if app != "" {
		p.Selector = &mesh.Selector{MatchLabels: map[string]string{"app": app}}
	}
	return p
}

func TestTheMostSpecificModeWinsAndBetweenEqualsTheStricter(t *testing.T) {
	web := map[string]string{"app": "web"}
	strict, permissive, disabled := mesh.MTLS{Mode: mesh.MTLSStrict}, mesh.MTLS{Mode: mesh.MTLSPermissive}, mesh.MTLS{Mode: mesh.MTLSDisabled}
	for name, c := range map[string]struct {
		policies []mesh.Entity
		want     mesh.MTLSMode
	}{
		"none":                        {nil, mesh.MTLSPermissive},
		"mesh":                        {[]mesh.Entity{mtlsPolicy("tulle-system", "m", "", 0, strict)}, mesh.MTLSStrict},
		"namespace over mesh":         {[]mesh.Entity{mtlsPolicy("tulle-system", "m", "", 0, strict), mtlsPolicy("shop", "n", "", 0, disabled)}, mesh.MTLSDisabled},
		"workload over namespace":     {[]mesh.Entity{mtlsPolicy("shop", "n", "", 0, strict), mtlsPolicy("shop", "w", "web", 0, permissive)}, mesh.MTLSPermissive},
		"the mesh's selector too":     {[]mesh.Entity{mtlsPolicy("shop", "n", "", 0, permissive), mtlsPolicy("tulle-system", "w", "web", 0, strict)}, mesh.MTLSStrict},
		"the stricter, not the older": {[]mesh.Entity{mtlsPolicy("shop", "a", "web", 9, disabled), mtlsPolicy("shop", "b", "web", 1, strict)}, mesh.MTLSStrict},
		"another workload's":          {[]mesh.Entity{mtlsPolicy("shop", "o", "other", 0, strict)}, mesh.MTLSPermissive},
		"another namespace's":         {[]mesh.Entity{mtlsPolicy("else", "o", "", 0, strict)}, mesh.MTLSPermissive},
	} {
		if got := mtlsModes("shop", web, view(c.policies...)).at(8080); got != c.want {
			t.Errorf("%s: mode %d, want %d", name, got, c.want)
		}
	}
}

func TestInvalidMTLSIsStrictOnEveryPort(t *testing.T) {
	broken := mtlsPolicy("shop", "broken", "web", 0, mesh.MTLS{})
	broken.Invalid = "it makes no sense"
	open := mesh.MTLS{Ports: map[uint16]mesh.MTLSMode{8080: mesh.MTLSDisabled}}
	for name, other := range map[string]*mesh.Policy{
		"the namespace's port": mtlsPolicy("shop", "n", "", 0, open),
		"the mesh's port":      mtlsPolicy("tulle-system", "n", "", 0, open),
		"its equal's port":     mtlsPolicy("shop", "n", "web", 0, open),
	} {
		v := view(broken, other)
		if got := mtlsModes("shop", map[string]string{"app": "web"}, v).at(8080); got != mesh.MTLSStrict {
			t.Errorf("%s: mode %d, want Strict", name, got)
		}
		if got := mtlsModes("shop", map[string]string{"app": "else"}, view(broken)).at(8080); got != mesh.MTLSPermissive {
			t.Errorf("a workload that the invalid policy does not select has mode %d, want Permissive", got)
		}
	}
}

func TestPortRoundTheSidecarIsSpokenToInTheClear(t *testing.T) {
	w := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}, Meshed: true, Direct: []uint16{9001}}
	v := view()
	if takesMTLS(w, 9001, v) {
		t.Error("mesh mTLS on a port where no sidecar is")
	}
	if !takesMTLS(w, 8080, v) {
		t.Error("no mesh mTLS on a port of the sidecar's")
	}
}

func TestConsumersTrafficPolicyWinsForItsOwnNamespace(t *testing.T) {
	timeout := func(ns, name string, age int, d time.Duration, targets ...mesh.Target) *mesh.Policy {
		return &mesh.Policy{
			Meta:    mesh.Meta{Name: mesh.Name{Namespace: ns, Name: name}, Created: time.Unix(int64(-age), 0)},
			Targets: targets, Traffic: &mesh.Traffic{Timeout: &d},
		}
	}
	reviews := mesh.Name{Namespace: "shop", Name: "reviews"}
	all, one := mesh.Target{Kind: mesh.KindService, Name: reviews}, mesh.Target{Kind: mesh.KindService, Name: reviews, Port: 80}
	v := view(
		timeout("tulle-system", "mesh", 0, 1*time.Second),
		timeout("shop", "namespace", 0, 2*time.Second),
		timeout("shop", "older", 9, 3*time.Second, all),
		timeout("shop", "younger", 1, 4*time.Second, all),
		timeout("shop", "port", 0, 5*time.Second, one),
		timeout("front", "consumer", 0, 6*time.Second, all),
		timeout("front", "own services", 0, 7*time.Second),
	)
	for _, c := range []struct {
		client, service string
		port            uint16
		want            time.Duration
	}{
		{"else", "reviews", 80, 5 * time.Second},
		{"else", "reviews", 81, 3 * time.Second},
		{"shop", "reviews", 81, 3 * time.Second},
		{"else", "ratings", 80, 2 * time.Second},
		{"front", "reviews", 80, 6 * time.Second},
	} {
		if got := trafficFor(c.client, mesh.Name{Namespace: "shop", Name: c.service}, c.port, v).timeout; got != c.want {
			t.Errorf("%s calls %s:%d: %s, want %s", c.client, c.service, c.port, got, c.want)
		}
	}
	if got := trafficFor("x", mesh.Name{Namespace: "y", Name: "z"}, 80, v).timeout; got != time.Second {
		t.Errorf("the mesh's timeout: %s, want 1s", got)
	}
}

// Which of two jwt sections holds is told to the one that does not.
func TestTheMeshsTokensGoBeforeThoseOfEquallySpecificPolicies(t *testing.T) {
	policy := func(namespace, issuer string, created int64, labels map[string]string) *mesh.Policy {
		return &mesh.Policy{
			Meta:     mesh.Meta{Name: mesh.Name{Namespace: namespace, Name: "tokens"}, Created: time.Unix(created, 0)},
			Selector: &mesh.Selector{MatchLabels: labels}, JWT: &mesh.JWT{Issuers: []mesh.Issuer{{Issuer: issuer, Keys: &mesh.KeySet{JWKS: noKeys}}}},
		}
	}
	web := map[string]string{"app": "web", "tier": "front"}
	own := policy("shop", "own", 1, web)
	for _, c := range []struct {
		labels map[string]string
		want   string
		told   bool
	}{
		{map[string]string{"app": "web"}, "mesh", true},
		{web, "mesh", true},
		{map[string]string{"app": "other"}, "own", false},
	} {
		v := viewOf(meshConfig(), own, policy("tulle-system", "mesh", 2, c.labels))
		if got := tokensAt(selected("shop", web, mesh.SectionJWT, v), v).issuers[0].Issuer.Issuer; got != c.want {
			t.Errorf("%v: the tokens of %s are believed, want %s", c.labels, got, c.want)
		}
		if f := policyFindings(own, v)[0]; f.OK == c.told {
			t.Errorf("%v: the policy's Accepted is %v: %s", c.labels, f.OK, f.Message)
		}
	}
}
