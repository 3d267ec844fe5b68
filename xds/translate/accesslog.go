package translate

import (
	"maps"
	"sync/atomic"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	stream "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// logSide is the side of a call that writes the line.
type logSide int

const (
	outboundLog   logSide = iota // the client's sidecar
	inboundLog                   // the server's
	inboundTCPLog                // the same, of what is not HTTP
	gatewayLog                   // a gateway, whose clients are outside
	egressLog                    // a gateway, whose servers are
	egressTCPLog                 // the same, of what is not HTTP
)

// fields are the default access log, one JSON object a line. Operators are
// Envoy's (https://www.envoyproxy.io/docs, "access log format strings").
var fields = map[string]string{
	"time":               "%START_TIME%",
	"protocol":           "%PROTOCOL%",
	"method":             "%REQ(:METHOD)%",
	"authority":          "%REQ(:AUTHORITY)%",
	"path":               "%REQ(:PATH)%",
	"request_id":         "%REQ(X-REQUEST-ID)%",
	"status":             "%RESPONSE_CODE%",
	"flags":              "%RESPONSE_FLAGS%",
	"details":            "%RESPONSE_CODE_DETAILS%",
	"connection_details": "%CONNECTION_TERMINATION_DETAILS%",
	"bytes_received":     "%BYTES_RECEIVED%",
	"bytes_sent":         "%BYTES_SENT%",
	"duration_ms":        "%DURATION%",
	"client":             "%DOWNSTREAM_REMOTE_ADDRESS%",
	"destination":        "%DOWNSTREAM_LOCAL_ADDRESS%",
	"server":             "%UPSTREAM_HOST%",
	"cluster":            "%UPSTREAM_CLUSTER%",
	"route":              "%ROUTE_NAME%",
}

// sideFields are what differs: which connection carries the two identities,
// and the verdict, which the server's side has, with what rules that do not decide
// noted: which one matched, and whether what is allowed would be.
var sideFields = [...]map[string]string{
	outboundLog: {
		"direction":       "outbound",
		"client_identity": "%UPSTREAM_LOCAL_URI_SAN%",
		"server_identity": "%UPSTREAM_PEER_URI_SAN%",
	},
	gatewayLog: {
		"direction":       "gateway",
		"forwarded_for":   "%REQ(X-FORWARDED-FOR)%",
		"server_identity": "%UPSTREAM_PEER_URI_SAN%",
	},
	inboundLog:    serving("inbound", "http"),
	inboundTCPLog: serving("inbound", "network"),
	egressLog:     serving("egress", "http"),
	egressTCPLog:  serving("egress", "network"),
}

// serving are the fields of the side that authorizes, by Envoy's RBAC for HTTP or the
// network.
func serving(direction, kind string) map[string]string {
	noted := func(key string) string { return "%DYNAMIC_METADATA(envoy.filters." + kind + ".rbac:" + key + ")%" }
	return map[string]string{
		"direction":       direction,
		"client_identity": "%DOWNSTREAM_PEER_URI_SAN%",
		"server_identity": "%DOWNSTREAM_LOCAL_URI_SAN%",
		"verdict":         noted("enforced_engine_result"),
		"policy":          noted("enforced_effective_policy_id"),
		"audit":           noted("audit_shadow_effective_policy_id"),
		"dry_run_deny":    noted("dry_run_deny_shadow_effective_policy_id"),
		"dry_run_allow":   noted("dry_run_allow_shadow_engine_result"),
	}
}

// made is the access log of a configuration.
type made struct {
	config *mesh.Config
	log    []*accesslog.AccessLog
}

// lastMade is what was made last for each side: each of a listener's many chains has
// the log, and the configuration, which is immutable, is seldom another.
var lastMade [len(sideFields)]atomic.Pointer[made]

// accessLog writes JSON to the proxy's standard output: the default fields, or
// the configuration's own in their place; nothing when those are empty. It is shared:
// nobody may change it.
func accessLog(c *mesh.Config, side logSide) []*accesslog.AccessLog {
	if last := lastMade[side].Load(); last != nil && last.config == c {
		return last.log
	}
	log := makeAccessLog(c, side)
	lastMade[side].Store(&made{c, log})
	return log
}

func makeAccessLog(c *mesh.Config, side logSide) []*accesslog.AccessLog {
	format := maps.Clone(fields)
	maps.Copy(format, sideFields[side])
	if c.AccessLog != nil {
		format = c.AccessLog
	}
	if len(format) == 0 {
		return nil
	}
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(format))}
	for k, op := range format {
		s.Fields[k] = structpb.NewStringValue(op)
	}
	return []*accesslog.AccessLog{{
		Name: "envoy.access_loggers.stdout",
		ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: typed(&stream.StdoutAccessLog{
			AccessLogFormat: &stream.StdoutAccessLog_LogFormat{LogFormat: &core.SubstitutionFormatString{
				Format: &core.SubstitutionFormatString_JsonFormat{JsonFormat: s},
			}},
		})},
	}}
}
