package main

import (
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
	// Error is why the proxy did not say.
	Error string `json:"error,omitempty"`
}

// The counters are those of the inbound listener's chains for plaintext
// (xds/translate).
const (
	statPlainRequests    = "http.inbound-plain.downstream_rq_total"
	statPlainConnections = "tcp.plain-tcp.downstream_cx_total"
)

func (p *plaintext) text() string {
	switch {
	case p == nil:
		return none
	case p.Error != "":
		return "?"
	case p.Requests+p.Connections == 0:
		return "none"
	}
	var parts []string
	if p.Requests > 0 {
		parts = append(parts, fmt.Sprintf("%d HTTP", p.Requests))
	}
	if p.Connections > 0 {
		parts = append(parts, fmt.Sprintf("%d TCP", p.Connections))
	}
	return strings.Join(parts, ", ")
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
	set := url.Values{"format": {"json"}, "filter": {"^(" + statPlainRequests + "|" + statPlainConnections + ")$"}}
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
		}
	}
	return out, nil
}
