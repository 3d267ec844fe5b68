package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// sidecar is the size of a proxy.
type sidecar struct {
	resources map[string]int // in the configuration dump, by kind
	dump      int            // bytes of the configuration dump
	wire      int            // bytes that came from the control plane
	memory    int            // bytes that Envoy has allocated
}

// scopesKind is the only kind that may grow with the mesh.
const scopesKind = "ScopedRouteConfiguration"

// A proxy knows what its workload calls. Of a service that it does not call it
// knows that it exists: one tiny scope for each port.
func TestASidecarsSizeDependsOnWhatItsWorkloadCalls(t *testing.T) {
	const (
		few, many  = 10, 1000
		wireBudget = 250      // bytes for each further service port
		heapBudget = 4 * 1024 // bytes of Envoy's for each further service port
	)
	noLeftovers(t)
	servers := newSpace(t, "size-servers", true)
	servers.deploy(app{name: "server"})
	for _, name := range []string{"one", "two", "three"} {
		servers.service(name, map[string]string{"app": "server"}, onlyHTTP)
	}
	crowd := newSpace(t, "size-crowd", false)

	crowd.services(0, few)
	small := measureSidecar(t, servers)
	crowd.services(few, many)
	large := measureSidecar(t, servers)

	further := many - few
	wire, heap := (large.wire-small.wire)/further, (large.memory-small.memory)/further
	figure(t, "sidecar with %d services: %v, %d bytes of config dump, %d from the control plane, %d allocated", few, small.resources, small.dump, small.wire, small.memory)
	figure(t, "sidecar with %d services: %v, %d bytes of config dump, %d from the control plane, %d allocated", many, large.resources, large.dump, large.wire, large.memory)
	figure(t, "each further service port: %d bytes on the wire, %d bytes of Envoy's memory", wire, heap)
	for kind := range large.resources {
		if kind != scopesKind && large.resources[kind] != small.resources[kind] {
			t.Errorf("%s: %d with %d services, %d with %d", kind, small.resources[kind], few, large.resources[kind], many)
		}
	}
	if got := large.resources[scopesKind] - small.resources[scopesKind]; got != further {
		t.Errorf("%d more scopes for %d more service ports", got, further)
	}
	if wire > wireBudget {
		t.Errorf("%d bytes on the wire for each further service port, want %d at most", wire, wireBudget)
	}
	if heap > heapBudget {
		t.Errorf("%d bytes of memory for each further service port, want %d at most", heap, heapBudget)
	}
}

// noLeftovers waits until the namespaces of earlier tests are gone: their
// services would be counted.
func noLeftovers(t *testing.T) {
	t.Helper()
	c := cluster(t)
	eventually(t, 2*time.Minute, "the end of earlier tests' namespaces", func(ctx context.Context) error {
		list, err := c.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, n := range list.Items {
			if n.DeletionTimestamp != nil {
				return fmt.Errorf("%s is still there", n.Name)
			}
		}
		return nil
	})
}

func onlyHTTP(s *corev1.Service) { s.Spec.Ports = s.Spec.Ports[:1] }

// services creates services that nobody calls, numbered from and below to.
func (s *space) services(from, to int) {
	s.t.Helper()
	group, ctx := errgroup.WithContext(s.t.Context())
	group.SetLimit(8)
	for i := from; i < to; i++ {
		group.Go(func() error {
			service := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("crowd-%04d", i)},
				Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "nobody"}, Ports: ports()[:1]},
			}
			_, err := s.c.Client.CoreV1().Services(s.name).Create(ctx, service, metav1.CreateOptions{})
			return err
		})
	}
	must(s.t, group.Wait())
}

// measureSidecar starts a client of a workload of its own, has it call three
// services, and looks at its proxy.
func measureSidecar(t *testing.T, servers *space) sidecar {
	t.Helper()
	s := newSpace(t, "size-client", true)
	s.deploy(app{name: "client", noService: true})
	for _, name := range []string{"one", "two", "three"} {
		s.callUntil(s.in("client"), answered(200), "http", servers.url(name))
	}
	pod := s.in("client").Name
	size := sidecar{resources: map[string]int{}}

	dump, err := s.c.Admin(t.Context(), s.name, pod, "/config_dump?include_eds")
	must(t, err)
	size.dump = len(dump)
	must(t, countResources(dump, size.resources))

	var memory struct {
		Allocated string `json:"allocated"`
	}
	text, err := s.c.Admin(t.Context(), s.name, pod, "/memory")
	must(t, err)
	must(t, json.Unmarshal(text, &memory))
	size.memory, err = strconv.Atoi(memory.Allocated)
	must(t, err)
	size.wire, err = bytesFromControlPlane(t.Context(), s.c, s.name, pod)
	must(t, err)
	return size
}

// countResources counts the dynamic resources in a configuration dump by the
// last part of their type's name.
func countResources(dump []byte, counts map[string]int) error {
	var top struct {
		Configs []json.RawMessage `json:"configs"`
	}
	if err := json.Unmarshal(dump, &top); err != nil {
		return fmt.Errorf("reading a configuration dump: %w", err)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if kind, ok := v["@type"].(string); ok {
				if _, kind, found := strings.Cut(kind, "type.googleapis.com/envoy.config."); found && !strings.HasPrefix(kind, "bootstrap") {
					counts[kind[strings.LastIndexByte(kind, '.')+1:]]++
					return // what is inside belongs to it
				}
			}
			for _, child := range v {
				walk(child)
			}
		case []any:
			for _, child := range v {
				walk(child)
			}
		}
	}
	for _, raw := range top.Configs {
		var section map[string]any
		if err := json.Unmarshal(raw, &section); err != nil {
			return fmt.Errorf("reading a section of a configuration dump: %w", err)
		}
		if kind, _ := section["@type"].(string); strings.HasSuffix(kind, "BootstrapConfigDump") {
			continue
		}
		delete(section, "@type")
		walk(section)
	}
	return nil
}

// bytesFromControlPlane is what a proxy has received over its xDS connections.
func bytesFromControlPlane(ctx context.Context, c *kube.Cluster, namespace, pod string) (int, error) {
	const stat = "upstream_cx_rx_bytes_total"
	// The bootstrap's cluster "tulled" leads to the control plane.
	text, err := c.Admin(ctx, namespace, pod, "/stats?filter=cluster.tulled."+stat)
	if err != nil {
		return 0, err
	}
	total := 0
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || !strings.HasSuffix(name, stat) {
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0, fmt.Errorf("reading the statistic %s: %w", name, err)
		}
		total += n
	}
	if total == 0 {
		return 0, fmt.Errorf("the proxy of %s/%s counts no bytes from the control plane: %q", namespace, pod, text)
	}
	return total, nil
}

func TestADumpsDynamicResourcesAreCountedByKind(t *testing.T) {
	counts := map[string]int{}
	err := countResources([]byte(`{"configs": [
		{"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
		 "bootstrap": {"@type": "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap"}},
		{"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [
			{"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "one"}},
			{"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "two"}}]},
		{"@type": "type.googleapis.com/envoy.admin.v3.ScopedRoutesConfigDump", "dynamic_scoped_route_configs": [
			{"scoped_route_configs": [{"@type": "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"}]}]}]}`), counts)
	must(t, err)
	if len(counts) != 2 || counts["Cluster"] != 2 || counts[scopesKind] != 1 {
		t.Errorf("counts %v, want two clusters and a scope", counts)
	}
}
