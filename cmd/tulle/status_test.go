package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes/fake"
)

var testNow = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) // never changed

type podOption func(*corev1.Pod)

func pod(name string, options ...podOption) *corev1.Pod {
	namespace, name, _ := strings.Cut(name, "/")
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, o := range options {
		o(p)
	}
	return p
}

func withProxy(p *corev1.Pod) {
	p.Labels[labelProxy] = proxySidecar
	p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: containerProxy, Image: "envoy:1.40.0"})
}

func withLabel(k, v string) podOption { return func(p *corev1.Pod) { p.Labels[k] = v } }

func isReady(p *corev1.Pod) {
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
}

func inPhase(phase corev1.PodPhase) podOption {
	return func(p *corev1.Pod) { p.Status.Phase = phase }
}

func tulled(name string, options ...podOption) *corev1.Pod {
	p := pod("tulle-system/"+name, append(options, withLabel("app.kubernetes.io/name", "tulled"))...)
	p.Spec.Containers = []corev1.Container{{Name: "tulled", Image: "tulled:dev"}}
	return p
}

// harness runs command lines against a cluster of objects, where replies are
// what the control plane's replicas answer, by pod.
type harness struct {
	objects []runtime.Object
	replies map[string]string
	program string
	heard   *string // what was posted last, where somebody asks
}

// run returns the exit code and what was written.
func (h harness) run(t *testing.T, line string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app{
		name: programName(h.program), flags: genericclioptions.NewConfigFlags(true), now: func() time.Time { return testNow },
		streams: genericiooptions.IOStreams{Out: &out, ErrOut: &errOut},
	}
	client := fake.NewClientset(h.objects...)
	a.connect = func() (*cluster, error) {
		namespace := *a.flags.Namespace
		if namespace == "" {
			namespace = "shop"
		}
		return &cluster{client: client, namespace: namespace, meshNamespace: a.meshNamespace, reach: func(p *corev1.Pod, port int) (endpoint, error) {
			reply, ok := h.replies[p.Name]
			if !ok {
				return nil, errors.New("connection refused")
			}
			if want := map[bool]int{true: portDebug, false: portAdmin}[strings.HasPrefix(p.Name, "tulled")]; port != want {
				t.Errorf("reached port %d of a replica", port)
			}
			return serve(t, reply, h.heard), nil
		}}, nil
	}
	root := a.root()
	root.SetArgs(strings.Fields(line))
	code = report(root.ExecuteContext(t.Context()), a.streams)
	return code, out.String(), errOut.String()
}

