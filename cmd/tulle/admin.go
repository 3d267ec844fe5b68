package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// The shapes of Envoy's admin answers (envoy.admin.v3), as far as the views
// need them. They are read as plain JSON and not as protobuf: an extension that
// this program does not know must not hide the rest.

// dump is /config_dump?include_eds, taken apart by section.
type dump struct {
	clusters  clustersDump
	listeners listenersDump
	routes    routesDump
	scopes    scopesDump
	endpoints endpointsDump
}

type clustersDump struct {
	Static  []clusterEntry `json:"static_clusters"`
	Active  []clusterEntry `json:"dynamic_active_clusters"`
	Warming []clusterEntry `json:"dynamic_warming_clusters"`
}

type clusterEntry struct {
	Version string        `json:"version_info"`
	Updated time.Time     `json:"last_updated"`
	Cluster clusterConfig `json:"cluster"`
	Error   *updateError  `json:"error_state"`
}

type clusterConfig struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	ClusterType struct {
		Name string `json:"name"`
	} `json:"cluster_type"`
	EDS struct {
		ServiceName string `json:"service_name"`
	} `json:"eds_cluster_config"`
	Socket  *transportSocket `json:"transport_socket"`
	Matches []socketMatch    `json:"transport_socket_matches"`
}

// socketMatch chooses a transport socket for the endpoints whose metadata
// envoy.transport_socket_match has all of Match.
type socketMatch struct {
	Name   string           `json:"name"`
	Match  map[string]any   `json:"match"`
	Socket *transportSocket `json:"transport_socket"`
}

type transportSocket struct {
	Config struct {
		Type   string `json:"@type"`
		Common struct {
			SDS    []json.RawMessage `json:"tls_certificate_sds_secret_configs"`
			Inline []json.RawMessage `json:"tls_certificates"`
		} `json:"common_tls_context"`
		RequireClientCertificate bool `json:"require_client_certificate"`
	} `json:"typed_config"`
}

// updateError is the last update that Envoy refused.
type updateError struct {
	Details string    `json:"details"`
	Attempt time.Time `json:"last_update_attempt"`
	Failed  struct {
		Name string `json:"name"`
	} `json:"failed_configuration"`
}

type listenersDump struct {
	Static []struct {
		Updated  time.Time      `json:"last_updated"`
		Listener listenerConfig `json:"listener"`
	} `json:"static_listeners"`
	Dynamic []struct {
		Name     string         `json:"name"`
		Active   *listenerState `json:"active_state"`
		Warming  *listenerState `json:"warming_state"`
		Draining *listenerState `json:"draining_state"`
		Error    *updateError   `json:"error_state"`
	} `json:"dynamic_listeners"`
}

// errors are the updates that Envoy refused, by listener. Envoy says it twice
// of a listener that it has: with its state, and in an element that has no name
// but that of the configuration that failed.
func (d *listenersDump) errors() map[string]string {
	out := map[string]string{}
	for _, l := range d.Dynamic {
		if l.Error != nil {
			out[cmp.Or(l.Name, l.Error.Failed.Name)] = l.Error.Details
		}
	}
	return out
}

type listenerState struct {
	Version  string         `json:"version_info"`
	Updated  time.Time      `json:"last_updated"`
	Listener listenerConfig `json:"listener"`
}

type listenerConfig struct {
	Name         string          `json:"name"`
	Address      address         `json:"address"`
	More         []addressField  `json:"additional_addresses"`
	Chains       []filterChain   `json:"filter_chains"`
	Matcher      json.RawMessage `json:"filter_chain_matcher"`
	DefaultChain *filterChain    `json:"default_filter_chain"`
}

type addressField struct {
	Address address `json:"address"`
}

type filterChain struct {
	Name    string           `json:"name"`
	Match   *chainMatch      `json:"filter_chain_match"`
	Socket  *transportSocket `json:"transport_socket"`
	Filters []struct {
		Name   string       `json:"name"`
		Config filterConfig `json:"typed_config"`
	} `json:"filters"`
}

