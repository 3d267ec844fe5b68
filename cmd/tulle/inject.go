package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/webhook"
)

// injectOptions are what inject is told.
type injectOptions struct {
	file                  string
	proxyImage, initImage string
	services, pods        []string
	redirection, revision string
}

func (a *app) injectCommand() *cobra.Command {
	var o injectOptions
	cmd := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Put the sidecar into manifests, for those who do not want the webhook",
		Long: a.text(`
Reads manifests from a file, or from standard input (-), and writes them with the
sidecar in every pod: Pods, Deployments, ReplicaSets, StatefulSets, DaemonSets,
Jobs, CronJobs and Lists of these. Everything else is passed through, comments
aside. What was injected before is brought up to date.

It is the webhook's own code. Images and address ranges are those that the
webhook of your cluster would use, or the flags'; with --service-range and
--pod-range no cluster is asked. The pods' namespace still needs the control
plane's trust bundle, which every namespace has.

Exit codes: 0, or 1 where a pod cannot be in the mesh, with the reason.`),
		Example: a.text(`
  {tulle} inject -f app.yaml | kubectl apply -f -
  kubectl get deploy frontend -o yaml | {tulle} inject -f - | kubectl apply -f -
  {tulle} inject -f app.yaml --proxy-image registry.example/envoy:1.40.0 --init-image registry.example/tulle-init:v1 \
    --service-range 10.96.0.0/12 --pod-range 10.244.0.0/16`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := a.open(o.file)
			if err != nil {
				return err
			}
			settings, err := a.injectSettings(cmd.Context(), o)
			if err != nil {
				return err
			}
			return injectAll(in, a.streams.Out, a.streams.ErrOut, settings)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "filename", "f", "", "File with manifests; - is standard input")
	f.StringVar(&o.proxyImage, "proxy-image", "", "Image of Envoy")
	f.StringVar(&o.initImage, "init-image", "", "Image of tulle-init")
	f.StringSliceVar(&o.services, "service-range", nil, "Address ranges of Services (CIDR)")
	f.StringSliceVar(&o.pods, "pod-range", nil, "Address ranges of pods (CIDR)")
	f.StringVar(&o.redirection, "redirection", "", "init or cni; as the cluster's webhook does by default")
	f.StringVar(&o.revision, "revision", webhook.DefaultRevision, "Control plane that the sidecars connect to")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

func (a *app) open(file string) (io.Reader, error) {
	if file == "-" {
		return a.streams.In, nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the manifests: %w", err)
	}
	return bytes.NewReader(content), nil
}

// injectSettings are the flags', and for the rest what the cluster's webhook
// makes of a pod.
func (a *app) injectSettings(ctx context.Context, o injectOptions) (webhook.Settings, error) {
	s := webhook.Settings{
		Version: thisVersion().Version, Revision: o.revision, ProxyImage: o.proxyImage, InitImage: o.initImage, Resources: webhook.DefaultResources(),
	}
	if err := webhook.ValidRevision(o.revision); err != nil {
		return s, fmt.Errorf("--revision: %w", err)
	}
	var err error
	if s.Services, err = ranges(o.services); err != nil {
		return s, err
	}
	if s.Pods, err = ranges(o.pods); err != nil {
		return s, err
	}
	if o.redirection != "" {
		if s.Redirection, err = webhook.ParseRedirection(o.redirection); err != nil {
			return s, fmt.Errorf("--redirection: %w", err)
		}
	}
	if s.ProxyImage != "" && s.InitImage != "" && len(s.Services) > 0 && len(s.Pods) > 0 {
		return s, nil
	}
	c, err := a.connect()
	if err != nil {
		return s, err
	}
	model, err := c.injected(ctx, s.Revision)
	if err != nil {
		return s, &advice{
			fmt.Errorf("asking the cluster's webhook what it would do: %w", err),
			"give --proxy-image, --init-image, --service-range and --pod-range, so that no cluster is asked",
		}
	}
	return fromModel(s, model)
}

// fromModel fills in what is missing from a pod that the webhook injected.
func fromModel(s webhook.Settings, model *corev1.Pod) (webhook.Settings, error) {
	image, _ := proxyOf(model)
	if s.ProxyImage == "" {
		s.ProxyImage = image
	}
	var services, pods []string
	for _, c := range model.Spec.InitContainers {
		if c.Name != webhook.ContainerInit {
			continue
		}
		if s.InitImage == "" {
			s.InitImage = c.Image
		}
		for _, arg := range c.Args {
			if r, ok := strings.CutPrefix(arg, "--service="); ok {
				services = append(services, r)
			}
			if r, ok := strings.CutPrefix(arg, "--pod="); ok {
				pods = append(pods, r)
			}
			if arg == "check" && s.Redirection == "" {
				s.Redirection = webhook.RedirectionCNI
			}
		}
	}
	var err error
	if len(s.Services) == 0 {
		if s.Services, err = ranges(services); err != nil {
			return s, err
		}
	}
	if len(s.Pods) == 0 {
		s.Pods, err = ranges(pods)
	}
	return s, err
}

func ranges(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not an address range: write a CIDR, such as 10.96.0.0/12", text)
		}
		out = append(out, p)
	}
	return out, nil
}

