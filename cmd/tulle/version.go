package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
)

// versions is the answer to `tulle version`.
type versions struct {
	Client       clientVersion `json:"client"`
	ControlPlane []imageCount  `json:"controlPlane,omitempty"`
	Proxies      []imageCount  `json:"proxies,omitempty"`

	clientOnly bool
	namespace  string
}

type clientVersion struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// imageCount says how many pods of a revision run an image.
type imageCount struct {
	Revision string `json:"revision"`
	Image    string `json:"image"`
	Pods     int    `json:"pods"`
	Ready    int    `json:"ready"`
}

func (v *versions) data() any { return v }

func (v *versions) table(time.Time) *table {
	t := &table{header: []string{"PART", "REVISION", "VERSION", "PODS", "READY"}}
	t.row("client", none, v.Client.Version, none, none)
	for _, part := range []struct {
		name   string
		images []imageCount
	}{{"control plane", v.ControlPlane}, {"proxy", v.Proxies}} {
		for _, i := range part.images {
			t.row(part.name, i.Revision, i.Image, fmt.Sprint(i.Pods), fmt.Sprint(i.Ready))
		}
	}
	if !v.clientOnly && len(v.ControlPlane) == 0 {
		t.note("No control plane runs in namespace %s.", v.namespace)
	}
	for _, r := range mixed(v.ControlPlane) {
		t.note("The control plane of revision %s runs several versions: an upgrade is under way, or stuck.", r)
	}
	for _, r := range mixed(v.Proxies) {
		t.note("Proxies of revision %s run several versions: restart workloads to give them the present one.", r)
	}
	return t
}

// mixed are the revisions of which there are several images.
func mixed(counts []imageCount) (out []string) {
	for i := 1; i < len(counts); i++ {
		r := counts[i].Revision
		if r == counts[i-1].Revision && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

func (a *app) versionCommand() *cobra.Command {
	var format string
	var clientOnly bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "What runs: this program, the control plane, the proxies",
		Example: a.text(`
  {tulle} version
  {tulle} version --client       # does not ask the cluster`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			v := &versions{Client: thisVersion(), clientOnly: clientOnly, namespace: a.meshNamespace}
			var failed error
			if !clientOnly {
				failed = a.clusterVersions(cmd.Context(), v)
				v.clientOnly = failed != nil
			}
			if err := a.show(format, v); err != nil {
				return err
			}
			return failed
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "Only this program's version")
	outputFlag(cmd, &format)
	return cmd
}

// clusterVersions fills in what runs in the cluster.
func (a *app) clusterVersions(ctx context.Context, v *versions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	control, err := c.listPods(ctx, c.meshNamespace, selectTulled)
	if err != nil {
		return err
	}
	proxies, err := c.meshedPods(ctx, "")
	if err != nil {
		return err
	}
	v.ControlPlane = countImages(control, "tulled", func(p *corev1.Pod) string { return revisionIn(p.Labels) })
	v.Proxies = countImages(proxies, containerProxy, servedBy)
	return nil
}

// countImages counts the pods by their revision and the image of the named
// container, and sorts by both. Pods that end are left out.
func countImages(pods []corev1.Pod, container string, revision func(*corev1.Pod) string) []imageCount {
	type key struct{ revision, image string }
	counts := map[key]imageCount{}
	for i := range pods {
		pod := &pods[i]
		if over(pod) {
			continue
		}
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			if c.Name != container {
				continue
			}
			k := key{revision(pod), c.Image}
			n := counts[k]
			n.Revision, n.Image = k.revision, k.image
			n.Pods++
			if ready(pod) {
				n.Ready++
			}
			counts[k] = n
		}
	}
	return slices.SortedFunc(maps.Values(counts), func(a, b imageCount) int {
		return cmp.Or(strings.Compare(a.Revision, b.Revision), strings.Compare(a.Image, b.Image))
	})
}

// thisVersion is what the Go toolchain recorded when it built this program.
func thisVersion() clientVersion {
	v := clientVersion{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Revision = s.Value
		}
	}
	return v
}
