package ca

import (
	"crypto/tls"
	"errors"
)

// ServingNames are the DNS names under which a control plane's Service is
// reached from within the cluster.
func ServingNames(service, namespace string) []string {
	return []string{
		service + "." + namespace + ".svc",
		service + "." + namespace + ".svc.cluster.local",
		service + "." + namespace,
		service,
	}
}

// ServingTLS is the configuration of a server that presents the control plane's
// own certificate, which is renewed like any other. It takes TLS 1.3 alone; the
// caller owns it.
func (c *Certificates) ServingTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: c.GetCertificate}
}

// GetCertificate returns the serving certificate, for [tls.Config]. A client
// waits for the issuer only where there is no valid certificate yet.
func (c *Certificates) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if len(c.opts.ServingNames) == 0 {
		return nil, errors.New("no serving names are configured")
	}
	now := c.now()
	c.mu.Lock()
	if e := c.entries[subject{kind: Serving}]; e != nil && e.cert != nil && e.cert.validAt(now) && c.opts.Issuer.Trusts(e.basis.epoch.Root) {
		defer c.mu.Unlock()
		return e.cert.tls, nil
	}
	c.mu.Unlock()
	cert, err := c.get(hello.Context(), subject{kind: Serving})
	if err != nil {
		return nil, err
	}
	return cert.tls, nil
}
