package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/e2e/kube"
)

// shortLives has certificates live for a minute until the test ends.
func shortLives(t *testing.T, c *kube.Cluster) {
	t.Helper()
	must(t, c.SetLifetime(t.Context(), "1m"))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.SetLifetime(ctx, ""); err != nil {
			t.Errorf("giving up the lifetime of a minute: %v", err)
		}
	})
}

// Certificates live for a minute, half of the clients open a connection for
// each request and the others keep theirs. 2.5 minutes, or TULLE_E2E_ROTATION.
func TestCertificatesRotateUnderLoadWithoutAFailure(t *testing.T) {
	const rate = 200
	duration := 150 * time.Second
	if text := os.Getenv("TULLE_E2E_ROTATION"); text != "" {
		d, err := time.ParseDuration(text)
		must(t, err)
		duration = d
	}
	c := cluster(t)
	shortLives(t, c)
	s := newSpace(t, "rotation", true)
	s.deploy(app{name: "client"}, app{name: "server"})
	s.strict()
	from := s.in("client")
	s.callUntil(from, answered(200), "http", s.url("server"))
	load := s.startLoad(from, "http", s.url("server"), "--rate", fmt.Sprint(rate), "--connections", "20",
		"--new-connection-share", "0.5", "--duration", duration.String())

	serials := map[string][]string{}
	end := time.Now().Add(duration)
	watch := time.NewTicker(3 * time.Second)
	defer watch.Stop()
	for time.Now().Before(end) {
		for _, pod := range []string{from.Name, s.running("server").Name} {
			certificate, err := c.WorkloadCertificate(t.Context(), s.name, pod)
			must(t, err)
			if seen := serials[pod]; len(seen) == 0 || seen[len(seen)-1] != certificate.Serial {
				serials[pod] = append(seen, certificate.Serial)
			}
			if expires, err := time.Parse(time.RFC3339, certificate.Expires); err == nil && time.Now().After(expires) {
				t.Errorf("%s presents a certificate that ended at %v", pod, expires)
			}
		}
		<-watch.C
	}
	r := load.wait()
	noFailure(s, r)
	for pod, seen := range serials {
		rotations := len(seen) - 1
		figure(t, "certificates of a minute under %d rps for %v: %d requests, %d failed, %d sent again by the client, p50 %.1f ms, p99 %.1f ms; %d rotations of %s",
			rate, duration, r.Requests, r.Failed, r.ClientRetries, r.Service.P50, r.Service.P99, rotations, pod)
		// Half a minute each, with jitter: nine in five minutes.
		if want := int(duration / (33 * time.Second)); rotations < want {
			t.Errorf("%d rotations of %s in %v, want %d at least", rotations, pod, duration, want)
		}
	}
	if want := int(float64(rate) * duration.Seconds() * 0.95); r.Requests < want {
		t.Errorf("%d requests, want %d at least", r.Requests, want)
	}
	checkNoRestart(t, s, from)
}

// checkNoRestart fails the test if a proxy has died.
func checkNoRestart(t *testing.T, s *space, pod kube.Pod) {
	t.Helper()
	p := s.running("client")
	if p.Name != pod.Name {
		t.Errorf("%v was replaced by %s", pod, p.Name)
		return
	}
	for _, status := range p.Status.InitContainerStatuses {
		if status.RestartCount > 0 {
			t.Errorf("%s of %v was restarted %d times", status.Name, pod, status.RestartCount)
		}
	}
}
