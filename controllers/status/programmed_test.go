package status

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/acks"
)

func tally(concerned, programmed, rejected int) acks.Tally {
	return acks.Tally{Concerned: concerned, Programmed: programmed, Rejected: rejected, Waiting: []string{"shop/a"}}
}

func TestProgrammedSaysWhatIsMissing(t *testing.T) {
	refused := tally(3, 2, 1)
	refused.Refusal = &acks.Refusal{Pod: "shop/b", Resource: "Route inbound", Words: "bad regex"}
	for _, c := range []struct {
		verdict  acks.Verdict
		accepted bool
		status   metav1.ConditionStatus
		reason   string
		says     string
	}{
		{acks.Verdict{Generation: 2, Tally: tally(3, 3, 0)}, true, "True", "Programmed", "every proxy"},
		{acks.Verdict{Generation: 2}, true, "True", "Programmed", "no running proxy"},
		{acks.Verdict{Generation: 1, Tally: tally(3, 3, 0)}, true, "False", "Pending", "generation 2 has not reached"},
		{acks.Verdict{Generation: 2, Tally: tally(3, 2, 0)}, true, "False", "Pending", "2 of 3 proxies have acknowledged it; waiting for shop/a"},
		{acks.Verdict{Generation: 2, Tally: tally(9, 2, 0)}, true, "False", "Pending", "waiting for shop/a and 6 more"},
		{acks.Verdict{Generation: 2, Tally: tally(3, 3, 0), Missing: []string{"tulled-1"}}, true, "Unknown", "Unknown", "replica tulled-1"},
		{acks.Verdict{Generation: 2, Tally: tally(3, 3, 0)}, false, "False", "NotAccepted", "Accepted"},
		{acks.Verdict{Generation: 2, Tally: refused}, true, "False", "Rejected", "pod shop/b refused Route inbound: bad regex"},
	} {
		got := programmed(c.verdict, 2, c.accepted)
		if got.Status != c.status || got.Reason != c.reason || !strings.Contains(got.Message, c.says) || got.ObservedGeneration != 2 {
			t.Errorf("of %+v it says %+v", c.verdict, got)
		}
	}
}

// holds lets the cache see what was written, and returns the condition.
func (f *fixture) holds(t *testing.T, want metav1.ConditionStatus) {
	t.Helper()
	wrote := f.known[thePolicy].wrote[0]
	f.cache.policy.Status = v1alpha1.MeshPolicyStatus{Conditions: wrote.conditions, Proxies: wrote.proxies}
	if is := meta.FindStatusCondition(wrote.conditions, v1alpha1.ConditionProgrammed); is == nil || is.Status != want {
		t.Errorf("Programmed is %+v, want %s", is, want)
	}
}

// acknowledged is a fixture whose policy's second generation three proxies run.
func acknowledged(t *testing.T) *fixture {
	t.Helper()
	f := setUp()
	f.builder.find(theKey, good)
	f.acks.known, f.acks.is = true, acks.Verdict{Generation: 2, Tally: tally(3, 3, 0)}
	f.reconcile(t)
	f.holds(t, "True")
	return f
}

func TestALagBehindAGenerationThatWasProgrammedIsToldOnlyIfItLasts(t *testing.T) {
	f := acknowledged(t)
	f.acks.is.Programmed = 2
	f.reconcile(t)
	f.count(t, 1, 1)
	f.acks.is.Programmed = 3
	f.reconcile(t)
	f.clock = f.clock.Add(steady)
	f.acks.is.Programmed = 2
	again, err := f.Reconcile(t.Context(), thePolicy)
	if err != nil || again.RequeueAfter != steady {
		t.Errorf("it looks again after %v (%v)", again.RequeueAfter, err)
	}
	f.clock = f.clock.Add(steady)
	f.reconcile(t)
	f.holds(t, "False")
	f.count(t, 2, 2)
}

func TestANewGenerationIsNeverProgrammedBeforeItIs(t *testing.T) {
	f := acknowledged(t)
	f.cache.policy.Generation = 3
	next := good
	next.Generation = 3
	f.builder.find(theKey, next)
	f.reconcile(t) // the verdict is about the second
	f.holds(t, "False")
	f.acks.is.Generation, f.acks.is.Programmed = 3, 2
	f.clock = f.clock.Add(steady)
	f.reconcile(t)
	f.holds(t, "False")
	f.acks.is.Programmed = 3
	f.reconcile(t)
	f.holds(t, "True")
	f.count(t, 4, 2) // events: programmed, twice
}

func TestMereNumbersAreWrittenNowAndThen(t *testing.T) {
	f := acknowledged(t)
	for range 20 {
		f.clock = f.clock.Add(time.Second)
		f.acks.is.Concerned++
		f.acks.is.Programmed++
		f.reconcile(t)
		f.holds(t, "True")
	}
	f.count(t, 3, 1)
}

func TestANewLeaderThatKnowsNothingLeavesWhatThereIs(t *testing.T) {
	f := acknowledged(t)
	f.acks.known = false
	f.reconcile(t)
	f.holds(t, "True")
	f.count(t, 1, 1)
}

func TestARefusalIsToldAtOnce(t *testing.T) {
	f := acknowledged(t)
	f.acks.is.Programmed, f.acks.is.Rejected = 2, 1
	f.reconcile(t)
	f.holds(t, "False")
	<-f.recorder.Events
	if got := <-f.recorder.Events; !strings.Contains(got, "Warning Rejected") {
		t.Errorf("the event is %q", got)
	}
}
