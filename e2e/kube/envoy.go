package kube

import (
	"context"
	"encoding/json"
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

// Proxy is the proxy's container of a pod.
func Proxy(p *corev1.Pod) Pod {
	return Pod{Namespace: p.Namespace, Name: p.Name, Container: "tulle-proxy"}
}
