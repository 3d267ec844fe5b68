package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/tulle-mesh/tulle/ca"
)

func TestTheLeaderSaysForWhomARotationWaits(t *testing.T) {
	certificate := func(id string, years int) ca.AuthorityCertificate {
		return ca.AuthorityCertificate{KeyID: id, Key: "ECDSA P-256", NotBefore: testNow.AddDate(-1, 0, 0), NotAfter: testNow.AddDate(years, 0, 0)}
	}
	state := ca.State{
		RootKey: true, Issuer: certificate("11aa", 1), Roots: []ca.AuthorityCertificate{certificate("22bb", 9), certificate("33cc", 10)},
		Record: ca.Record{
			Sequence: 7,
			Rotation: &ca.Rotation{
				Scope: ca.ScopeRoot, Why: ca.WhyRequested, Phase: ca.PhaseDistribute, Started: testNow.Add(-time.Hour), Since: testNow.Add(-time.Hour),
				From: ca.Keys{Root: "22bb"}, To: ca.Keys{Root: "33cc"},
			},
			History: []ca.Past{{
				Scope: ca.ScopeIssuer, Why: ca.WhyDue, Started: testNow.Add(-2 * time.Hour), Ended: testNow.Add(-time.Hour),
				From: ca.Keys{Issuer: "0000", Root: "22bb"}, To: ca.Keys{Issuer: "11aa", Root: "22bb"}, Forced: true, CutOff: []string{"shop/a"},
			}},
		},
	}
	leader := state
	leader.Leading, leader.Reason, leader.Message = true, ca.ReasonWaiting, "waiting for shop/frozen"
	behind := state
	behind.Record.Sequence = 6
	h := harness{objects: []runtime.Object{tulled("tulled-0"), tulled("tulled-1")}, replies: map[string]string{}}
	for name, answer := range map[string]ca.State{"tulled-0": behind, "tulled-1": leader} {
		text, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		h.replies[name] = string(text)
	}
	code, out, _ := h.run(t, "ca status")
	for _, want := range []string{"root (old)", "root (new)", "33cc", "phase Distribute", "Waiting: waiting for shop/frozen", "Not there yet: tulled-0"} {
		if !strings.Contains(out, want) {
			t.Errorf("the status does not say %q:\n%s", want, out)
		}
	}
	if code != exitLacking {
		t.Errorf("exit code %d", code)
	}
	code, out, _ = h.run(t, "ca history")
	for _, want := range []string{"issuer", "Due", "0000 > 11aa", "1h0m0s", "shop/a"} {
		if !strings.Contains(out, want) {
			t.Errorf("the history does not say %q:\n%s", want, out)
		}
	}
	if code != exitHealthy {
		t.Errorf("exit code %d", code)
	}
}

func TestItIsSaidWhoSigns(t *testing.T) {
	signer := ca.Signer{Name: "company", Kind: "Issuer", Group: "cert-manager.io", Signs: ca.SignsLeaves}
	root := ca.AuthorityCertificate{KeyID: "33cc", NotAfter: testNow.AddDate(1, 0, 0)}
	servers := ca.AuthorityCertificate{KeyID: "44dd", NotAfter: testNow.AddDate(1, 0, 0)}
	state := ca.State{
		Leading: true, Reason: ca.ReasonPending, Message: "2 certificates are not signed yet", Issuer: root,
		Roots: []ca.AuthorityCertificate{root}, Servers: []ca.AuthorityCertificate{servers},
		Record: ca.Record{
			Signer: &signer, Delegation: &ca.Delegation{},
			History: []ca.Past{{Scope: ca.ScopeRoot, Why: ca.WhySwitched, From: ca.Keys{Issuer: "11aa", Root: "22bb"}, To: ca.Keys{Root: "33cc", Signer: &signer}, GivenUp: true}},
		},
	}
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	h := harness{objects: []runtime.Object{tulled("tulled-0")}, replies: map[string]string{"tulled-0": string(text)}}
	code, out, _ := h.run(t, "ca status")
	for _, want := range []string{"Issuer company (cert-manager.io) signs the certificates of workloads", "Pending: 2 certificates", "root of the control plane", "44dd"} {
		if !strings.Contains(out, want) {
			t.Errorf("the status does not say %q:\n%s", want, out)
		}
	}
	if code != exitLacking || strings.Contains(out, "\nissuer ") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	_, out, _ = h.run(t, "ca history")
	for _, want := range []string{"mesh > Issuer/company (Leaves), given up", "11aa > none"} {
		if !strings.Contains(out, want) {
			t.Errorf("the history does not say %q:\n%s", want, out)
		}
	}
}

func TestOnlyTheExplicitWordForces(t *testing.T) {
	code, _, words := harness{}.run(t, "ca rotate --force=yes")
	if code != exitError || !strings.Contains(words, "--force="+ca.ForceWord) {
		t.Errorf("%d %q", code, words)
	}
}

// The API server has no MeshConfig at first.
func TestARequestIsWrittenToTheMeshConfigThatIsThereOrIsMade(t *testing.T) {
	ask := ca.Ask{Scope: ca.ScopeRoot, At: testNow}
	type request struct {
		method, path string
		body         map[string]any
	}
	for there, want := range map[bool][]string{
		true:  {"PATCH /apis/mesh.tulle.dev/v1alpha1/meshconfigs/default"},
		false: {"PATCH /apis/mesh.tulle.dev/v1alpha1/meshconfigs/default", "POST /apis/mesh.tulle.dev/v1alpha1/meshconfigs"},
	} {
		var got []string
		var last request
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			last = request{method: r.Method, path: r.URL.Path}
			if err := json.NewDecoder(r.Body).Decode(&last.body); err != nil {
				t.Error(err)
			}
			got = append(got, r.Method+" "+r.URL.Path)
			w.Header().Set("Content-Type", "application/json")
			if r.Method == http.MethodPatch && !there {
				w.WriteHeader(http.StatusNotFound)
				_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`))
				return
			}
			_, _ = w.Write([]byte(`{"kind":"MeshConfig","apiVersion":"mesh.tulle.dev/v1alpha1","metadata":{"name":"default"}}`))
		}))
		defer s.Close()
		c := &cluster{config: &rest.Config{Host: s.URL}}
		if err := c.askToRotate(t.Context(), ask); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("asked %q, want %q", got, want)
		}
		value, _, _ := unstructured.NestedString(last.body, "metadata", "annotations", annotationRotate)
		if read, err := ca.ParseAsk(value); err != nil || read.Scope != ca.ScopeRoot || read.Forced {
			t.Errorf("it is written as %q: %v", value, err)
		}
	}
}
