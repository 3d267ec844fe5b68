package main

import (
	"fmt"
	"maps"
	"strings"

	"sigs.k8s.io/yaml"
)

// byHand is the variant that the others are compared with. The next does for an
// application what Tulle does as it comes, the last what it does without access log. (But
// Tulle has the server's router keep no counts, which the manager has.)
const (
	byHand     = "by hand"
	same       = "by hand with all"
	sameNoLogs = "by hand with all but the log"
)

// variant is a pair of pods, and what was measured of it.
type variant struct {
	name string
	what string
	// hand are the features of a configuration written by hand; nil: Tulle's.
	hand *features
	// log says whether proxies of Tulle's log requests.
	log bool
	// policy is of the server's workload, of Tulle's.
	policy string
	// like names the variant by hand that does the same, if there is one.
	like string

	samples []sample
}

// features are what is added to the least that does it.
type features struct {
	log, case_, identity, scopes, retry bool
}

func variants() []*variant {
	hand := func(name, what string, f features) *variant { return &variant{name: name, what: what, hand: &f} }
	return []*variant{
		hand(byHand, "mutual TLS, a route, a cluster; nothing else", features{}),
		{name: "Tulle without access log", what: "all that is on by default but the access log", like: sameNoLogs},
		{name: "Tulle", what: "as it comes", log: true, like: same},
		{
			name: "Tulle with a policy", what: "as it comes, and a MeshPolicy that lets one service account in, and not to /admin", log: true,
			policy: `{selector: {matchLabels: {app: NAME-server}}, authorization: {default: Deny, rules: [{name: client, from: [{serviceAccounts: [NAME-client]}]}, {action: Deny, to: [{paths: [/admin]}]}]}}`,
		},
		hand(same, "all of the following", features{log: true, case_: true, identity: true, scopes: true, retry: true}),
		hand(sameNoLogs, "of these all but the access log", features{case_: true, identity: true, scopes: true, retry: true}),
		hand("by hand with access log", "JSON with as many fields as Tulle's, 21 and 26", features{log: true}),
		hand("by hand with header case", "header names as they were written, trailers, HTTP/1.0", features{case_: true}),
		hand("by hand with identity", "the client's identity in a header, which clients cannot write", features{identity: true}),
		hand("by hand with scopes", "routes by the destination's address, which may be fetched when they are first used", features{scopes: true}),
		hand("by hand with retries", "what did not reach a server is tried again, with another than before", features{retry: true}),
	}
}

func names(all []*variant) (out []string) {
	for _, v := range all {
		out = append(out, v.name)
	}
	return out
}

// slug is the name in those of objects.
func (v *variant) slug() string {
	return strings.ToLower(strings.ReplaceAll(v.name, " ", "-"))
}

type object = map[string]any

// unreached is the header in which a server's proxy would say that it did not reach the
// server, which it always does here.
const unreached = "x-unreached"

// clientConfig is the configuration of a client's Envoy by hand: what the pod sends
// to the Service's address goes to the server.
func clientConfig(f features, tls *credentials, service, server string) ([]byte, error) {
	action := object{"cluster": "server", "timeout": "0s"}
	if f.retry {
		action["retry_policy"] = object{
			"retry_on": "connect-failure,refused-stream,reset-before-request,retriable-headers", "num_retries": 2,
			"retriable_headers": []object{{"name": unreached, "present_match": true}},
			"retry_host_predicate": []object{{"name": "previous", "typed_config": object{
				"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
			}}},
			"host_selection_retry_max_attempts": 100,
			"retry_priority": object{"name": "envoy.retry_priorities.previous_priorities", "typed_config": object{
				"@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", "update_frequency": 2,
			}},
		}
	}
	manager := manager("outbound", f, object{"name": "server", "virtual_hosts": []object{{
		"name": "server", "domains": []string{"*"}, "routes": []object{{"match": object{"prefix": "/"}, "route": action}},
	}}})
	if f.scopes {
		const header = "x-destination"
		manager["http_filters"] = append([]object{{"name": "on-demand", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand",
		}}}, manager["http_filters"].([]object)...)
		manager["route_config"].(object)["request_headers_to_remove"] = []string{header}
		manager["early_header_mutation_extensions"] = []object{{"name": "destination", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
			"mutations": []object{{"append": object{
				"append_action": "OVERWRITE_IF_EXISTS_OR_ADD", "header": object{"key": header, "value": "%DOWNSTREAM_LOCAL_ADDRESS%"},
			}}},
		}}}
		manager["scoped_routes"] = object{
			"name":              "services",
			"scope_key_builder": object{"fragments": []object{{"header_value_extractor": object{"name": header, "index": 0}}}},
			"scoped_route_configurations_list": object{"scoped_route_configurations": []object{{
				"name": "server", "route_configuration": manager["route_config"],
				"key": object{"fragments": []object{{"string_key": service}}},
			}}},
		}
		delete(manager, "route_config")
	}
	host, port, _ := strings.Cut(server, ":")
	cluster := object{
		"name": "server", "connect_timeout": "5s", "type": "STATIC",
		"load_assignment": assignment("server", host, port),
		"transport_socket": object{"name": "envoy.transport_sockets.tls", "typed_config": object{
			"@type":              "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
			"common_tls_context": tls.context("server"),
		}},
	}
	protocols(cluster, f)
	listener := listener("outbound", 15001, object{"filters": []object{filter(manager)}})
	if f.scopes { // so that the address is that which was called
		listener["listener_filters"] = []object{{"name": "envoy.filters.listener.original_dst", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
		}}}
	}
	return config(listener, cluster)
}

