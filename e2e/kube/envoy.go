package kube

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// Admin reads a path of a pod's Envoy admin, through a port-forward of its
// own: the admin port listens on the pod's loopback alone.
func (c *Cluster) Admin(ctx context.Context, namespace, pod, path string) ([]byte, error) {
	const adminPort = 15000
	address, stop, err := c.Forward(ctx, namespace, pod, adminPort)
	if err != nil {
		return nil, err
	}
	defer stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("asking Envoy of %s/%s for %s: %w", namespace, pod, path, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("reading Envoy's answer to %s in %s/%s: %w", path, namespace, pod, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking Envoy of %s/%s for %s: %s: %s", namespace, pod, path, response.Status, body)
	}
	return body, nil
}

// Forward forwards a loopback port of this machine to a port of a pod until
// stop is called.
func (c *Cluster) Forward(ctx context.Context, namespace, pod string, port int) (address string, stop func(), err error) {
	roundTripper, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return "", nil, fmt.Errorf("preparing a port-forward: %w", err)
	}
	url := c.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, url)
	var (
		end   = make(chan struct{})
		ready = make(chan struct{})
		done  = make(chan error, 1)
	)
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, end, ready, io.Discard, io.Discard)
	if err != nil {
		return "", nil, fmt.Errorf("preparing a port-forward to %s/%s: %w", namespace, pod, err)
	}
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		return "", nil, fmt.Errorf("forwarding a port to %s/%s: %w", namespace, pod, err)
	case <-ctx.Done():
		close(end)
		return "", nil, ctx.Err()
	}
	ports, err := f.GetPorts()
	if err != nil {
		close(end)
		return "", nil, fmt.Errorf("forwarding a port to %s/%s: %w", namespace, pod, err)
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[0].Local)), func() { close(end); <-done }, nil
}

// Certificate is a workload's certificate, as its Envoy tells.
type Certificate struct {
	Serial   string
	Identity string
	// Expires is when it ends, as RFC 3339.
	Expires string
}

// WorkloadCertificate is the certificate that a pod's proxy presents: the one
// in /certs with a SPIFFE identity.
func (c *Cluster) WorkloadCertificate(ctx context.Context, namespace, pod string) (Certificate, error) {
	body, err := c.Admin(ctx, namespace, pod, "/certs")
	if err != nil {
		return Certificate{}, err
	}
	var certs struct {
		Certificates []struct {
			CertChain []struct {
				SerialNumber string `json:"serial_number"`
				Expires      string `json:"expiration_time"`
				Names        []struct {
					URI string `json:"uri"`
				} `json:"subject_alt_names"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal(body, &certs); err != nil {
		return Certificate{}, fmt.Errorf("reading /certs of %s/%s: %w", namespace, pod, err)
	}
	for _, one := range certs.Certificates {
		for _, chain := range one.CertChain {
			for _, name := range chain.Names {
				if name.URI != "" {
					return Certificate{Serial: chain.SerialNumber, Identity: name.URI, Expires: chain.Expires}, nil
				}
			}
		}
	}
	return Certificate{}, fmt.Errorf("%s/%s has no certificate with a URI yet", namespace, pod)
}

// Chain is what a workload presents, its own certificate first, and the roots that it
// verifies others by.
type Chain struct{ Chain, Roots []*x509.Certificate }

// WorkloadChain is what a pod's proxy presents and trusts, as it was given by the
// control plane.
func (c *Cluster) WorkloadChain(ctx context.Context, namespace, pod string) (Chain, error) {
	body, err := c.Admin(ctx, namespace, pod, "/config_dump?resource=dynamic_active_secrets")
	if err != nil {
		return Chain{}, err
	}
	type inline struct {
		Bytes []byte `json:"inline_bytes"`
	}
	var dump struct {
		Configs []struct {
			Name    string `json:"name"`
			Version string `json:"version_info"` // of the control plane alone; files have none
			Secret  struct {
				Certificate struct {
					Chain inline `json:"certificate_chain"`
				} `json:"tls_certificate"`
				Validation struct {
					Trusted inline `json:"trusted_ca"`
				} `json:"validation_context"`
			} `json:"secret"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(body, &dump); err != nil {
		return Chain{}, fmt.Errorf("reading the secrets of %s/%s: %w", namespace, pod, err)
	}
	var out Chain
	for _, s := range dump.Configs {
		switch {
		case s.Version == "":
		case s.Name == "workload":
			out.Chain, err = Certificates(s.Secret.Certificate.Chain.Bytes)
		case s.Name == "roots":
			out.Roots, err = Certificates(s.Secret.Validation.Trusted.Bytes)
		}
		if err != nil {
			return Chain{}, fmt.Errorf("reading the secret %s of %s/%s: %w", s.Name, namespace, pod, err)
		}
	}
	if len(out.Chain) == 0 || len(out.Roots) == 0 {
		return Chain{}, fmt.Errorf("%s/%s has no certificate or no roots yet", namespace, pod)
	}
	return out, nil
}

// Certificates are those of a PEM text, one at least.
func Certificates(text []byte) (out []*x509.Certificate, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	return out, nil
}

// Proxy is the proxy's container of a pod.
func Proxy(p *corev1.Pod) Pod {
	return Pod{Namespace: p.Namespace, Name: p.Name, Container: "tulle-proxy"}
}
