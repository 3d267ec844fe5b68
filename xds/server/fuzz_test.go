package server

import (
	"context"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Whatever a proxy calls a resource, what it gets is its own or everybody's: never a
// certificate of another identity, or of a Gateway that it is not the proxy of.
func FuzzNamesOfResources(f *testing.F) {
	for _, name := range []string{
		translate.SecretWorkload, translate.SecretRoots, translate.PrefixSAN + "shop/web", translate.PrefixCertificate + "shop/cert", translate.PrefixEnded + "shop/cert", "spiffe://cluster.local/ns/shop/sa/other",
		translate.ListenerInbound, translate.ListenerGateway, translate.ListenerEgress, translate.PrefixGateway + "80", translate.RouteInbound + "|x", translate.PrefixProbe + "80",
		"", "*", "a|b|c", "in|10.0.0.1:80",
	} {
		for typ := range len(typeNames) {
			f.Add(uint8(typ), name)
		}
	}
	sidecar := proxy{
		pod: "shop/web-1", namespace: "shop", profile: "a profile", identity: "spiffe://cluster.local/ns/shop/sa/web",
		account: translate.ForEgress("shop", "web"), locality: mesh.Locality{Region: "r", Zone: "z"},
	}
	gateway := sidecar
	gateway.gateway = "shop/edge"
	f.Fuzz(func(t *testing.T, typ uint8, name string) {
		kind := translate.Type(int(typ) % len(typeNames))
		for _, p := range []proxy{sidecar, gateway} {
			k, ok := p.bind(kind, name)
			if !ok {
				continue
			}
			if k.Type != kind || k.Name != name {
				t.Errorf("%q is called %v", name, k)
			}
			if again, _ := p.bind(kind, name); again != k {
				t.Errorf("%v is %v another time", k, again)
			}
			switch {
			case kind == translate.Secret && name == translate.SecretWorkload:
				if k.For != p.identity {
					t.Errorf("the certificate is %q's", k.For)
				}
			case kind == translate.Secret && strings.HasPrefix(name, translate.PrefixCertificate):
				if p.gateway == "" || k.For != p.gateway {
					t.Errorf("the certificate %q is %q's", name, k.For)
				}
			case kind == translate.Secret && strings.HasPrefix(name, translate.PrefixEnded):
				if p.gateway != "" || k.For != p.profile {
					t.Errorf("the certificate %q is %q's", name, k.For)
				}
			case kind == translate.Secret:
				if k.For != "" || name != translate.SecretRoots && !strings.HasPrefix(name, translate.PrefixSAN) {
					t.Errorf("a secret %v", k)
				}
			default:
				mine := []string{"", p.namespace, p.profile, p.account, p.pod, p.gateway, translate.ForInbound(p.profile, p.drains), translate.ForEndpoints(name, p.locality)}
				found := false
				for _, m := range mine {
					found = found || k.For == m
				}
				if !found {
					t.Errorf("%v is for somebody else", k)
				}
			}
			if _, known := translate.TypeOf(kind.URL()); !known {
				t.Errorf("%v has no type", build.Key{Type: kind})
			}
		}
	})
}

// A token is refused, or it says what the API server signed.
func FuzzTokens(f *testing.F) {
	a := newAPIServer(f)
	good := a.sign(a.said(peer("web")))
	parts := strings.Split(good, ".")
	for _, text := range []string{
		good, "", ".", "..", parts[0] + ".." + parts[2], parts[0] + "." + parts[1] + ".", "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"eyJhbGciOiJIUzI1NiIsImtpZCI6Im9uZSJ9." + parts[1] + "." + parts[2], strings.Repeat("a", 20<<10),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		verifier := a.tokens()
		is, err := verifier.Verify(context.Background(), text)
		if err != nil {
			if is != (Peer{}) {
				t.Errorf("refused, and it is %+v: %v", is, err)
			}
			return
		}
		if is != peer("web") {
			t.Errorf("%q is %+v's", text, is)
		}
	})
}