type chainMatch struct {
	Port      int         `json:"destination_port"`
	Ranges    []cidrRange `json:"prefix_ranges"`
	Transport string      `json:"transport_protocol"`
	Protocols []string    `json:"application_protocols"`
	SNI       []string    `json:"server_names"`
}

type cidrRange struct {
	Prefix string `json:"address_prefix"`
	Length int    `json:"prefix_len"`
}

// filterConfig has the fields of the two filters that end a chain.
type filterConfig struct {
	Type string `json:"@type"`
	// HttpConnectionManager
	RDS *struct {
		Name string `json:"route_config_name"`
	} `json:"rds"`
	Routes *struct {
		Name string `json:"name"`
	} `json:"route_config"`
	Scoped *struct {
		Name string `json:"name"`
	} `json:"scoped_routes"`
	// TcpProxy
	Cluster  string          `json:"cluster"`
	Weighted *weighted       `json:"weighted_clusters"`
	OnDemand json.RawMessage `json:"on_demand"`
}

type weighted struct {
	Clusters []struct {
		Name   string `json:"name"`
		Weight int    `json:"weight"`
	} `json:"clusters"`
}

type routesDump struct {
	Static  []routeEntry `json:"static_route_configs"`
	Dynamic []routeEntry `json:"dynamic_route_configs"`
}

type routeEntry struct {
	Version string      `json:"version_info"`
	Updated time.Time   `json:"last_updated"`
	Config  routeConfig `json:"route_config"`
}

type routeConfig struct {
	Name  string `json:"name"`
	Hosts []struct {
		Name    string        `json:"name"`
		Domains []string      `json:"domains"`
		Routes  []routeAction `json:"routes"`
	} `json:"virtual_hosts"`
}

type routeAction struct {
	Name  string     `json:"name"`
	Match routeMatch `json:"match"`
	Route *struct {
		Cluster  string    `json:"cluster"`
		Header   string    `json:"cluster_header"`
		Weighted *weighted `json:"weighted_clusters"`
		Timeout  string    `json:"timeout"`
		Retry    *struct {
			On       string `json:"retry_on"`
			Attempts *int   `json:"num_retries"`
		} `json:"retry_policy"`
	} `json:"route"`
	Direct *struct {
		Status int `json:"status"`
	} `json:"direct_response"`
	Redirect *struct {
		Host string `json:"host_redirect"`
		Path string `json:"path_redirect"`
	} `json:"redirect"`
	Forward json.RawMessage `json:"non_forwarding_action"`
}

type routeMatch struct {
	Path      string `json:"path"`
	Prefix    string `json:"prefix"`
	Separated string `json:"path_separated_prefix"`
	Regex     *struct {
		Regex string `json:"regex"`
	} `json:"safe_regex"`
	Connect json.RawMessage `json:"connect_matcher"`
	Headers []struct {
		Name   string `json:"name"`
		Invert bool   `json:"invert_match"`
		Match  *struct {
			Exact    string `json:"exact"`
			Prefix   string `json:"prefix"`
			Suffix   string `json:"suffix"`
			Contains string `json:"contains"`
			Regex    *struct {
				Regex string `json:"regex"`
			} `json:"safe_regex"`
		} `json:"string_match"`
	} `json:"headers"`
}

type scopesDump struct {
	Inline  []scopeSet `json:"inline_scoped_route_configs"`
	Dynamic []scopeSet `json:"dynamic_scoped_route_configs"`
}

type scopeSet struct {
	Name   string `json:"name"`
	Scopes []struct {
		Name     string `json:"name"`
		Routes   string `json:"route_configuration_name"`
		OnDemand bool   `json:"on_demand"`
	} `json:"scoped_route_configs"`
}

type endpointsDump struct {
	Static  []endpointEntry `json:"static_endpoint_configs"`
	Dynamic []endpointEntry `json:"dynamic_endpoint_configs"`
}

type endpointEntry struct {
	Config struct {
		Cluster   string `json:"cluster_name"`
		Endpoints []struct {
			Endpoints []struct {
				Endpoint addressField `json:"endpoint"`
				Metadata struct {
					Filter map[string]map[string]any `json:"filter_metadata"`
				} `json:"metadata"`
			} `json:"lb_endpoints"`
		} `json:"endpoints"`
	} `json:"endpoint_config"`
}

