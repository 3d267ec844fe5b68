package main

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Ways to speak to an endpoint.
const (
	socketMTLS  = "mTLS"  // with the workload's own certificate
	socketTLS   = "TLS"   // without one
	socketPlain = "plain" // in clear
)

// metadataSocket is the endpoint metadata that Envoy chooses a transport
// socket by.
const metadataSocket = "envoy.transport_socket_match"

// kind is the socket in one word.
func (s *transportSocket) kind() string {
	if s == nil || !strings.HasSuffix(s.Config.Type, "TlsContext") {
		return socketPlain
	}
	if strings.HasSuffix(s.Config.Type, "DownstreamTlsContext") {
		if s.Config.RequireClientCertificate {
			return socketMTLS
		}
		return socketTLS
	}
	if len(s.Config.Common.SDS)+len(s.Config.Common.Inline) > 0 {
		return socketMTLS
	}
	return socketTLS
}

// socketFor is how Envoy speaks to an endpoint with the metadata: by the first
// match of which it has all labels, else by the cluster's own socket.
func (c *clusterConfig) socketFor(metadata map[string]any) string {
	for _, m := range c.Matches {
		fits := true
		for k, want := range m.Match {
			got, ok := metadata[k]
			fits = fits && ok && reflect.DeepEqual(got, want)
		}
		if fits {
			return m.Socket.kind()
		}
	}
	return c.Socket.kind()
}

// sockets are the ways that the cluster's endpoints may be spoken to.
func (c *clusterConfig) sockets() string {
	if len(c.Matches) == 0 {
		return c.Socket.kind()
	}
	kinds := map[string]bool{}
	for _, m := range c.Matches {
		kinds[m.Socket.kind()] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(kinds)), " or ")
}

func (c *clusterConfig) kind() string {
	if c.ClusterType.Name != "" {
		return c.ClusterType.Name
	}
	if c.Type == "" {
		return "STATIC"
	}
	return c.Type
}

// clusterRow is a cluster as the proxy has it.
type clusterRow struct {
	Name string `json:"name"`
	Type string `json:"type"`
	// State is static (of the bootstrap), active, or warming: not used yet,
	// since it waits for its endpoints or secrets.
	State     string    `json:"state"`
	Healthy   int       `json:"healthy"`
	Endpoints int       `json:"endpoints"`
	TLS       string    `json:"tls"`
	Version   string    `json:"version,omitempty"`
	Updated   time.Time `json:"updated"`
	Error     string    `json:"error,omitempty"`
}

type clustersView []clusterRow

func (v clustersView) data() any { return v }

func (v clustersView) lacks() bool {
	return slices.ContainsFunc(v, func(r clusterRow) bool { return r.State == "warming" || r.Error != "" })
}

func (v clustersView) table(now time.Time) *table {
	t := &table{header: []string{"CLUSTER", "TYPE", "STATE", "HEALTHY", "TLS", "VERSION", "UPDATED"}}
	for _, r := range v {
		healthy := none
		if r.Endpoints > 0 || r.Type == "EDS" {
			healthy = fmt.Sprintf("%d/%d", r.Healthy, r.Endpoints)
		}
		t.row(r.Name, r.Type, r.State, healthy, r.TLS, short(r.Version), age(r.Updated, now))
		if r.Error != "" {
			t.note("Envoy rejected an update of %s: %s", r.Name, r.Error)
		}
	}
	if len(v) == 0 {
		t.note("No clusters.")
	}
	return t
}

func readClustersView(ctx context.Context, admin endpoint, o proxyOptions) (view, error) {
	d, err := readDump(ctx, admin)
	if err != nil {
		return nil, err
	}
	hosts, err := readClusters(ctx, admin)
	if err != nil {
		return nil, err
	}
	rows := clustersView{}
	add := func(state string, entries []clusterEntry) {
		for _, e := range entries {
			c := &e.Cluster
			if !o.matches(c.Name) {
				continue
			}
			r := clusterRow{
				Name: c.Name, Type: c.kind(), State: state, TLS: c.sockets(),
				Version: e.Version, Updated: e.Updated, Endpoints: len(hosts[c.Name]),
			}
			for _, h := range hosts[c.Name] {
				if h.health() == healthy {
					r.Healthy++
				}
			}
			if e.Error != nil {
				r.Error = e.Error.Details
			}
			rows = append(rows, r)
		}
	}
	add("static", d.clusters.Static)
	add("active", d.clusters.Active)
	add("warming", d.clusters.Warming)
	slices.SortStableFunc(rows, func(a, b clusterRow) int { return strings.Compare(a.Name, b.Name) })
	return rows, nil
}

