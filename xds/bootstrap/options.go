package bootstrap

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
)

// Options are what differs between one bootstrap and another. [Defaults] gives
// those of a sidecar in a cluster.
type Options struct {
	// NodeID and NodeCluster say who the proxy is, for people who read logs
	// and traces. The control plane takes identity from the token alone.
	NodeID      string
	NodeCluster string

	// AdminPort is the port of Envoy's admin interface on 127.0.0.1. 0 lets
	// the kernel choose.
	AdminPort uint16

	// Address and Port are where the control plane serves xDS. An IP address
	// is used as it is; a name is resolved again and again.
	Address string
	Port    uint16
	// ServerName is the DNS name that the control plane's certificate must
	// have as subject alternative name, and the SNI that is sent.
	ServerName string

	// RootsPath is the file with the SDS resource of the roots (a secret named
	// [SecretRoots]), TokenPath the one with the SDS resource of the token (a
	// secret named [SecretToken]). Envoy watches the folders they are in for a
	// Kubernetes volume's renames. Both are absolute.
	RootsPath string
	TokenPath string

	// MaxConnections bounds the connections that clients may have to this
	// proxy at any one time, over all listeners but the admin interface.
	MaxConnections uint64
}

// Names of the secrets in the files that Options names.
const (
	SecretRoots = "roots"
	SecretToken = "token"
)

// ControlPlane is the name of the cluster that leads to the control plane.
const ControlPlane = "tulled"

// Defaults returns the options of a sidecar in a cluster, but for its node.
func Defaults() Options {
	return Options{
		AdminPort:  15000,
		Address:    "tulled.tulle-system.svc",
		Port:       15010,
		ServerName: "tulled.tulle-system.svc",
		RootsPath:  "/var/run/tulle/trust/roots.yaml",
		TokenPath:  "/var/run/tulle/trust/token.yaml",
		// A pod's memory gives out long before: 30 KiB each is 1.5 GiB. The
		// bound keeps a flood from taking the file descriptors of the xDS
		// stream and of the readiness listener.
		MaxConnections: 50000,
	}
}

// validate reports everything that is wrong with the options.
func (o Options) validate() error {
	var problems []error
	for _, required := range []struct{ name, value string }{
		{"NodeID", o.NodeID},
		{"NodeCluster", o.NodeCluster},
		{"Address", o.Address},
		{"ServerName", o.ServerName},
	} {
		if required.value == "" {
			problems = append(problems, fmt.Errorf("%s is empty", required.name))
		}
	}
	if o.Port == 0 {
		problems = append(problems, errors.New("the Port is 0"))
	}
	if o.MaxConnections == 0 {
		problems = append(problems, errors.New("MaxConnections is 0: no client could connect"))
	}
	// Envoy never fires a watch on a relative path.
	for _, p := range []struct{ name, value string }{
		{"RootsPath", o.RootsPath},
		{"TokenPath", o.TokenPath},
	} {
		if !path.IsAbs(p.value) {
			problems = append(problems, fmt.Errorf("%s %q is not absolute", p.name, p.value))
		}
	}
	return errors.Join(problems...)
}

// resolved reports whether the control plane's address is one already.
func (o Options) resolved() bool {
	_, err := netip.ParseAddr(o.Address)
	return err == nil
}
