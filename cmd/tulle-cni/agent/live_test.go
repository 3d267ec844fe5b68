package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/cmd/tulle-cni/plugin"
	"github.com/tulle-mesh/tulle/config/apitest"
)

const own = "tulle-system" // the agent's namespace

// What the agent's service account may do is what the agent does: on a real API server,
// with the roles of deploy/cni.
func TestTheAgentIsPermittedWhatItDoesAndNothingElse(t *testing.T) {
	config, audit := apitest.StartAudited(t, func(*envtest.Environment) {})
	admin, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	root, err := apitest.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"base/namespace.yaml", "cni/role.yaml", "cni/bindings.yaml"} {
		content, err := os.ReadFile(filepath.Join(root, "deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(content), "---\n") {
			o := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
				t.Fatal(err)
			}
			if len(o.Object) == 0 {
				continue
			}
			if err := admin.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	clients := kubernetes.NewForConfigOrDie(config)
	token, err := clients.CoreV1().ServiceAccounts(own).CreateToken(t.Context(), "tulle-cni", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	as := rest.AnonymousClientConfig(config)
	as.BearerToken = token.Status.Token

	waiting(t, admin)
	dir := t.TempDir()
	o := Options{
		NodeName: "node", Namespace: own, DaemonSet: "tulle-cni", Health: "127.0.0.1:0", Version: "test", Log: testr.New(t),
		Configurations: filepath.Join(dir, "configurations"), Plugins: filepath.Join(dir, "plugins"), Results: filepath.Join(dir, "results"),
	}
	for _, folder := range []string{o.Configurations, o.Plugins, o.Results} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, as, o) }()

	// An event that comes again and again is written down as a series, by a patch.
	lacks := func(allowed ...string) func(context.Context) (bool, error) {
		return func(ctx context.Context) (bool, error) {
			is, err := audit.Complaints(ctx, config, own, "tulle-cni")
			if err != nil {
				return false, nil // nothing is written yet
			}
			for _, complaint := range is {
				if !strings.HasPrefix(complaint, "not used: ") {
					t.Errorf("%s", complaint)
				}
			}
			return len(is) == len(allowed) && strings.Join(is, "\n") == strings.Join(allowed, "\n"), nil
		}
	}
	const atTheEnd = `not used: Role tulle-cni: get daemonsets.apps ["tulle-cni"]`
	if err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, time.Minute, true, lacks(atTheEnd)); err != nil {
		is, _ := audit.Complaints(t.Context(), config, own, "tulle-cni")
		t.Fatalf("while it runs: %v: %q", err, is)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if is, err := audit.Complaints(t.Context(), config, own, "tulle-cni"); err != nil || len(is) > 0 {
		t.Errorf("%q, %v", is, err)
	}
}

// waiting makes a pod of the node whose init container waits to be redirected, which
// cannot be done: there is no such pod on this machine.
func waiting(t *testing.T, admin client.Client) {
	t.Helper()
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app"}},
	} {
		if err := admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "app", Labels: map[string]string{labelProxy: "sidecar"},
			Annotations: map[string]string{plugin.Annotation: "--service=10.96.0.0/16"},
		},
		Spec: corev1.PodSpec{
			NodeName: "node", ServiceAccountName: "app",
			InitContainers: []corev1.Container{{Name: checkContainer, Image: "check"}}, Containers: []corev1.Container{{Name: "app", Image: "app"}},
		},
	}
	if err := admin.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{
		Name: checkContainer, Image: "check", ImageID: "check", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
	if err := admin.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
}