// serve answers every path with the body.
func serve(t *testing.T, body string, heard *string) endpoint {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if question, err := io.ReadAll(r.Body); err == nil && heard != nil {
			*heard = string(question)
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return &httpEndpoint{base: s.URL, client: s.Client(), close: func() error { return nil }}
}

// streamsOf is the answer of a replica.
func streamsOf(streams ...stream) string {
	b, err := json.Marshal(streams)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func streamOf(pod, replica string, before time.Duration) stream {
	namespace, _, _ := strings.Cut(pod, "/")
	return stream{Pod: pod, Replica: replica, Since: testNow.Add(-before), Identity: "spiffe://cluster.local/ns/" + namespace + "/sa/default"}
}

// table splits a printed table into cells.
func split(out string) [][]string {
	var rows [][]string
	for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
		if l == "" {
			break // notes follow
		}
		var row []string
		for _, c := range strings.Split(l, "   ") {
			if c = strings.TrimSpace(c); c != "" {
				row = append(row, c)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func TestStatusJoinsPodsWithTheStreamsOfAllReplicas(t *testing.T) {
	pending, rejected := streamOf("shop/b", "tulled-2", time.Minute), streamOf("shop/c", "tulled-2", time.Hour)
	pending.Pending = []resource{{Type: "Cluster", Name: "svc|shop/a|80"}, {Type: "Route", Name: "inbound"}}
	rejected.Rejected = []resource{{Type: "Listener", Name: "inbound", Error: "no such\nfilter"}}
	h := harness{
		objects: []runtime.Object{
			tulled("tulled-1"), tulled("tulled-2"),
			pod("shop/a", withProxy), pod("shop/b", withProxy), pod("shop/c", withProxy), pod("shop/d", withProxy),
			pod("shop/e", withProxy, inPhase(corev1.PodPending)), pod("shop/job", withProxy, inPhase(corev1.PodSucceeded)),
			pod("shop/legacy"), pod("bank/x", withProxy),
		},
		replies: map[string]string{
			"tulled-1": streamsOf(streamOf("shop/a", "tulled-1", 5*time.Minute), streamOf("shop/b", "tulled-1", time.Hour), streamOf("bank/x", "tulled-1", time.Hour)),
			"tulled-2": streamsOf(pending, rejected, streamOf("shop/gateway", "tulled-2", 3*time.Hour)),
		},
	}
	id := "spiffe://cluster.local/ns/shop/sa/default"
	code, out, _ := h.run(t, "status")
	want := [][]string{
		{"POD", "IDENTITY", "CONNECTED TO", "SINCE", "SYNCED", "REJECTED"},
		{"shop/a", id, "tulled-1", "5m", "all", "-"},
		{"shop/b", id, "tulled-2", "60s", "2 pending", "-"},
		{"shop/c", id, "tulled-2", "60m", "all", "1"},
		{"shop/d", "-", "not connected", "-", "-", "-"},
		{"shop/e", "-", "not connected", "-", "-", "-"},
		{"shop/gateway", id, "tulled-2", "3h", "all", "-"},
	}
	if diff := cmp.Diff(want, split(out)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for _, note := range []string{
		"shop/b has not acknowledged Cluster svc|shop/a|80, Route inbound",
		"shop/c rejected Listener inbound: no such filter",
		"shop/d is not connected; its proxy says why: kubectl -n shop logs d -c tulle-proxy",
		"shop/e is not connected; it is Pending: kubectl -n shop describe pod e",
	} {
		if !strings.Contains(out, note+"\n") {
			t.Errorf("lacks the note %q:\n%s", note, out)
		}
	}
	if code != exitLacking {
		t.Errorf("exit code %d, want %d", code, exitLacking)
	}

	for line, c := range map[string]struct {
		code int
		pods []string
	}{
		"status a":             {exitHealthy, []string{"shop/a"}},
		"status a shop/a d":    {exitLacking, []string{"shop/a", "shop/d"}},
		"status bank/x pod/a":  {exitHealthy, []string{"bank/x", "shop/a"}},
		"status -n bank":       {exitHealthy, []string{"bank/x"}},
		"status --context=a c": {exitLacking, []string{"shop/c"}},
	} {
		code, out, errOut := h.run(t, line)
		var got []string
		for _, r := range split(out)[1:] {
			got = append(got, r[0])
		}
		if code != c.code || cmp.Diff(c.pods, got) != "" {
			t.Errorf("%s: exit code %d, pods %v, %s; want %d, %v", line, code, got, errOut, c.code, c.pods)
		}
	}

	code, out, _ = h.run(t, "status -A -o json")
	var all status
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	if code != exitLacking || len(all.Proxies) != 7 || len(all.Replicas) != 2 || all.Proxies[2].State != statePending {
		t.Errorf("exit code %d, %+v", code, all)
	}
}

func TestStatusSaysUnknownWhereAReplicaDoesNotAnswer(t *testing.T) {
	h := harness{
		objects: []runtime.Object{tulled("tulled-1"), tulled("tulled-2"), pod("shop/a", withProxy), pod("shop/b", withProxy)},
		replies: map[string]string{"tulled-1": streamsOf(streamOf("shop/a", "tulled-1", time.Minute))},
	}
	code, out, _ := h.run(t, "status")
	if rows := split(out); code != exitLacking || rows[1][2] != "tulled-1" || rows[2][2] != stateUnknown {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if !strings.Contains(out, "Replica tulle-system/tulled-2 did not answer: connection refused") {
		t.Errorf("does not say which replica:\n%s", out)
	}
}

func TestErrorsSayTheNextStep(t *testing.T) {
	labelled := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{labelInject: "enabled"}}}
	control := []runtime.Object{tulled("tulled-1")}
	host := pod("shop/plain")
	host.Spec.HostNetwork = true
	starting := pod("shop/plain", withProxy)
	starting.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: containerProxy, State: corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"},
	}}}
	for name, c := range map[string]struct {
		line          string
		objects       []runtime.Object
		problem, next string
	}{
		"no control plane":              {"status", nil, "no control plane runs in namespace tulle-system", "tulle install"},
		"no replica answers":            {"status", control, "no replica of the control plane answers", ""},
		"no such pod":                   {"status nobody", control, "looking for pod shop/nobody", "kubectl -n shop get pods"},
		"namespace is not labelled":     {"proxy plain", []runtime.Object{pod("shop/plain")}, "injection is not enabled", "kubectl label namespace shop mesh.tulle.dev/inject=enabled"},
		"pod is older than the label":   {"proxy plain", []runtime.Object{pod("shop/plain"), labelled}, "created before injection", "rollout restart"},
		"pod does not want it":          {"proxy plain", []runtime.Object{pod("shop/plain", withLabel(labelInject, "disabled")), labelled}, "disabled says so", "remove the label"},
		"hostNetwork":                   {"status plain", []runtime.Object{host}, "node's network", "cannot be meshed"},
		"proxy does not run":            {"proxy plain", []runtime.Object{starting}, "waiting: ImagePullBackOff", "kubectl -n shop describe pod plain"},
		"no pod":                        {"proxy", nil, "want a pod", ""},
		"no such view":                  {"proxy plain everything", nil, `unknown view "everything"`, ""},
		"no such format":                {"status -o xml", nil, `unknown output format "xml"`, ""},
		"no such flag":                  {"status --colour", nil, "unknown flag: --colour", "kubectl tulle status --help"},
		"no regular expression":         {"proxy plain stats --filter (", nil, "reading --filter", ""},
		"not a pod's name":              {"status a/b/c/d", nil, "names no pod", ""},
		"pods and all namespaces":       {"status a -A", nil, "not both", ""},
		"workload without pods":         {"proxy deploy/web", []runtime.Object{deployment("web")}, "deployment shop/web has no pods", "describe deployment web"},
		"workload that does not exist":  {"proxy sts/web", nil, "looking for statefulset shop/web", "kubectl -n shop get statefulsets"},
		"workload of an unlabelled one": {"proxy deploy/web", []runtime.Object{deployment("web"), pod("shop/web-1", withLabel("app", "web"))}, "shop/web-1 has no proxy", "label namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, errOut := harness{objects: c.objects, program: "/usr/bin/kubectl-tulle"}.run(t, c.line)
			if code != exitError || !strings.Contains(errOut, c.problem) || !strings.Contains(errOut, c.next) {
				t.Errorf("exit code %d, want %d, and %q, %q in:\n%s", code, exitError, c.problem, c.next, errOut)
			}
		})
	}
}

func deployment(name string) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}},
	}
}

