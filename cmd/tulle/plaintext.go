package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// plaintext is what came to a proxy without mutual TLS since it started.
type plaintext struct {
	Requests    uint64 `json:"requests"`    // of HTTP
	Connections uint64 `json:"connections"` // that were not HTTP
	// TLS are requests of clients whose TLS ends at the proxy (tls of a MeshPolicy). They
	// are not in mesh mTLS either, and Strict lets them in.
	TLS uint64 `json:"tls"`
	// Error is why the proxy did not say.
	Error string `json:"error,omitempty"`
}

// The counters are those of the inbound listener's chains that are not of mesh mTLS
// (xds/translate).
const (
	statTLSRequests      = "http.inbound-tls.downstream_rq_total"
	statPlainRequests    = "http.inbound-plain.downstream_rq_total"
	statPlainConnections = "tcp.plain-tcp.downstream_cx_total"
)

// cells are what came in in plaintext, and in TLS that is not the mesh's.
func (p *plaintext) cells() []string {
	switch {
	case p == nil:
		return []string{none, none}
	case p.Error != "":
		return []string{"?", "?"}
	}
	return []string{counted(p.Requests, p.Connections), counted(p.TLS, 0)}
}

func counted(requests, connections uint64) string {
	var parts []string
	if requests > 0 {
		parts = append(parts, fmt.Sprintf("%d HTTP", requests))
	}
	if connections > 0 {
		parts = append(parts, fmt.Sprintf("%d TCP", connections))
	}
	return cmp.Or(strings.Join(parts, ", "), "none")
}

// plaintext asks every proxy that is connected, or should be.
func (c *cluster) plaintext(ctx context.Context, s *status) {
	s.plaintext = true
	var group errgroup.Group
	group.SetLimit(8)
	for i := range s.Proxies {
		p := &s.Proxies[i]
		if p.Since == nil && p.Phase != string(corev1.PodRunning) {
			continue
		}
		group.Go(func() error {
			got, err := c.readPlaintext(ctx, p.Pod)
			if err != nil {
				got.Error = err.Error()
			}
			p.Plaintext = &got
			return nil
		})
	}
	_ = group.Wait() // each error is its proxy's
}

func (c *cluster) readPlaintext(ctx context.Context, name string) (plaintext, error) {
	var out plaintext
	namespace, name, _ := strings.Cut(name, "/")
	e, err := c.reach(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}, portAdmin)
	if err != nil {
		return out, err
	}
	defer e.Close()
	var stats adminStats
	set := url.Values{"format": {"json"}, "filter": {"^(" + statPlainRequests + "|" + statPlainConnections + "|" + statTLSRequests + ")$"}}
	if err := readJSON(ctx, e, query("/stats", set), &stats); err != nil {
		return out, err
	}
	for _, s := range stats.Stats {
		n, ok := s.Value.(float64)
		switch {
		case !ok:
		case s.Name == statPlainRequests:
			out.Requests = uint64(n)
		case s.Name == statPlainConnections:
			out.Connections = uint64(n)
		case s.Name == statTLSRequests:
			out.TLS = uint64(n)
		}
	}
	return out, nil
}