// clusterStatuses is /clusters?format=json: what Envoy makes of its hosts.
type clusterStatuses struct {
	Clusters []struct {
		Name  string       `json:"name"`
		Hosts []hostStatus `json:"host_statuses"`
	} `json:"cluster_statuses"`
}

type hostStatus struct {
	Address address        `json:"address"`
	Health  map[string]any `json:"health_status"`
	Weight  int            `json:"weight"`
	Stats   []struct {
		Name  string    `json:"name"`
		Value statValue `json:"value"`
	} `json:"stats"`
	Locality struct {
		Region  string `json:"region"`
		Zone    string `json:"zone"`
		SubZone string `json:"sub_zone"`
	} `json:"locality"`
}

// statValue is a 64-bit number, which protobuf's JSON writes as a string.
type statValue uint64

func (v *statValue) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 64)
	*v = statValue(n)
	return err
}

// address is where something listens: a socket, a path, or a listener inside
// Envoy.
type address struct {
	Socket *struct {
		Address string `json:"address"`
		Port    int    `json:"port_value"`
	} `json:"socket_address"`
	Pipe *struct {
		Path string `json:"path"`
	} `json:"pipe"`
	Internal *struct {
		Listener string `json:"server_listener_name"`
		ID       string `json:"endpoint_id"`
	} `json:"envoy_internal_address"`
}

func (a address) String() string {
	switch {
	case a.Socket != nil:
		return net.JoinHostPort(a.Socket.Address, strconv.Itoa(a.Socket.Port))
	case a.Pipe != nil:
		return "unix:" + a.Pipe.Path
	case a.Internal != nil:
		return strings.TrimSuffix("internal:"+a.Internal.Listener+"/"+a.Internal.ID, "/")
	}
	return ""
}

// readJSON asks Envoy's admin for a path and decodes the answer.
func readJSON(ctx context.Context, admin endpoint, path string, into any) error {
	body, err := admin.Get(ctx, path)
	if err != nil {
		return fmt.Errorf("asking Envoy's admin: %w", err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("reading Envoy's answer to %s: %w", path, err)
	}
	return nil
}

const pathDump = "/config_dump?include_eds"

// readDump reads the configuration that Envoy has.
func readDump(ctx context.Context, admin endpoint) (*dump, error) {
	var raw struct {
		Configs []json.RawMessage `json:"configs"`
	}
	if err := readJSON(ctx, admin, pathDump, &raw); err != nil {
		return nil, err
	}
	d := &dump{}
	sections := map[string]any{
		"ClustersConfigDump": &d.clusters, "ListenersConfigDump": &d.listeners, "RoutesConfigDump": &d.routes,
		"ScopedRoutesConfigDump": &d.scopes, "EndpointsConfigDump": &d.endpoints,
	}
	for _, c := range raw.Configs {
		var kind struct {
			Type string `json:"@type"`
		}
		if err := json.Unmarshal(c, &kind); err != nil {
			return nil, fmt.Errorf("reading a section of Envoy's configuration: %w", err)
		}
		name := kind.Type[strings.LastIndexByte(kind.Type, '.')+1:]
		if into, ok := sections[name]; ok {
			if err := json.Unmarshal(c, into); err != nil {
				return nil, fmt.Errorf("reading %s of Envoy's configuration: %w", name, err)
			}
		}
	}
	return d, nil
}

// readClusters reads what Envoy makes of its clusters' hosts, by cluster.
func readClusters(ctx context.Context, admin endpoint) (map[string][]hostStatus, error) {
	var s clusterStatuses
	if err := readJSON(ctx, admin, "/clusters?format=json", &s); err != nil {
		return nil, err
	}
	hosts := make(map[string][]hostStatus, len(s.Clusters))
	for _, c := range s.Clusters {
		hosts[c.Name] = c.Hosts
	}
	return hosts, nil
}

// query adds the parameters to the path of a request to the admin.
func query(path string, set url.Values) string {
	if len(set) == 0 {
		return path
	}
	return path + "?" + set.Encode()
}
