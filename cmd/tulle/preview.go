package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pmezard/go-difflib/difflib"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/tulle-mesh/tulle/webhook"
	"github.com/tulle-mesh/tulle/xds/preview"
)

const pathPreview = "/debug/preview"

// refusal is an object that the API server would refuse, and its words.
type refusal struct {
	Object string `json:"object"`
	Words  string `json:"words"`
}

// changedWorkload is what would change at the proxies of one workload.
type changedWorkload struct {
	Workload string `json:"workload"` // namespace/kind/name
	Proxies  int    `json:"proxies"`
	// Resources are those that would be sent anew, or be gone, as "Type name".
	Resources []string `json:"resources"`
}

// previewView is the answer to `tulle preview`.
type previewView struct {
	preview.Answer
	Refused   []refusal         `json:"refused"`
	Warnings  []string          `json:"warnings,omitempty"`
	Workloads []changedWorkload `json:"workloads"`

	diff bool
}

func (v *previewView) data() any { return v }

// lacks reports whether an object would not hold, or not all is known.
func (v *previewView) lacks() bool {
	return len(v.Refused) > 0 || len(v.Missing) > 0 || slices.ContainsFunc(v.Objects, func(o preview.Object) bool {
		return slices.ContainsFunc(o.Conditions, func(c preview.Condition) bool { return !c.OK })
	})
}

func (v *previewView) table(time.Time) *table {
	t := &table{header: []string{"WORKLOAD", "PROXIES", "RESOURCES"}}
	for _, w := range v.Workloads {
		t.row(w.Workload, fmt.Sprint(w.Proxies), list(w.Resources, 4))
	}
	for _, r := range v.Refused {
		t.note("%s would be refused: %s", r.Object, r.Words)
	}
	for _, s := range v.Sentences("") {
		t.note("%s%s.", strings.ToUpper(s[:1]), strings.TrimSuffix(s[1:], "."))
	}
	for _, w := range v.Warnings {
		t.note("Warning: %s", w)
	}
	if v.diff {
		for i := range v.Resources {
			if d := unified(&v.Resources[i]); d != "" {
				t.note("\n%s", d)
			}
		}
	}
	return t
}

// unified is the resource's difference; empty where there are no texts.
func unified(r *preview.Resource) string {
	if r.Now == nil && r.Then == nil {
		return ""
	}
	lines := func(raw json.RawMessage) []string {
		if raw == nil {
			return nil
		}
		text, err := yaml.JSONToYAML(raw)
		if err != nil {
			return []string{err.Error() + "\n"}
		}
		return difflib.SplitLines(string(text))
	}
	pods := count(len(r.Pods), "proxy", "proxies")
	text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
		A: lines(r.Now), B: lines(r.Then), Context: 3,
		FromFile: r.Type + " " + r.Name + " as it is at " + pods, ToFile: r.Type + " " + r.Name + " as it would be",
	})
	if err != nil {
		return err.Error()
	}
	return strings.TrimRight(text, "\n")
}

func (a *app) previewCommand() *cobra.Command {
	var file, format string
	var remove, diff bool
	cmd := &cobra.Command{
		Use:   "preview -f FILE",
		Short: "What objects would change, before they are applied",
		Long: a.text(`
Says what the proxies of the mesh would be sent if the objects were applied, all
at once: which workloads, how many proxies, which resources, and with --diff the
resources' difference. Objects that the API server would refuse are named with its
words, and so are conditions that would be False, of other objects too. Nothing is
changed: the API server is asked in a dry run, and the control plane builds on a
hypothetical mesh.

It takes objects of Tulle and of the Gateway API. The namespace of an object that
names none is that of -n. With kubectl apply --dry-run=server, the API server's
warnings say the same of one object in short.

Exit codes: 0 all would hold, 1 error, 2 an object would be refused or not hold,
or a replica of the control plane did not answer.`),
		Example: a.text(`
  {tulle} preview -f policy.yaml
  {tulle} preview -f policy.yaml --diff
  {tulle} preview -f policy.yaml --delete
  kubectl get mpol -n shop web -o yaml | sed s/Permissive/Strict/ | {tulle} preview -f -`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			return a.preview(cmd.Context(), file, format, remove, diff)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "filename", "f", "", "File with objects; - is standard input")
	f.BoolVar(&remove, "delete", false, "What if the objects were deleted")
	f.BoolVar(&diff, "diff", false, "Show how each resource would differ")
	outputFlag(cmd, &format)
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

func (a *app) preview(ctx context.Context, file, format string, remove, diff bool) error {
	in, err := a.open(file)
	if err != nil {
		return err
	}
	wanted, err := readObjects(in)
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		return fmt.Errorf("%s has no object", file)
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	v := &previewView{Refused: []refusal{}, Workloads: []changedWorkload{}, diff: diff}
	q := preview.Question{Details: diff}
	if err := c.suppose(ctx, wanted, remove, &q, v); err != nil {
		return err
	}
	// Whichever replica is asked asks the others.
	if err := c.askControlPlane(ctx, pathPreview, q, &v.Answer); err != nil {
		return err
	}
	if v.Workloads, err = c.workloads(ctx, &v.Answer); err != nil {
		return err
	}
	if err := a.show(format, v); err != nil {
		return err
	}
	if v.lacks() {
		return errLacking
	}
	return nil
}

// readObjects reads YAML or JSON documents, of which lists are taken apart.
func readObjects(in io.Reader) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	documents := utilyaml.NewYAMLOrJSONDecoder(bufio.NewReader(in), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := documents.Decode(&o.Object)
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("reading the objects: %w", err)
		case len(o.Object) == 0:
			continue
		case o.IsList():
			if err := o.EachListItem(func(item runtime.Object) error {
				out = append(out, item.(*unstructured.Unstructured))
				return nil
			}); err != nil {
				return nil, fmt.Errorf("reading the objects: %w", err)
			}
			continue
		case o.GetKind() == "" || o.GetAPIVersion() == "" || o.GetName() == "":
			return nil, errors.New("reading the objects: one lacks its apiVersion, kind or metadata.name")
		}
		out = append(out, o)
	}
}