// serverConfig is the configuration of a server's Envoy by hand.
func serverConfig(f features, tls *credentials) ([]byte, error) {
	action := object{"cluster": "application", "timeout": "0s"}
	host := object{"name": "application", "domains": []string{"*"}, "routes": []object{{"match": object{"prefix": "/"}, "route": action}}}
	if f.retry {
		action["retry_policy"] = object{"retry_on": "reset,reset-before-request", "num_retries": 2}
		host["response_headers_to_remove"] = []string{unreached}
	}
	manager := manager("inbound", f, object{"name": "application", "virtual_hosts": []object{host}})
	if f.identity {
		manager["forward_client_cert_details"] = "SANITIZE_SET"
		manager["set_current_client_cert_details"] = object{"uri": true}
		// An application may read these as the same header.
		host["request_headers_to_remove"] = []string{
			"x-forwarded-client_cert", "x-forwarded_client-cert", "x-forwarded_client_cert", "x_forwarded-client-cert",
			"x_forwarded-client_cert", "x_forwarded_client-cert", "x_forwarded_client_cert",
		}
	}
	cluster := object{
		"name": "application", "connect_timeout": "5s", "type": "STATIC",
		"load_assignment": assignment("application", "127.0.0.1", "8080"),
	}
	protocols(cluster, f)
	return config(listener("inbound", 15006, object{
		"filters": []object{filter(manager)},
		"transport_socket": object{"name": "envoy.transport_sockets.tls", "typed_config": object{
			"@type":                      "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
			"require_client_certificate": true,
			"common_tls_context":         tls.context("client"),
		}},
	}), cluster)
}

// manager is a connection manager that adds nothing to what the application sees.
func manager(name string, f features, routes object) object {
	m := object{
		"@type":        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix":  name,
		"route_config": routes,
		"http_filters": []object{{"name": "router", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", "suppress_envoy_headers": true,
		}}},
	}
	if f.case_ {
		m["http_protocol_options"] = exact()
	}
	if f.log {
		m["access_log"] = []object{{"name": "stdout", "typed_config": object{
			"@type":      "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
			"log_format": object{"json_format": logFields(name)},
		}}}
	}
	return m
}

// exact keeps what HTTP/1 allows a proxy to change.
func exact() object {
	return object{
		"accept_http_10": true, "enable_trailers": true,
		"header_key_format": object{"stateful_formatter": object{"name": "preserve_case", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
		}}},
	}
}

func protocols(cluster object, f features) {
	if !f.case_ {
		return
	}
	const options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	cluster["typed_extension_protocol_options"] = object{options: object{
		"@type": "type.googleapis.com/" + options, "use_downstream_protocol_config": object{"http_protocol_options": exact()},
	}}
}

// logFields are those of Tulle's log by default.
func logFields(direction string) map[string]string {
	fields := map[string]string{
		"authority": "%REQ(:AUTHORITY)%", "bytes_received": "%BYTES_RECEIVED%", "bytes_sent": "%BYTES_SENT%",
		"client": "%DOWNSTREAM_REMOTE_ADDRESS%", "cluster": "%UPSTREAM_CLUSTER%", "connection_details": "%CONNECTION_TERMINATION_DETAILS%",
		"destination": "%DOWNSTREAM_LOCAL_ADDRESS%", "details": "%RESPONSE_CODE_DETAILS%", "direction": direction,
		"duration_ms": "%DURATION%", "flags": "%RESPONSE_FLAGS%", "method": "%REQ(:METHOD)%", "path": "%REQ(:PATH)%",
		"protocol": "%PROTOCOL%", "request_id": "%REQ(X-REQUEST-ID)%", "route": "%ROUTE_NAME%", "server": "%UPSTREAM_HOST%",
		"status": "%RESPONSE_CODE%", "time": "%START_TIME%",
	}
	if direction == "inbound" {
		maps.Copy(fields, map[string]string{
			"client_identity": "%DOWNSTREAM_PEER_URI_SAN%", "server_identity": "%DOWNSTREAM_LOCAL_URI_SAN%",
			"policy":        "%DYNAMIC_METADATA(envoy.filters.http.rbac:enforced_effective_policy_id)%",
			"verdict":       "%DYNAMIC_METADATA(envoy.filters.http.rbac:enforced_engine_result)%",
			"audit":         "%DYNAMIC_METADATA(envoy.filters.http.rbac:audit_shadow_effective_policy_id)%",
			"dry_run_deny":  "%DYNAMIC_METADATA(envoy.filters.http.rbac:dry_run_deny_shadow_effective_policy_id)%",
			"dry_run_allow": "%DYNAMIC_METADATA(envoy.filters.http.rbac:dry_run_allow_shadow_engine_result)%",
		})
	} else {
		maps.Copy(fields, map[string]string{"client_identity": "%UPSTREAM_LOCAL_URI_SAN%", "server_identity": "%UPSTREAM_PEER_URI_SAN%"})
	}
	return fields
}

func filter(manager object) object {
	return object{"name": "http", "typed_config": manager}
}

func address(host string, port any) object {
	return object{"socket_address": object{"address": host, "port_value": port}}
}

func listener(name string, port int, chain object) object {
	return object{"name": name, "address": address("0.0.0.0", port), "filter_chains": []object{chain}}
}

func assignment(cluster, host, port string) object {
	var number int
	_, _ = fmt.Sscanf(port, "%d", &number) // Envoy says that 0 is no port to go to
	return object{"cluster_name": cluster, "endpoints": []object{{"lb_endpoints": []object{{"endpoint": object{"address": address(host, number)}}}}}}
}

func config(listener, cluster object) ([]byte, error) {
	return yaml.Marshal(object{
		"admin":            object{"address": address("127.0.0.1", 15000)},
		"static_resources": object{"listeners": []object{listener}, "clusters": []object{cluster}},
	})
}
