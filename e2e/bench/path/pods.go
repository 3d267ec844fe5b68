package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

const (
	// namespace is in the mesh; the pods of variants by hand are not.
	namespace = "bench-path"
	fortio    = "localhost/fortio:dev"
	init_     = "localhost/tulle-init:dev"
	envoy     = "localhost/envoy:1.40.0"
	// configDir is where a proxy by hand finds its configuration.
	configDir = "/etc/envoy"
)

// bench is the pods in the cluster.
type bench struct {
	c *kube.Cluster
	o options
	// logged says whether Tulle's proxies log requests now.
	logged bool
}

// prepare creates the pods of all variants, and has each answer once.
func (b *bench) prepare(ctx context.Context, all []*variant) error {
	if err := b.clean(); err != nil {
		return err
	}
	_, err := b.c.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: namespace, Labels: map[string]string{"mesh.tulle.dev/inject": "enabled"},
	}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if err := b.setLog(ctx, true); err != nil {
		return err
	}
	tls, err := newCredentials()
	if err != nil {
		return err
	}
	for _, v := range all {
		fmt.Fprintf(os.Stderr, "%s: %s\n", v.name, v.what)
		if err := b.deploy(ctx, v, tls); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

// clean takes everything away.
func (b *bench) clean() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := b.c.Client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}); err != nil {
		return nil //nolint:nilerr // there is none
	}
	return errors.Join(b.setLog(ctx, true), b.c.NamespaceGone(ctx, namespace, 2*time.Minute))
}

func (b *bench) setLog(ctx context.Context, on bool) error {
	mode := "Disabled"
	if on {
		mode = "JSON"
	}
	if err := b.c.Apply(ctx, fmt.Sprintf(`{apiVersion: mesh.tulle.dev/v1alpha1, kind: MeshConfig, metadata: {name: default}, spec: {accessLog: {mode: %s}}}`, mode)); err != nil {
		return err
	}
	b.logged = on
	return kube.Eventually(ctx, time.Minute, "the access log's change", func(ctx context.Context) error {
		return b.c.Condition(ctx, kube.MeshKind("MeshConfig"), "", "default", "Programmed", "True")
	})
}

func (b *bench) deploy(ctx context.Context, v *variant, tls map[string]*credentials) error {
	server, client := v.slug()+"-server", v.slug()+"-client"
	core := b.c.Client.CoreV1()
	service, err := core.Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: server},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": server},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 8080, TargetPort: intstr.FromInt32(8080)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	var config []byte
	if v.hand != nil {
		if config, err = serverConfig(*v.hand, tls["server"]); err != nil {
			return err
		}
	}
	there, err := b.pod(ctx, server, v, config)
	if err != nil {
		return err
	}
	if v.hand != nil {
		if config, err = clientConfig(*v.hand, tls["client"], service.Spec.ClusterIP+":8080", there.Status.PodIP+":8080"); err != nil {
			return err
		}
	}
	if _, err := b.pod(ctx, client, v, config); err != nil {
		return err
	}
	if v.policy != "" {
		spec := strings.ReplaceAll(v.policy, "NAME", v.slug())
		if err := b.c.Apply(ctx, fmt.Sprintf("{apiVersion: mesh.tulle.dev/v1alpha1, kind: MeshPolicy, metadata: {namespace: %s, name: %s}, spec: %s}", namespace, v.slug(), spec)); err != nil {
			return err
		}
	}
	return kube.Eventually(ctx, time.Minute, "an answer", func(ctx context.Context) error {
		_, err := b.fortio(ctx, v, "-qps", "50", "-n", "20", "-c", "1")
		return err
	})
}

// pod creates a pod, with a proxy by hand if there is a configuration for it, and
// waits until it is ready.
func (b *bench) pod(ctx context.Context, name string, v *variant, config []byte) (*corev1.Pod, error) {
	core := b.c.Client.CoreV1()
	if _, err := core.ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			ServiceAccountName:            name,
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			Containers: []corev1.Container{{
				Name: "app", Image: fortio, Args: []string{"server", "-loglevel", "error", "-grpc-port", "disabled", "-redirect-port", "disabled"},
			}},
		},
	}
	if v.hand != nil {
		pod.Labels["mesh.tulle.dev/inject"] = "disabled"
		_, err := core.ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"envoy.yaml": string(config)},
		}, metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		if err := b.byHand(ctx, pod); err != nil {
			return nil, err
		}
	}
	if _, err := core.Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	var ready *corev1.Pod
	err := kube.Eventually(ctx, 2*time.Minute, "the pod "+name, func(ctx context.Context) error {
		var err error
		ready, err = core.Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil && !kube.PodReady(ready) {
			err = errors.New("it is not ready")
		}
		return err
	})
	return ready, err
}

// byHand gives the pod the same redirection as Tulle's, and an Envoy with the
// configuration in the ConfigMap of its name.
func (b *bench) byHand(ctx context.Context, pod *corev1.Pod) error {
	redirect, user, err := b.redirection(ctx)
	if err != nil {
		return err
	}
	pod.Spec.InitContainers = []corev1.Container{*redirect, {
		Name: "envoy", Image: envoy, RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways),
		Command: []string{
			"/usr/local/bin/envoy", "--config-path", configDir + "/envoy.yaml", "--concurrency", "2", "--log-level", "warning",
			"--file-flush-interval-msec", "1000", "--disable-hot-restart", "--service-node", pod.Name + "." + namespace, "--service-cluster", pod.Name,
		},
		SecurityContext: user,
		VolumeMounts:    []corev1.VolumeMount{{Name: "config", MountPath: configDir}},
	}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "config", VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: pod.Name}},
	}}}
	return nil
}

