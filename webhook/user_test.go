package webhook_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tulle-mesh/tulle/webhook"
)

// userOf is the user of the pod's proxy, which is its group, and what is not redirected.
func userOf(t *testing.T, pod *corev1.Pod) int64 {
	t.Helper()
	init, proxy := pod.Spec.InitContainers[0], pod.Spec.InitContainers[1]
	user := *proxy.SecurityContext.RunAsUser
	if group := *proxy.SecurityContext.RunAsGroup; group != user {
		t.Errorf("the proxy runs as user %d, group %d", user, group)
	}
	if want := fmt.Sprintf("--proxy-uid=%d", user); !strings.Contains(strings.Join(init.Args, " "), want) {
		t.Errorf("the redirection is %q, the proxy runs as %d", init.Args, user)
	}
	return user
}

func injected(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, _, err := webhook.Inject(pod, map[string]string{webhook.LabelInject: "enabled"}, settings())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A node's kernel bounds what one user has, whatever pods that is in.
func TestTheProxiesOfOneWorkloadRunAsDifferentUsers(t *testing.T) {
	seen, uid := map[string]bool{}, regexp.MustCompile(`--proxy-uid=[0-9]+`)
	const pods = 100
	for i := range pods {
		response := inject(t, meshed(), strings.Replace(plain(t), "name: web", "generateName: web-", 1), func(r *admission.Request) { r.UID = types.UID(fmt.Sprint(i)) })
		patch, err := json.Marshal(response.Patches)
		if err != nil || !response.Allowed {
			t.Fatalf("%v, %v", response.Result, err)
		}
		if strings.Contains(string(patch), "/metadata/uid") {
			t.Fatalf("the pod is given a UID: %s", patch)
		}
		seen[uid.FindString(string(patch))] = true
	}
	if len(seen) < pods*9/10 {
		t.Errorf("%d pods have proxies of %d users", pods, len(seen))
	}
}

func TestAProxyRunsAsNoUserOfItsPod(t *testing.T) {
	pod := read[corev1.Pod](t, "testdata/plain/pod.yaml")
	first := userOf(t, injected(t, &pod))
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &first}
	if second := userOf(t, injected(t, &pod)); second == first {
		t.Errorf("both the proxy and the application run as %d", first)
	}
}

func TestAPodThatHasAllUsersOfProxiesIsRefused(t *testing.T) {
	pod := read[corev1.Pod](t, "testdata/plain/pod.yaml")
	all := pod.Spec.Containers[:0:0]
	for id := int64(32768); id < 49152; id++ {
		all = append(all, corev1.Container{Name: fmt.Sprint("c", id), SecurityContext: &corev1.SecurityContext{RunAsUser: &id}})
	}
	pod.Spec.Containers = all[1:]
	if got, want := userOf(t, injected(t, &pod)), int64(32768); got != want {
		t.Errorf("the proxy runs as %d, and only %d is free", got, want)
	}
	pod.Spec.Containers = all
	if _, _, err := webhook.Inject(&pod, map[string]string{webhook.LabelInject: "enabled"}, settings()); err == nil || !strings.Contains(err.Error(), "32768 to 49151") {
		t.Errorf("the refusal is %v", err)
	}
}

func TestAProxyKeepsItsUser(t *testing.T) {
	pod := read[corev1.Pod](t, "testdata/plain/pod.yaml")
	once := injected(t, &pod)
	want := userOf(t, once)
	renamed := once.DeepCopy()
	renamed.Name = "another"
	if got := userOf(t, injected(t, renamed)); got != want {
		t.Errorf("injected again the proxy runs as %d, before as %d", got, want)
	}
	// Unless it is no proxy's: what somebody wrote into the container, or all proxies had (1337).
	for _, id := range []int64{0, 1000, 1337, 1 << 31} {
		foreign := once.DeepCopy()
		foreign.Spec.InitContainers[1].SecurityContext.RunAsUser = &id
		if got := userOf(t, injected(t, foreign)); got != want {
			t.Errorf("a proxy that ran as %d runs as %d, want %d", id, got, want)
		}
	}
}
