package status

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func finding(conditionType string, ok bool, reason, message string) mesh.Finding {
	return mesh.Finding{Kind: mesh.KindPolicy, Generation: 2, Type: conditionType, OK: ok, Reason: reason, Message: message}
}

func TestFindingsBecomeOneConditionOfEachType(t *testing.T) {
	got := desired([]mesh.Finding{
		finding("ResolvedRefs", true, "ResolvedRefs", "all there"),
		finding("ResolvedRefs", false, "ServiceNotFound", "no Service a"),
		finding("Accepted", true, "Accepted", "holds"),
		finding("ResolvedRefs", false, "PortNotFound", "no port 1"),
		finding("ResolvedRefs", true, "ResolvedRefs", "all there"),
		finding("Another", true, "Another", "not for this package to write"),
	})
	want := []metav1.Condition{
		{Type: "ResolvedRefs", Status: "False", Reason: "ServiceNotFound", Message: "no Service a; no port 1", ObservedGeneration: 2},
		{Type: "Accepted", Status: "True", Reason: "Accepted", Message: "holds", ObservedGeneration: 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestMessageIsCutAtACharacter(t *testing.T) {
	for _, long := range []string{strings.Repeat("a", 5000), strings.Repeat("é", 5000), "a" + strings.Repeat("世", 5000)} {
		got := cut(long)
		if len(got) > maxMessage || len(got) < maxMessage-8 || !utf8.ValidString(got) || !strings.HasSuffix(got, " …") {
			t.Errorf("got %d bytes, ending in %q", len(got), got[len(got)-8:])
		}
	}
	if got := cut("short"); got != "short" {
		t.Errorf("got %q", got)
	}
}

func TestFindingsOfAnotherGenerationSayNothing(t *testing.T) {
	found := []mesh.Finding{finding("Accepted", true, "Accepted", "")}
	for generation, want := range map[int64]bool{1: false, 2: true, 3: false} {
		if evaluated(found, generation) != want {
			t.Errorf("generation %d, found about 2: got %v", generation, !want)
		}
	}
	if evaluated(nil, 0) {
		t.Error("no finding says nothing")
	}
}

func TestMergeKeepsTheTimeOfTheLastTransition(t *testing.T) {
	then, now := time.Unix(1000, 0), time.Unix(2000, 0)
	was := metav1.Condition{
		Type: "Accepted", Status: "True", Reason: "Accepted", Message: "m", ObservedGeneration: 1, LastTransitionTime: metav1.NewTime(then),
	}
	with := func(f func(*metav1.Condition)) metav1.Condition {
		c := was
		c.LastTransitionTime = metav1.Time{}
		f(&c)
		return c
	}
	for name, c := range map[string]struct {
		have, want []metav1.Condition
		differs    difference
		turned     bool
		at         time.Time
	}{
		"first":         {nil, []metav1.Condition{was}, verdict, true, now},
		"same":          {[]metav1.Condition{was}, []metav1.Condition{was}, none, false, then},
		"generation":    {[]metav1.Condition{was}, []metav1.Condition{with(func(c *metav1.Condition) { c.ObservedGeneration = 2 })}, verdict, true, then},
		"message":       {[]metav1.Condition{was}, []metav1.Condition{with(func(c *metav1.Condition) { c.Message = "n" })}, verdict, false, then},
		"turned False":  {[]metav1.Condition{was}, []metav1.Condition{with(func(c *metav1.Condition) { c.Status, c.Reason = "False", "Invalid" })}, verdict, true, now},
		"other reason":  {[]metav1.Condition{was}, []metav1.Condition{with(func(c *metav1.Condition) { c.Reason = "Other" })}, verdict, true, then},
		"turned True":   {[]metav1.Condition{with(func(c *metav1.Condition) { c.Status = "False" })}, []metav1.Condition{was}, verdict, true, now},
		"one too many":  {[]metav1.Condition{was, {Type: "ResolvedRefs"}}, []metav1.Condition{was}, verdict, false, then},
		"another's":     {[]metav1.Condition{was, {Type: "Another"}}, []metav1.Condition{was}, none, false, then},
		"mere progress": {[]metav1.Condition{ack("1 of 2")}, []metav1.Condition{ack("2 of 3")}, numbers, false, time.Time{}},
	} {
		out, differs, turned := merge(state{conditions: c.have}, state{conditions: c.want}, now)
		if differs != c.differs || (len(turned) > 0) != c.turned {
			t.Errorf("%s: differs %v, turned %v", name, differs, turned)
		}
		if len(out.conditions) != len(c.want) || !out.conditions[0].LastTransitionTime.Time.Equal(c.at) {
			t.Errorf("%s: got %+v, want the transition at %v", name, out, c.at)
		}
	}
	if _, differs, _ := merge(state{}, state{proxies: &v1alpha1.ProxyCounts{}}, now); differs != numbers {
		t.Error("the first counts are no difference")
	}
}

func ack(message string) metav1.Condition {
	return metav1.Condition{Type: "Programmed", Status: "False", Reason: "Pending", Message: message}
}

func TestOnlyTheMeshConfigNamedDefaultIsAccepted(t *testing.T) {
	for name, want := range map[string]metav1.ConditionStatus{"default": "True", "other": "False"} {
		got := desired(configFindings(&v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 5}}))
		if len(got) != 1 || got[0].Status != want || got[0].ObservedGeneration != 5 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}