// suppose puts the objects as they would be stored into the question, and those
// that would be refused into the view.
func (c *cluster) suppose(ctx context.Context, wanted []*unstructured.Unstructured, remove bool, q *preview.Question, v *previewView) error {
	quiet := *c
	quiet.config = rest.CopyConfig(c.config)
	quiet.config.WarningHandler = warned{&v.Warnings}
	client, err := quiet.objects()
	if err != nil {
		return err
	}
	for _, o := range wanted {
		if o.GetKind() == "Secret" {
			return fmt.Errorf("%s: Secrets are not previewed: what is in them stays with the API server", describe(o))
		}
		stored, err := client.dryRun(ctx, o, remove)
		status := apierrors.APIStatus(nil)
		switch {
		case meta.IsNoMatchError(err):
			return &advice{err, "apply the CRDs first: tulle install --dry-run shows Tulle's"}
		case errors.As(err, &status) && (apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) || apierrors.IsNotFound(err)):
			v.Refused = append(v.Refused, refusal{describe(o), err.Error()})
			continue
		case err != nil:
			return fmt.Errorf("asking the API server about %s: %w", describe(o), err)
		}
		raw, err := json.Marshal(stored.Object)
		if err != nil {
			return err
		}
		if remove {
			q.Delete = append(q.Delete, raw)
		} else {
			q.Put = append(q.Put, raw)
		}
	}
	return nil
}

// warned keeps the API server's warnings, the preview of a dry run aside.
type warned struct{ to *[]string }

// HandleWarningHeader keeps one.
func (w warned) HandleWarningHeader(code int, _, text string) {
	if code == 299 && !strings.HasPrefix(text, webhook.DryRunPrefix) && !slices.Contains(*w.to, text) {
		*w.to = append(*w.to, text)
	}
}

// dryRun is the object as it would be stored, or as it is that would be deleted.
func (c *objects) dryRun(ctx context.Context, o *unstructured.Unstructured, remove bool) (*unstructured.Unstructured, error) {
	r, err := c.of(o)
	if err != nil {
		return nil, err
	}
	live, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case remove:
		return live, err
	case apierrors.IsNotFound(err):
		created := o.DeepCopy()
		created.SetResourceVersion("")
		created.SetUID("")
		return r.Create(ctx, created, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	case err != nil:
		return nil, err
	}
	next := live.DeepCopy()
	next.SetLabels(o.GetLabels())
	next.SetAnnotations(o.GetAnnotations())
	for field := range next.Object {
		if !ownField(field) {
			delete(next.Object, field)
		}
	}
	for field, value := range o.Object {
		if !ownField(field) {
			next.Object[field] = value
		}
	}
	return r.Update(ctx, next, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
}

// ownField reports whether a field stays the live object's own.
func ownField(field string) bool {
	return slices.Contains([]string{"apiVersion", "kind", "metadata", "status"}, field)
}

// workloads are those of the pods that would be changed.
func (c *cluster) workloads(ctx context.Context, a *preview.Answer) ([]changedWorkload, error) {
	owners, err := c.owners(ctx, a.Changed)
	if err != nil {
		return nil, err
	}
	resources, pods := map[string]map[string]bool{}, map[string]int{}
	for _, pod := range a.Changed {
		pods[owners[pod]]++
	}
	for _, r := range a.Resources {
		for _, pod := range r.Pods {
			w := owners[pod]
			if resources[w] == nil {
				resources[w] = map[string]bool{}
			}
			resources[w][r.Type+" "+r.Name] = true
		}
	}
	out := []changedWorkload{}
	for _, w := range slices.Sorted(maps.Keys(pods)) {
		out = append(out, changedWorkload{Workload: w, Proxies: pods[w], Resources: slices.Sorted(maps.Keys(resources[w]))})
	}
	return out, nil
}

// owners are the workloads of the pods, namespace/kind/name; each owner is looked
// up once.
func (c *cluster) owners(ctx context.Context, pods []string) (map[string]string, error) {
	wanted, namespaces := map[string]bool{}, map[string]bool{}
	for _, pod := range pods {
		namespace, _, _ := strings.Cut(pod, "/")
		wanted[pod], namespaces[namespace] = true, true
	}
	out, known := map[string]string{}, map[string]string{}
	for namespace := range namespaces {
		list, err := c.listPods(ctx, namespace, "")
		if err != nil {
			return nil, err
		}
		for i := range list {
			p := &list[i]
			if !wanted[podName(p)] {
				continue
			}
			owner := metav1.GetControllerOf(p)
			if owner != nil && known[string(owner.UID)] != "" {
				out[podName(p)] = known[string(owner.UID)]
				continue
			}
			w, err := c.workloadOf(ctx, p)
			if err != nil {
				return nil, err
			}
			out[podName(p)] = w.String()
			if owner != nil && w.Kind != "pod" {
				known[string(owner.UID)] = w.String()
			}
		}
	}
	for pod := range wanted {
		if out[pod] == "" { // it has ended meanwhile
			out[pod] = strings.Replace(pod, "/", "/pod/", 1)
		}
	}
	return out, nil
}
