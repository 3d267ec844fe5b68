package observe

import (
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// protocolOf is what a port of a Service declares: appProtocol before the
// port's name. A port that declares nothing that is known is mesh.Detect.
//
// An appProtocol with a domain prefix that is not known says nothing, since
// only its owner knows what it means. One without is a service name of IANA's
// registry by Kubernetes' convention (KEP-1507); every one of them that speaks
// HTTP is known here, so any other is a byte stream.
func protocolOf(appProtocol *string, portName string) mesh.Protocol {
	if appProtocol != nil && *appProtocol != "" {
		declared := strings.ToLower(*appProtocol)
		if name, ok := strings.CutPrefix(declared, "kubernetes.io/"); ok {
			if p, ok := protocolNamed(name); ok {
				return p
			}
		} else if !strings.Contains(declared, "/") {
			if p, ok := protocolNamed(declared); ok {
				return p
			}
			return mesh.TCP
		}
	}
	if p, ok := protocolNamed(strings.ToLower(portName)); ok {
		return p
	}
	return mesh.Detect
}

// protocolNamed is the protocol of a name, or of the part before its first '-'.
func protocolNamed(name string) (mesh.Protocol, bool) {
	// gRPC-Web is HTTP that browsers can speak, and not gRPC.
	if name == "grpc-web" || strings.HasPrefix(name, "grpc-web-") {
		return mesh.HTTP, true
	}
	first, _, _ := strings.Cut(name, "-")
	switch first {
	case "http", "ws", "www":
		return mesh.HTTP, true
	case "http2", "h2c":
		return mesh.HTTP2, true
	case "grpc":
		return mesh.GRPC, true
	case "https", "tls", "wss", "grpcs", "h2", "ldaps", "amqps", "mqtts", "rediss", "smtps", "imaps", "ftps":
		return mesh.TLS, true
	case "tcp", "mongo", "mongodb", "mysql", "mariadb", "redis", "postgres", "postgresql", "pgsql", "mssql",
		"oracle", "cassandra", "cql", "kafka", "zookeeper", "nats", "amqp", "mqtt", "stomp", "memcached",
		"memcache", "smtp", "imap", "pop3", "ftp", "ssh", "telnet", "ldap", "dns", "thrift":
		return mesh.TCP, true
	}
	return mesh.Detect, false
}
