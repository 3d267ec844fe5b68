package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"

	"github.com/tulle-mesh/tulle/cmd/tulle-cni/plugin"
	"github.com/tulle-mesh/tulle/cmd/tulle-init/redirect"
)

// +kubebuilder:rbac:groups="",resources=pods,verbs=list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

const (
	// labelProxy is on pods that were injected, see package webhook.
	labelProxy = "mesh.tulle.dev/proxy"
	// checkContainer is the init container that waits for the rules.
	checkContainer = "tulle-init"
)

// mender redirects the node's pods that wait for it.
type mender struct {
	client kubernetes.Interface
	o      Options
	events events.EventRecorder
	queue  workqueue.TypedRateLimitingInterface[string]
	pods   cache.SharedIndexInformer
}

func newMender(client kubernetes.Interface, o Options) *mender {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(l *metav1.ListOptions) {
		l.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", o.NodeName).String()
		l.LabelSelector = labelProxy
	}))
	return &mender{
		client: client, o: o, pods: factory.Core().V1().Pods().Informer(),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 10*time.Second)),
	}
}

// run mends until the context ends.
func (m *mender) run(ctx context.Context) {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: m.client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		m.o.Log.Error(err, "there will be no events")
	}
	defer broadcaster.Shutdown()
	m.events = broadcaster.NewRecorder(scheme.Scheme, "tulle-cni")
	enqueue := func(obj any) {
		if p, ok := obj.(*corev1.Pod); ok && waits(p) {
			m.queue.Add(p.Namespace + "/" + p.Name)
		}
	}
	_, err := m.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: enqueue, UpdateFunc: func(_, obj any) { enqueue(obj) }})
	if err != nil {
		m.o.Log.Error(err, "cannot follow the node's pods: none is redirected that began without the plugin")
		return
	}
	go m.pods.RunWithContext(ctx)
	go func() {
		<-ctx.Done()
		m.queue.ShutDown()
	}()
	for m.next() {
	}
}

func (m *mender) next() bool {
	key, stop := m.queue.Get()
	if stop {
		return false
	}
	defer m.queue.Done(key)
	obj, exists, err := m.pods.GetStore().GetByKey(key)
	if err != nil || !exists {
		m.queue.Forget(key)
		return true
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok || !waits(pod) {
		m.queue.Forget(key)
		return true
	}
	did, err := m.mend(pod)
	switch {
	case err != nil:
		m.o.Log.Error(err, "cannot redirect a pod; trying again", "pod", key)
		m.events.Eventf(pod, nil, corev1.EventTypeWarning, "RedirectFailed", "Redirect", "the node cannot redirect the pod's traffic to its sidecar, and so it does not start: %v", err)
		m.queue.AddRateLimited(key)
	case did:
		m.o.Log.Info("redirected a pod that began without the plugin", "pod", key)
		m.events.Eventf(pod, nil, corev1.EventTypeNormal, "Redirected", "Redirect", "the pod began without the CNI plugin; its traffic is redirected to its sidecar now")
		m.queue.Forget(key)
	default:
		m.queue.Forget(key)
	}
	return true
}

// waits reports whether the pod is to be redirected from the node and its init
// container, which makes sure of that, has not ended well.
func waits(p *corev1.Pod) bool {
	if p.Annotations[plugin.Annotation] == "" || p.DeletionTimestamp != nil || p.Spec.HostNetwork {
		return false
	}
	for _, s := range p.Status.InitContainerStatuses {
		if s.Name == checkContainer {
			ended := s.State.Terminated
			return ended == nil && (s.State.Running != nil || s.LastTerminationState.Terminated != nil) || ended != nil && ended.ExitCode != 0
		}
	}
	return false
}

// mend redirects the pod's traffic, unless it is.
func (m *mender) mend(p *corev1.Pod) (did bool, err error) {
	r, err := find(m.o.Results, string(p.UID))
	if err != nil {
		return false, err
	}
	c, err := plugin.Configuration(p.Annotations[plugin.Annotation], r.CapabilityArgs.DNS.Servers)
	if err != nil {
		return false, err
	}
	err = ns.WithNetNSPath(r.Netns, func(host ns.NetNS) error {
		if redirect.Applied() == nil {
			return nil
		}
		did = true
		return redirect.Apply(c)
	})
	if err != nil {
		return false, fmt.Errorf("in the network namespace %s: %w", r.Netns, err)
	}
	return did, nil
}

// result is what libcni writes down of one network of a sandbox
// (github.com/containernetworking/cni/libcni, cachedInfo).
type result struct {
	Netns          string              `json:"netns"`
	CNIArgs        [][2]string         `json:"cniArgs"`
	CapabilityArgs plugin.Capabilities `json:"capabilityArgs"`
	ContainerID    string              `json:"containerId"`
}

// find looks for the sandbox of the pod with the UID. A pod whose sandbox was
// made anew may have left an earlier one, so that the newest counts.
func find(dir, uid string) (*result, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for the pod's network namespace: %w", err)
	}
	var (
		found *result
		at    time.Time
	)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // it is gone
		}
		var r result
		if json.Unmarshal(content, &r) != nil || r.Netns == "" || !r.of(uid) || found != nil && info.ModTime().Before(at) {
			continue
		}
		found, at = &r, info.ModTime()
	}
	if found == nil {
		return nil, errors.New("the container runtime has written nothing down about its network: delete the pod, so that it begins anew with the plugin")
	}
	return found, nil
}

func (r *result) of(uid string) bool {
	for _, arg := range r.CNIArgs {
		if arg[0] == "K8S_POD_UID" {
			return arg[1] == uid
		}
	}
	return false
}