func TestAWorkloadsProxyIsThatOfItsFirstReadyPod(t *testing.T) {
	web := withLabel("app", "web")
	c := &cluster{namespace: "shop", client: fake.NewClientset(deployment("web"),
		pod("shop/web-1", web, withProxy), pod("shop/web-2", web, isReady), pod("shop/web-3", web, withProxy, isReady),
		pod("shop/web-4", web, withProxy, isReady), pod("shop/other", withProxy, isReady))}
	for _, arg := range []string{"deploy/web", "shop/deployment/web"} {
		p, err := c.proxyPod(t.Context(), arg)
		if err != nil || p.Name != "web-3" {
			t.Errorf("%s: pod %v, error %v; want web-3", arg, p, err)
		}
	}
}

func TestAnEmptyNamespaceIsNoFault(t *testing.T) {
	h := harness{objects: []runtime.Object{tulled("tulled-1")}, replies: map[string]string{"tulled-1": "[]"}}
	code, out, _ := h.run(t, "status")
	if code != exitHealthy || !strings.Contains(out, "No meshed pods in namespace shop. To mesh a namespace: kubectl label namespace shop") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if code, out, _ := h.run(t, "status -o json"); code != exitHealthy || !strings.Contains(out, `"proxies": []`) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestVersionCountsImages(t *testing.T) {
	h := harness{objects: []runtime.Object{
		tulled("tulled-1", isReady), tulled("tulled-2"), pod("shop/a", withProxy, isReady), pod("bank/x", withProxy, inPhase(corev1.PodFailed)),
	}}
	code, out, _ := h.run(t, "version")
	rows := split(out)
	want := [][]string{{"control plane", "default", "tulled:dev", "2", "1"}, {"proxy", "default", "envoy:1.40.0", "1", "1"}}
	if diff := cmp.Diff(want, rows[2:]); code != exitHealthy || diff != "" {
		t.Errorf("exit code %d, -want +got\n%s", code, diff)
	}
	if code, out, _ := (harness{}).run(t, "version --client"); code != exitHealthy || len(split(out)) != 2 {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

func TestUsageNamesTheProgramAsItWasCalled(t *testing.T) {
	for arg0, want := range map[string]string{"/bin/tulle": "tulle", "kubectl-tulle": "kubectl tulle", `kubectl-tulle.exe`: "kubectl tulle"} {
		code, out, _ := harness{program: arg0}.run(t, "proxy --help")
		if code != exitHealthy || !strings.Contains(out, "\n  "+want+" proxy POD [VIEW] [flags]\n") || strings.Contains(out, "{tulle}") {
			t.Errorf("%s: exit code %d:\n%s", arg0, code, out)
		}
	}
}

func TestAClusterThatDoesNotAnswerIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", "/dev/null")
	var out, errOut bytes.Buffer
	code := run(context.Background(), []string{"tulle", "status", "--server", "http://" + at}, genericiooptions.IOStreams{Out: &out, ErrOut: &errOut})
	if code != exitError || !strings.Contains(errOut.String(), "Next:  is the cluster up?") {
		t.Errorf("exit code %d: %s", code, errOut.String())
	}
}

func TestStatusTellsWhoIsCalledInPlaintext(t *testing.T) {
	h := harness{
		objects: []runtime.Object{tulled("tulled-1"), pod("shop/a", withProxy), pod("shop/b", withProxy), pod("shop/c", withProxy), pod("shop/d", withProxy, inPhase(corev1.PodPending))},
		replies: map[string]string{
			"tulled-1": streamsOf(streamOf("shop/a", "tulled-1", time.Minute), streamOf("shop/b", "tulled-1", time.Minute), streamOf("shop/c", "tulled-1", time.Minute)),
			"a":        `{"stats": [{"name": "http.inbound-plain.downstream_rq_total", "value": 12}, {"name": "http.inbound-tls.downstream_rq_total", "value": 5}, {"name": "tcp.plain-tcp.downstream_cx_total", "value": 3}]}`,
			"b":        `{"stats": [{"name": "http.inbound-plain.downstream_rq_total", "value": 0}]}`,
			"c":        `not JSON`,
		},
	}
	_, out, _ := h.run(t, "status --plaintext")
	var got []string
	for _, row := range split(out) {
		got = append(got, row[0]+" "+row[len(row)-2]+" / "+row[len(row)-1])
	}
	if diff := cmp.Diff([]string{"POD PLAINTEXT / OTHER TLS", "shop/a 12 HTTP, 3 TCP / 5 HTTP", "shop/b none / none", "shop/c ? / ?", "shop/d - / -"}, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if !strings.Contains(out, "shop/c did not say what comes in in plaintext: ") {
		t.Errorf("it is not said why of shop/c:\n%s", out)
	}
}