const healthy = "HEALTHY"

// health is the endpoint's health: what the control plane says of it, and what
// Envoy found out by itself.
func (h hostStatus) health() string {
	said := healthy
	var found []string
	for _, k := range slices.Sorted(maps.Keys(h.Health)) {
		switch v := h.Health[k].(type) {
		case string:
			if k == "eds_health_status" {
				said = v
			}
		case bool:
			if v {
				found = append(found, strings.ReplaceAll(k, "_", " "))
			}
		}
	}
	if len(found) == 0 {
		return said
	}
	if said == healthy {
		return strings.Join(found, ", ")
	}
	return said + ", " + strings.Join(found, ", ")
}

func (h hostStatus) stat(name string) uint64 {
	for _, s := range h.Stats {
		if s.Name == name {
			return uint64(s.Value)
		}
	}
	return 0
}

// endpointRow is one address of a cluster.
type endpointRow struct {
	Cluster string `json:"cluster"`
	Address string `json:"address"`
	Health  string `json:"health"`
	TLS     string `json:"tls"`
	Weight  int    `json:"weight"`
	Zone    string `json:"zone,omitempty"`
	// Requests (connections, for TCP) since the endpoint is known, those of
	// them that failed, and those that are under way. Of the application's own
	// endpoint what failed are connections: its answers the listener counts.
	Requests uint64 `json:"requests"`
	Failed   uint64 `json:"failed"`
	Active   uint64 `json:"active"`
}

type endpointsView []endpointRow

func (v endpointsView) data() any { return v }

func (v endpointsView) table(time.Time) *table {
	t := &table{header: []string{"CLUSTER", "ADDRESS", "HEALTH", "TLS", "WEIGHT", "ZONE", "REQUESTS", "FAILED", "ACTIVE"}}
	for _, r := range v {
		t.row(r.Cluster, r.Address, r.Health, r.TLS, fmt.Sprint(r.Weight), r.Zone,
			fmt.Sprint(r.Requests), fmt.Sprint(r.Failed), fmt.Sprint(r.Active))
	}
	if len(v) == 0 {
		t.note("No endpoints. Destinations are fetched at first use.")
	}
	return t
}

func readEndpointsView(ctx context.Context, admin endpoint, o proxyOptions) (view, error) {
	d, err := readDump(ctx, admin)
	if err != nil {
		return nil, err
	}
	hosts, err := readClusters(ctx, admin)
	if err != nil {
		return nil, err
	}
	metadata := d.endpointMetadata()
	rows := endpointsView{}
	for _, e := range slices.Concat(d.clusters.Static, d.clusters.Active, d.clusters.Warming) {
		c := &e.Cluster
		if !o.matches(c.Name) {
			continue
		}
		for _, h := range hosts[c.Name] {
			at := h.Address.String()
			rows = append(rows, endpointRow{
				Cluster: c.Name, Address: at, Health: h.health(),
				TLS:    c.socketFor(metadata[endpointKey{c.Name, at}]),
				Weight: h.Weight, Zone: h.Locality.Zone,
				Requests: max(h.stat("rq_total"), h.stat("cx_total")),
				Failed:   max(h.stat("rq_error"), h.stat("cx_connect_fail")),
				Active:   max(h.stat("rq_active"), h.stat("cx_active")),
			})
		}
	}
	slices.SortStableFunc(rows, func(a, b endpointRow) int { return strings.Compare(a.Cluster, b.Cluster) })
	return rows, nil
}

type endpointKey struct{ cluster, address string }

// endpointMetadata is what endpoints' transport sockets are chosen by.
func (d *dump) endpointMetadata() map[endpointKey]map[string]any {
	out := map[endpointKey]map[string]any{}
	for _, entry := range slices.Concat(d.endpoints.Static, d.endpoints.Dynamic) {
		for _, locality := range entry.Config.Endpoints {
			for _, e := range locality.Endpoints {
				if m := e.Metadata.Filter[metadataSocket]; m != nil {
					out[endpointKey{entry.Config.Cluster, e.Endpoint.Address.String()}] = m
				}
			}
		}
	}
	return out
}
