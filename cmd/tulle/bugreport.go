package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"regexp"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

func (a *app) bugReportCommand() *cobra.Command {
	var file string
	var proxies int
	cmd := &cobra.Command{
		Use:   "bug-report [POD...]",
		Short: "Write an archive for a bug report, with no secret in it",
		Long: a.text(`
Collects versions, nodes, events, the mesh's objects, the control plane's
manifests, logs and metrics, what {tulle} check and {tulle} status say, and of the
named pods' proxies, or of a few, configuration, statistics and logs.

No Secret is read. Private keys, tokens and values of environment variables are
taken out of everything else; look into the archive before you send it.`),
		Example: a.text(`
  {tulle} bug-report
  {tulle} bug-report deploy/frontend -n shop -f report.tar.gz`),
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.bugReport(cmd.Context(), file, args, proxies)
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "The archive (default tulle-bug-report-TIME.tar.gz)")
	cmd.Flags().IntVar(&proxies, "proxies", 3, "How many proxies to look into where none is named")
	return cmd
}

// archive is a bug report in the making.
type archive struct {
	dir  string
	tar  *tar.Writer
	now  time.Time
	errs []string
}

// secrets are what is taken out of any text: PEM keys and JSON web tokens.
var secrets = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`)

func (r *archive) add(name string, content []byte, err error) {
	if err != nil {
		r.errs = append(r.errs, fmt.Sprintf("%s: %v", name, err))
		return
	}
	content = secrets.ReplaceAll(content, []byte(redacted))
	header := &tar.Header{Name: path.Join(r.dir, name), Mode: 0o644, Size: int64(len(content)), ModTime: r.now}
	if err := r.tar.WriteHeader(header); err != nil {
		r.errs = append(r.errs, err.Error())
		return
	}
	if _, err := r.tar.Write(content); err != nil {
		r.errs = append(r.errs, err.Error())
	}
}

func (r *archive) yaml(name string, object any, err error) {
	if err != nil {
		r.add(name, nil, err)
		return
	}
	text, err := yaml.Marshal(object)
	r.add(name, text, err)
}

func (a *app) bugReport(ctx context.Context, file string, args []string, proxies int) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	name := "tulle-bug-report-" + a.now().UTC().Format("20060102-150405")
	if file == "" {
		file = name + ".tar.gz"
	}
	pods, err := c.reportedPods(ctx, args, proxies)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	r := &archive{dir: name, tar: tar.NewWriter(zip), now: a.now()}
	a.reportCluster(ctx, c, r)
	c.reportControlPlane(ctx, r)
	for i := range pods {
		c.reportProxy(ctx, r, &pods[i])
	}
	var problems bytes.Buffer
	for _, e := range r.errs {
		fmt.Fprintln(&problems, e)
	}
	r.add("not-collected.txt", problems.Bytes(), nil)
	if err := r.tar.Close(); err != nil {
		return fmt.Errorf("writing the archive: %w", err)
	}
	if err := zip.Close(); err != nil {
		return fmt.Errorf("writing the archive: %w", err)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		return fmt.Errorf("writing the archive: %w", err)
	}
	fmt.Fprintf(a.streams.Out, "Wrote %s (%d KiB), with %s. Look into it before you send it.\n", file, out.Len()/1024, count(len(pods), "proxy", "proxies"))
	if n := len(r.errs); n > 0 {
		fmt.Fprintf(a.streams.ErrOut, "%s could not be collected: see not-collected.txt in it.\n", count(n, "part", "parts"))
	}
	return nil
}

// reportedPods are the named pods with a proxy, or a few.
func (c *cluster) reportedPods(ctx context.Context, args []string, few int) ([]corev1.Pod, error) {
	if len(args) == 0 {
		pods, err := c.meshedPods(ctx, "")
		return pods[:min(len(pods), few)], err
	}
	var out []corev1.Pod
	for _, arg := range args {
		p, err := c.proxyPod(ctx, arg)
		if err != nil {
			return nil, err
		}
		out = append(out, *p)
	}
	return out, nil
}

func (a *app) reportCluster(ctx context.Context, c *cluster, r *archive) {
	version, err := c.client.Discovery().ServerVersion()
	r.yaml("cluster/kubernetes.yaml", version, err)
	v := &versions{Client: thisVersion(), namespace: c.meshNamespace}
	r.yaml("cluster/versions.yaml", v, a.clusterVersions(ctx, v))
	nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err == nil {
		for i := range nodes.Items {
			nodes.Items[i].ManagedFields, nodes.Items[i].Status.Images, nodes.Items[i].Annotations = nil, nil, nil
		}
	}
	r.yaml("cluster/nodes.yaml", nodes, err)
	r.yaml("check.yaml", c.check(ctx, false, a.now()), nil)
	s, err := c.status(ctx, nil, true)
	r.yaml("status.yaml", s, err)
	client, err := c.objects()
	if err != nil {
		r.add("objects", nil, err)
		return
	}
	for _, resource := range []string{"meshconfigs", "meshpolicies", "trafficsplits", "externalservices"} {
		list, err := client.dynamic.Resource(schema.GroupVersionResource{Group: "mesh.tulle.dev", Version: "v1alpha1", Resource: resource}).List(ctx, metav1.ListOptions{})
		if err == nil {
			for i := range list.Items {
				list.Items[i].SetManagedFields(nil)
			}
		}
		r.yaml("objects/"+resource+".yaml", list, err)
	}
}

func (c *cluster) reportControlPlane(ctx context.Context, r *archive) {
	deployments, err := c.client.AppsV1().Deployments(c.meshNamespace).List(ctx, metav1.ListOptions{})
	r.yaml("control-plane/deployments.yaml", deployments, err)
	hooks, err := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: selectTulle})
	r.yaml("control-plane/webhooks.yaml", hooks, err)
	events, err := c.client.CoreV1().Events(c.meshNamespace).List(ctx, metav1.ListOptions{})
	r.yaml("control-plane/events.yaml", events, err)
	pods, err := c.listPods(ctx, c.meshNamespace, "")
	r.yaml("control-plane/pods.yaml", pods, err)
	for i := range pods {
		p := &pods[i]
		dir := "control-plane/" + p.Name + "/"
		c.logs(ctx, r, dir, p, "")
		if p.Labels["app.kubernetes.io/name"] != "tulled" || !ready(p) {
			continue
		}
		c.fetch(ctx, r, p, portMetrics, "/metrics", dir+"metrics.txt", nil)
		c.fetch(ctx, r, p, portDebug, pathStreams, dir+"proxies.json", nil)
	}
}

func (c *cluster) reportProxy(ctx context.Context, r *archive, p *corev1.Pod) {
	dir := path.Join("proxies", p.Namespace, p.Name) + "/"
	shown := p.DeepCopy()
	shown.ManagedFields = nil
	for _, containers := range [][]corev1.Container{shown.Spec.InitContainers, shown.Spec.Containers} {
		for i := range containers {
			for j := range containers[i].Env {
				if containers[i].Env[j].Value != "" {
					containers[i].Env[j].Value = redacted
				}
			}
		}
	}
	r.yaml(dir+"pod.yaml", shown, nil)
	events, err := c.client.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + p.Name})
	r.yaml(dir+"events.yaml", events, err)
	c.logs(ctx, r, dir, p, containerProxy)
	c.fetch(ctx, r, p, portAdmin, pathDump, dir+"config.json", func(body []byte) ([]byte, error) {
		var config any
		if err := json.Unmarshal(body, &config); err != nil {
			return nil, err
		}
		return json.MarshalIndent(redact(config), "", " ")
	})
	for _, what := range []string{"clusters", "listeners", "stats", "server_info", "certs"} {
		c.fetch(ctx, r, p, portAdmin, "/"+what, dir+what+".txt", nil)
	}
}

// fetch asks a port of the pod's loopback and adds the answer, changed by clean
// where there is one.
func (c *cluster) fetch(ctx context.Context, r *archive, p *corev1.Pod, port int, ask, name string, clean func([]byte) ([]byte, error)) {
	e, err := c.reach(p, port)
	if err != nil {
		r.add(name, nil, err)
		return
	}
	defer e.Close()
	body, err := e.Get(ctx, ask)
	if err == nil && clean != nil {
		body, err = clean(body)
	}
	r.add(name, body, err)
}

// logs adds the end of a container's log, and of the one before a restart.
func (c *cluster) logs(ctx context.Context, r *archive, dir string, p *corev1.Pod, container string) {
	const lines = 5000
	for _, previous := range []bool{false, true} {
		name := dir + "log.txt"
		if previous {
			name = dir + "log-previous.txt"
		}
		text, err := c.client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
			Container: container, Previous: previous, TailLines: new(int64(lines)),
		}).DoRaw(ctx)
		if err != nil && previous {
			continue // it was not restarted
		}
		r.add(name, text, err)
	}
}