// injectAll copies documents from in to out, injected.
func injectAll(in io.Reader, out, warnings io.Writer, s webhook.Settings) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(in))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the manifests: %w", err)
		}
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		raw, err := yaml.YAMLToJSON(document)
		if err != nil {
			return fmt.Errorf("reading the manifests: %w", err)
		}
		if string(raw) == "null" {
			continue
		}
		injected, err := injectObject(raw, warnings, s)
		if err != nil {
			return err
		}
		text, err := yaml.JSONToYAML(injected)
		if err != nil {
			return fmt.Errorf("writing the manifests: %w", err)
		}
		if _, err := fmt.Fprintf(out, "---\n%s", text); err != nil {
			return err
		}
	}
}

// injectObject injects the pods of one object; of any other it returns what it
// was given.
func injectObject(raw []byte, warnings io.Writer, s webhook.Settings) ([]byte, error) {
	var list struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("reading an object: %w", err)
	}
	if list.Kind == "List" {
		var whole map[string]json.RawMessage
		if err := json.Unmarshal(raw, &whole); err != nil {
			return nil, err
		}
		for i := range list.Items {
			var err error
			if list.Items[i], err = injectObject(list.Items[i], warnings, s); err != nil {
				return nil, err
			}
		}
		items, err := json.Marshal(list.Items)
		if err != nil {
			return nil, err
		}
		whole["items"] = items
		return json.Marshal(whole)
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
	if runtime.IsNotRegisteredError(err) || runtime.IsMissingKind(err) {
		return raw, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading an object: %w", err)
	}
	meta, template := podTemplate(object)
	if template == nil {
		return raw, nil
	}
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	if pod.Name == "" {
		pod.Name = meta.Name
	}
	pod.Namespace = meta.Namespace
	name := object.GetObjectKind().GroupVersionKind().Kind + " " + meta.Name
	// Who runs this command wants the pods in the mesh, whatever their
	// namespace's label says.
	out, said, err := webhook.Inject(pod, map[string]string{labelInject: "enabled"}, s)
	for _, w := range said {
		fmt.Fprintf(warnings, "Warning: %s: %s\n", name, w)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be in the mesh: %w", name, err)
	}
	if _, ok := object.(*corev1.Pod); !ok {
		out.Name, out.Namespace = template.Name, template.Namespace
	}
	template.ObjectMeta, template.Spec = out.ObjectMeta, out.Spec
	if p, ok := object.(*corev1.Pod); ok {
		p.ObjectMeta, p.Spec = out.ObjectMeta, out.Spec
	}
	return json.Marshal(object)
}

// podTemplate is where an object says what its pods are; nil for one that has
// none.
func podTemplate(object runtime.Object) (metav1.ObjectMeta, *corev1.PodTemplateSpec) {
	switch o := object.(type) {
	case *corev1.Pod:
		return o.ObjectMeta, &corev1.PodTemplateSpec{ObjectMeta: o.ObjectMeta, Spec: o.Spec}
	case *corev1.ReplicationController:
		return o.ObjectMeta, o.Spec.Template
	case *appsv1.Deployment:
		return o.ObjectMeta, &o.Spec.Template
	case *appsv1.ReplicaSet:
		return o.ObjectMeta, &o.Spec.Template
	case *appsv1.StatefulSet:
		return o.ObjectMeta, &o.Spec.Template
	case *appsv1.DaemonSet:
		return o.ObjectMeta, &o.Spec.Template
	case *batchv1.Job:
		return o.ObjectMeta, &o.Spec.Template
	case *batchv1.CronJob:
		return o.ObjectMeta, &o.Spec.JobTemplate.Spec.Template
	}
	return metav1.ObjectMeta{}, nil
}
