package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// apiServer is as much of an API server as a port-forward needs, with one pod
// whose port is the backend. It speaks SPDY alone, as old ones do, so a client
// has to fall back from WebSocket.
type apiServer struct {
	backend string // where the pod's port is; "" for one that nothing listens on
	mu      sync.Mutex
	paths   []string
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.paths = append(s.paths, r.URL.Path)
	s.mu.Unlock()
	if !strings.Contains(strings.ToLower(r.Header.Get("Upgrade")), "spdy") {
		http.Error(w, "SPDY alone", http.StatusBadRequest)
		return
	}
	if _, err := httpstream.Handshake(r, w, []string{portforward.PortForwardProtocolV1Name}); err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 16)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(st httpstream.Stream, _ <-chan struct{}) error {
		streams <- st
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	errs := map[string]httpstream.Stream{} // by request
	for {
		select {
		case <-conn.CloseChan():
			return
		case st := <-streams:
			id := st.Headers().Get(corev1.PortForwardRequestIDHeader)
			if st.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
				errs[id] = st
				continue
			}
			go s.forward(st, errs[id])
		}
	}
}

func (s *apiServer) forward(data, errs httpstream.Stream) {
	defer errs.Close()
	defer data.Close()
	c, err := net.Dial("tcp", s.backend)
	if err != nil {
		fmt.Fprintf(errs, "port %s: connection refused in the pod", data.Headers().Get(corev1.PortHeader))
		return
	}
	defer c.Close()
	go func() { _, _ = io.Copy(c, data) }()
	_, _ = io.Copy(data, c)
}

// reachThrough opens port 15000 of pod shop/a through the server.
func reachThrough(t *testing.T, h http.Handler) (endpoint, error) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	config := &rest.Config{Host: s.URL}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return reach(config, client, pod("shop/a"), portAdmin)
}

func TestAPodsPortIsReachedThroughTheAPIServer(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/secret" {
			http.Error(w, "not for you", http.StatusForbidden)
			return
		}
		fmt.Fprint(w, r.URL.RequestURI(), big)
	}))
	defer backend.Close()
	api := &apiServer{backend: backend.Listener.Addr().String()}
	e, err := reachThrough(t, api)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/one?x=1", "/two"} {
		body, err := e.Get(t.Context(), path)
		if err != nil || string(body) != path+big {
			t.Errorf("%s: %d bytes, error %v", path, len(body), err)
		}
	}
	if _, err := e.Get(t.Context(), "/secret"); err == nil || !strings.Contains(err.Error(), "403 Forbidden: not for you") {
		t.Errorf("error: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
	if got := api.paths[0]; got != "/api/v1/namespaces/shop/pods/a/portforward" {
		t.Errorf("path %s", got)
	}
}

func TestAPortThatNothingListensOnIsSaidInTheNodesWords(t *testing.T) {
	e, err := reachThrough(t, &apiServer{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	_, err = e.Get(t.Context(), "/")
	if err == nil || !strings.Contains(err.Error(), "port 15000: connection refused in the pod") {
		t.Errorf("error: %v", err)
	}
}

func TestAForbiddenPortForwardNamesTheRight(t *testing.T) {
	_, err := reachThrough(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `pods "a" is forbidden: no`, http.StatusForbidden)
	}))
	if next := nextStep(err); next != "ask for the verb create on pods/portforward in namespace shop" {
		t.Errorf("error %v, next step %q", err, next)
	}
}
