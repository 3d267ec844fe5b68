package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
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

// rotation is what the control plane's history says of one.
type rotation struct {
	Scope          string
	Started, Ended time.Time
	CutOff         []string
}

// The issuer is rotated while several clients call, half of them on new connections,
// and over TCP with a handshake between the sidecars for each. Nobody fails. With
// TULLE_E2E_LONG the root is rotated then, too: some 11 minutes in all, since new
// roots are distributed for three.
func TestTheAuthorityIsRotatedUnderLoadWithoutAFailure(t *testing.T) {
	rotations, duration := [][]string{{"ca", "rotate"}}, 150*time.Second
	if os.Getenv("TULLE_E2E_LONG") != "" {
		rotations, duration = append(rotations, []string{"ca", "rotate", "--root"}), 10*time.Minute
	}
	tulle := cli(t)
	c := cluster(t)
	noLeftovers(t)
	s := newSpace(t, "ca", true)
	s.deploy(app{name: "client-1"}, app{name: "client-2"}, app{name: "client-3"}, app{name: "server", replicas: 3})
	s.strict()
	history := func() (out []rotation) {
		t.Helper()
		text, _ := tulle("ca", "history", "-o", "json")
		must(t, json.Unmarshal([]byte(text), &out))
		return out
	}
	before := len(history())
	var loads []*loading
	for _, client := range []string{"client-1", "client-2", "client-3"} {
		from := s.in(client)
		s.callUntil(from, answered(200), "http", s.url("server"))
		s.callUntil(from, works, "tcp", s.host("server")+":9001")
		loads = append(
			loads,
			s.startLoad(from, "http", s.url("server"), "--rate", "67", "--connections", "10", "--new-connection-share", "0.5", "--duration", duration.String()),
			s.startLoad(from, "tcp", s.host("server")+":9001", "--rate", "10", "--new-connection-share", "1", "--duration", duration.String()),
		)
	}
	begin := time.Now()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := c.Delete(ctx, "apiVersion: mesh.tulle.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\n"); err != nil {
			t.Errorf("deleting the MeshConfig that the command has made: %v", err)
		}
	})
	for i, args := range rotations {
		if out, code := tulle(args...); code != 0 {
			t.Fatalf("tulle %v: %s", args, out)
		}
		eventually(t, 8*time.Minute, "the rotation by "+strings.Join(args, " "), func(context.Context) error {
			if h := history(); len(h) < before+i+1 {
				out, _ := tulle("ca", "status")
				return errors.New(out)
			}
			return nil
		})
		done := history()[0]
		figure(t, "%s took %v under 200 rps", strings.Join(args, " "), done.Ended.Sub(done.Started).Round(time.Second))
		if want := []string{"issuer", "root"}[i]; done.Scope != want || len(done.CutOff) > 0 {
			t.Errorf("the history says %+v, want a rotation of the %s", done, want)
		}
		eventually(t, time.Minute, "the MeshConfig to say that the authority is current", func(ctx context.Context) error {
			return c.Condition(ctx, kube.MeshKind("MeshConfig"), "", "default", "AuthorityCurrent", "True")
		})
	}
	if took := time.Since(begin); took > duration {
		t.Errorf("it took %v, and the load was over after %v", took, duration)
	}
	// Who comes now has only ever known the new root.
	s.deploy(app{name: "late"})
	s.callUntil(s.in("late"), answered(200), "http", s.url("server"))
	for _, l := range loads {
		r := l.wait()
		noFailure(s, r)
		figure(t, "%d calls while it was rotated, %d failed, p99 %.1f ms", r.Requests, r.Failed, r.Service.P99)
	}
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
