package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/websocket"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// handler answers:
//
//	/              a Reply, once the whole body is read
//	/headers       the same
//	/sleep?for=1s  a Reply, later
//	/status/503    that status
//	/to/a/b?by=302 a redirect to /a/b
//	/host/a.b      200 where that is the request's host, 421 otherwise
//	/bytes?n=1000  so many bytes
//	/kept          what the header X-Keep said in the latest request here that had it
//	/ws            WebSocket echo
//	/ready         200, or 503 after /toggle/ready?to=false
//	/toggle/fail   ?to=true|false: whether / answers 500
//	/toggle/ready  ?to=true|false: what /ready and gRPC health say
//	/toggle/greet  ?to=true|false: whether the greeting port is open
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.reply)
	mux.HandleFunc("/sleep", sleep)
	mux.HandleFunc("/status/{code}", statusCode)
	mux.HandleFunc("/to/{path...}", redirect)
	mux.HandleFunc("/host/{host}", forHost)
	mux.HandleFunc("/bytes", sendBytes)
	mux.HandleFunc("/kept", s.keep)
	mux.HandleFunc("/ws", echoWebSocket)
	mux.HandleFunc("/ready", s.ready)
	mux.HandleFunc("/toggle/ready", s.toggleReady)
	mux.HandleFunc("/toggle/fail", s.toggleFail)
	mux.HandleFunc("/toggle/greet", s.toggleGreet)
	return mux
}

func (s *server) reply(w http.ResponseWriter, r *http.Request) {
	switch n, ok := readBody(w, r); {
	case !ok:
	case s.failing.Load():
		http.Error(w, "told to fail", http.StatusInternalServerError)
	default:
		writeReply(w, r, n)
	}
}

func readBody(w http.ResponseWriter, r *http.Request) (int64, bool) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, "reading the body: "+err.Error(), http.StatusBadRequest)
	}
	return n, err == nil
}

func writeReply(w http.ResponseWriter, r *http.Request, body int64) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Version", self().Version)
	_ = json.NewEncoder(w).Encode(replyTo(r, body)) // fails only if the caller is gone
}

func sleep(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil {
		http.Error(w, "say for how long: /sleep?for=300ms", http.StatusBadRequest)
		return
	}
	n, ok := readBody(w, r)
	if !ok {
		return
	}
	select {
	case <-time.After(d):
		writeReply(w, r, n)
	case <-r.Context().Done():
	}
}

func statusCode(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(w, "say a status: /status/503", http.StatusBadRequest)
		return
	}
	w.Header().Set("X-Version", self().Version)
	w.WriteHeader(code)
}

func (s *server) keep(w http.ResponseWriter, r *http.Request) {
	if text := r.Header.Get("X-Keep"); text != "" {
		s.kept.Store(&text)
	}
	text := s.kept.Load()
	if text == nil {
		http.Error(w, "nothing is kept", http.StatusNotFound)
		return
	}
	_, _ = io.WriteString(w, *text) // fails only if the caller is gone
}

func redirect(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.URL.Query().Get("by"))
	if err != nil || code < 301 || code > 308 {
		http.Error(w, "say the status: /to/ready?by=302", http.StatusBadRequest)
		return
	}
	http.Redirect(w, r, "/"+r.PathValue("path"), code)
}

func forHost(w http.ResponseWriter, r *http.Request) {
	if r.Host != r.PathValue("host") {
		http.Error(w, "the host is "+r.Host, http.StatusMisdirectedRequest)
	}
}

func sendBytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	if err != nil {
		http.Error(w, "say how many: /bytes?n=1000", http.StatusBadRequest)
		return
	}
	_, _ = io.CopyN(w, zeros{}, n) // fails only if the caller is gone
}

// zeros reads as an endless row of '0'.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

func echoWebSocket(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	c, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer c.Close()
	for {
		kind, message, err := c.ReadMessage()
		if err != nil {
			return
		}
		if c.WriteMessage(kind, message) != nil {
			return
		}
	}
}

func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	if s.unready.Load() {
		http.Error(w, "told to be unready", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

func (s *server) toggleFail(w http.ResponseWriter, r *http.Request) {
	to := r.URL.Query().Get("to") != "false"
	s.failing.Store(to)
	fmt.Fprintln(w, "failing:", to)
}

func (s *server) toggleReady(w http.ResponseWriter, r *http.Request) {
	to := r.URL.Query().Get("to") != "false"
	s.unready.Store(!to)
	state := healthpb.HealthCheckResponse_SERVING
	if !to {
		state = healthpb.HealthCheckResponse_NOT_SERVING
	}
	s.health.SetServingStatus("", state)
	fmt.Fprintln(w, "ready:", to)
}

func (s *server) toggleGreet(w http.ResponseWriter, r *http.Request) {
	to := r.URL.Query().Get("to") != "false"
	if err := s.greet.open(to); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "greet:", to)
}
