package server

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/acks"
	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// ofKind waits for a report in which what stands for the kind is so.
func (h *harness) ofKind(kind mesh.Kind, what string, done func(*acks.Report, acks.Object) bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	version := ""
	for {
		r, err := h.server.Report(ctx, version, nil)
		if err != nil || ctx.Err() != nil {
			h.t.Fatalf("%s was not reported, but %+v (%v)", what, r, err)
		}
		for _, o := range r.Objects {
			if o.Kind == kind && done(r, o) {
				return
			}
		}
		version = r.Version
	}
}

func trusting(roots, issuer string, generation int64) mesh.Change {
	return mesh.Put(&mesh.TrustBundle{PEM: []byte(roots), Issuer: issuer, Generation: generation})
}

// own is the version of the proxy's own certificate.
func (a *ads) own() string { return a.got[translate.Secret][translate.SecretWorkload].GetVersion() }

func (h *harness) reissue(identities ...string) {
	for _, identity := range identities {
		h.builder.Invalidate(build.Key{Type: translate.Secret, Name: translate.SecretWorkload, For: identity})
	}
}

func TestNewRootsAreProgrammedWhenAllProxiesHaveAcknowledgedThem(t *testing.T) {
	h := newHarness(t, nil)
	h.builder.Apply(trusting("old", "issuer-0", 1))
	a, b := h.begin("web"), h.begin("api")
	for _, p := range []*ads{a, b} {
		p.until("its own certificate", func() bool { return p.own() != "" })
	}
	h.ofKind(mesh.KindTrust, "that all trust the first", programmed(1, 2))
	version := func(p *ads) string { return p.got[translate.Secret][translate.SecretRoots].GetVersion() }
	before := version(b)
	h.builder.Apply(trusting("old and new", "issuer-0", 2))
	a.until("the roots", func() bool { return version(a) != before })
	h.ofKind(mesh.KindTrust, "that the other is waited for", waiting(2, "shop/api"))
	b.until("the roots", func() bool { return version(b) != before })
	h.ofKind(mesh.KindTrust, "that both trust them", programmed(2, 2))
	h.builder.Apply(trusting("old and new", "issuer-1", 3))
	h.ofKind(mesh.KindTrust, "that the same roots need nothing", programmed(3, 2))
}

func TestAnIssuerIsProgrammedWhenAllProxiesPresentACertificateOfIts(t *testing.T) {
	h := newHarness(t, nil)
	h.builder.Apply(trusting("roots", "issuer-0", 1))
	a, b := h.begin("web"), h.begin("api")
	for _, p := range []*ads{a, b} {
		p.until("its own certificate", func() bool { return p.own() != "" })
	}
	h.ofKind(mesh.KindIssuer, "that all have certificates of the first", programmed(1, 2))

	// Nobody was sent anything yet, and all have what they should; it is another
	// issuer's.
	h.issuer.Store(1)
	h.builder.Apply(trusting("roots", "issuer-1", 2))
	h.ofKind(mesh.KindIssuer, "that both are waited for", waiting(2, "shop/api", "shop/web"))
	h.reissue("spiffe://test.mesh/ns/shop/sa/web", "spiffe://test.mesh/ns/shop/sa/api")
	a.until("the new certificate", func() bool { return a.own() == "issuer-1.spiffe://test.mesh/ns/shop/sa/web" })
	h.ofKind(mesh.KindIssuer, "that the other is waited for", waiting(2, "shop/api"))

	// It is cut off: nobody knows it to have another one.
	b.close()
	h.ofKind(mesh.KindIssuer, "that one that is gone goes on with the old", func(r *acks.Report, o acks.Object) bool {
		place := slices.IndexFunc(r.Objects, func(each acks.Object) bool { return each.Kind == mesh.KindIssuer })
		return o.Concerned == 1 && o.Programmed == 1 && len(r.Absent) == 1 && r.Absent[0].Pod == "shop/api" && slices.Contains(r.Absent[0].Waiting, place)
	})
	eventually(t, "that no certificate is issued for a pod that is not connected", func() bool {
		return !h.builder.wanted(func(k build.Key) bool { return k == certificateOf("spiffe://test.mesh/ns/shop/sa/api") })
	})
	if pods := h.server.PodsOf("spiffe://test.mesh/ns/shop/sa/web"); !slices.Equal(pods, []string{"shop/web"}) {
		t.Errorf("the identity is that of %v", pods)
	}
}

func TestAPodOfWhichNothingIsKnownIsConcernedByTheAuthority(t *testing.T) {
	h := newHarness(t, nil)
	refs := Concerning(h.builder.Snapshot(), workload("web"))
	for _, kind := range []mesh.Kind{mesh.KindTrust, mesh.KindIssuer} {
		if !slices.Contains(refs, mesh.Ref{Kind: kind}) {
			t.Errorf("%v is not among %v", kind, refs)
		}
	}
}
