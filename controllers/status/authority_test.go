package status

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

func TestTheMeshConfigSaysHowFarTheAuthorityIs(t *testing.T) {
	var (
		says  Authority
		known bool
	)
	recorder := events.NewFakeRecorder(16)
	c := New(Options{Findings: newBuilder(), Authority: func() (Authority, bool) { return says, known }})
	c.events = recorder
	config := &v1alpha1.MeshConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.MeshConfigName, Generation: 3}}
	o := object{kindConfig, mesh.Name{Name: v1alpha1.MeshConfigName}}
	c.attend(o, config)
	have := state{}
	// next is the status after the authority says something, and how it differs.
	next := func(a Authority, ok bool) (*metav1.Condition, difference) {
		says, known = a, ok
		out := c.assess(o, config, []state{have}, configFindings(config))
		for _, turned := range out.turned {
			c.tell(config, turned.is, turned.was)
		}
		have = out.want[0]
		return meta.FindStatusCondition(have.conditions, v1alpha1.ConditionAuthorityCurrent), out.differs
	}
	event := func() string {
		select {
		case e := <-recorder.Events:
			return e
		default:
			return ""
		}
	}
	if is, _ := next(Authority{}, false); is != nil {
		t.Errorf("it says %+v, and nothing is known", is)
	}
	is, differs := next(Authority{Current: true, Reason: "Current", Message: "all is well"}, true)
	if is == nil || is.Status != metav1.ConditionTrue || is.ObservedGeneration != 3 || differs != verdict || event() != "" {
		t.Errorf("it says %+v", is)
	}
	is, differs = next(Authority{Reason: "Distributing", Message: "1 of 3"}, true)
	if is.Status != metav1.ConditionFalse || differs != verdict {
		t.Errorf("it says %+v", is)
	}
	if e := event(); !strings.HasPrefix(e, "Normal Distributing") {
		t.Errorf("the event is %q", e)
	}
	since := is.LastTransitionTime
	is, differs = next(Authority{Reason: "Distributing", Message: "2 of 3"}, true)
	if is.Message != "2 of 3" || differs != numbers || event() != "" || !is.LastTransitionTime.Equal(&since) {
		t.Errorf("it says %+v, another by %v", is, differs)
	}
	next(Authority{NeedsHelp: true, Reason: "Waiting", Message: "waiting for shop/frozen"}, true)
	if e := event(); !strings.HasPrefix(e, "Warning Waiting") || !strings.Contains(e, "shop/frozen") {
		t.Errorf("the event is %q", e)
	}
	// A new leader that knows nothing leaves what was said.
	if is, differs := next(Authority{}, false); is == nil || is.Reason != "Waiting" || differs != none {
		t.Errorf("it says %+v", is)
	}
	next(Authority{Current: true, Reason: "Current", Message: "all is well"}, true)
	if e := event(); !strings.HasPrefix(e, "Normal Current") {
		t.Errorf("the event is %q", e)
	}
}