// redirection is the init container that the webhook gives a pod, and as whom the proxy
// runs that is not redirected itself.
func (b *bench) redirection(ctx context.Context) (*corev1.Container, *corev1.SecurityContext, error) {
	pod, err := b.c.Client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "example"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: fortio}}},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return nil, nil, err
	}
	if c := pod.Spec.InitContainers; len(c) == 2 && c[0].Image == init_ {
		c[0].VolumeMounts = nil // the token, which it does not use
		return &c[0], c[1].SecurityContext, nil
	}
	return nil, nil, errors.New("a pod is not given tulle-init: is the CNI plugin installed?")
}

// sample is what one load found. CPU is of one request, in µs; delays are in ms.
type sample struct {
	Client float64 `json:"clientProxyCPU"`
	Server float64 `json:"serverProxyCPU"`
	P50    float64 `json:"p50"`
	P99    float64 `json:"p99"`
}

// load is one load of a variant.
func (b *bench) load(ctx context.Context, v *variant) (sample, error) {
	if v.hand == nil && v.log != b.logged {
		if err := b.setLog(ctx, v.log); err != nil {
			return sample{}, err
		}
	}
	// Listeners may be others since the last time, and proxies connect anew then.
	warm := []string{"-qps", strconv.Itoa(b.o.rate), "-c", strconv.Itoa(b.o.connections), "-t", "1500ms"}
	if _, err := b.fortio(ctx, v, warm...); err != nil {
		return sample{}, err
	}
	client, err := proxyOf(v.slug() + "-client")
	if err != nil {
		return sample{}, err
	}
	server, err := proxyOf(v.slug() + "-server")
	if err != nil {
		return sample{}, err
	}
	clientBefore, serverBefore := cpu(client), cpu(server)
	r, err := b.fortio(ctx, v, "-qps", strconv.Itoa(b.o.rate), "-c", strconv.Itoa(b.o.connections), "-t", b.o.lasts.String())
	if err != nil {
		return sample{}, err
	}
	s := sample{
		Client: 1e6 * (cpu(client) - clientBefore).Seconds() / float64(r.Histogram.Count),
		Server: 1e6 * (cpu(server) - serverBefore).Seconds() / float64(r.Histogram.Count),
	}
	for _, p := range r.Histogram.Percentiles {
		switch p.Percentile {
		case 50:
			s.P50 = 1000 * p.Value
		case 99:
			s.P99 = 1000 * p.Value
		}
	}
	return s, nil
}

// answer is what of fortio's is used.
type answer struct {
	Codes     map[string]int `json:"RetCodes"`
	Histogram struct {
		Count       int
		Percentiles []struct{ Percentile, Value float64 }
	} `json:"DurationHistogram"`
}

// fortio calls a variant's server from its client. Any answer but 200 is an error.
func (b *bench) fortio(ctx context.Context, v *variant, flags ...string) (*answer, error) {
	args := append([]string{"/fortio", "load", "-json", "-", "-quiet", "-loglevel", "error", "-p", "50,99", "-r", "0.00001", "-uniform"}, flags...)
	args = append(args, fmt.Sprintf("http://%s-server:8080/echo?size=%d", v.slug(), b.o.size))
	out, err := b.c.Exec(ctx, kube.Pod{Namespace: namespace, Name: v.slug() + "-client", Container: "app"}, args...)
	if err != nil {
		return nil, err
	}
	var r answer
	if err := json.Unmarshal(out[max(bytes.IndexByte(out, '{'), 0):], &r); err != nil {
		return nil, fmt.Errorf("reading fortio's answer: %w: %s", err, out)
	}
	if r.Codes["200"] != r.Histogram.Count || r.Histogram.Count == 0 {
		return nil, fmt.Errorf("%d calls were answered by %v", r.Histogram.Count, r.Codes)
	}
	return &r, nil
}

// proxyOf finds a pod's Envoy on this machine, by the name in its arguments.
func proxyOf(pod string) (pid int, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		arguments, err := os.ReadFile(file) //nolint:gosec // of /proc
		if err == nil && bytes.HasPrefix(arguments, []byte("/usr/local/bin/envoy")) && bytes.Contains(arguments, []byte(pod+"."+namespace)) {
			return strconv.Atoi(strings.Split(file, "/")[2])
		}
	}
	return 0, fmt.Errorf("no process of this machine is the proxy of %s: the cluster has to be on this machine", pod)
}

// cpu is the time that a process's threads have run; 0 if it is gone.
func cpu(pid int) (total time.Duration) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, file := range files {
		content, err := os.ReadFile(file) //nolint:gosec // of /proc
		if fields := strings.Fields(string(content)); err == nil && len(fields) > 0 {
			n, _ := strconv.ParseInt(fields[0], 10, 64)
			total += time.Duration(n)
		}
	}
	return total
}
