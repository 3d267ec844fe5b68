package server

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tulle-mesh/tulle/xds/delta"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// report is what is told about one stream.
type report struct {
	Pod       string         `json:"pod"`
	Identity  string         `json:"identity"`
	Profile   string         `json:"profile"`
	Since     time.Time      `json:"since"`
	Replica   string         `json:"replica"`
	Pushes    uint64         `json:"pushes"`
	Resources map[string]int `json:"resources"`
	Pending   []reported     `json:"pending"`
	Rejected  []reported     `json:"rejected"`
	// Held is everything that was sent, scopes excepted, where that was asked
	// for; Scopes is then the names of all scopes.
	Held   []reported `json:"held,omitempty"`
	Scopes []string   `json:"scopes,omitempty"`
}

// reported is one resource that a proxy does not have as it should.
type reported struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Error   string `json:"error,omitempty"`
}

// full is the report with everything that was sent.
func (st *stream) full() report {
	r := st.report()
	st.lock.Lock()
	defer st.lock.Unlock()
	for h := range st.state.Holdings() {
		if h.Sent != "" {
			r.Held = append(r.Held, reported{Type: typeName(h.Key.Type), Name: h.Key.Name, Version: h.Sent})
		}
	}
	sortReported(r.Held)
	for name := range st.server.options.Builder.Scopes().All() {
		r.Scopes = append(r.Scopes, name)
	}
	return r
}

func (st *stream) report() report {
	st.lock.Lock()
	defer st.lock.Unlock()
	r := report{
		Pod: st.peer.Pod.String(), Identity: st.proxy.identity, Profile: st.proxy.profile,
		Since: st.opened, Replica: st.server.options.Replica, Pushes: st.pushes,
		Resources: map[string]int{}, Pending: []reported{}, Rejected: []reported{},
	}
	for h := range st.state.Holdings() {
		name := typeName(h.Key.Type)
		if h.Acknowledged != "" {
			r.Resources[name]++
		}
		switch {
		case h.Rejected != nil:
			r.Rejected = append(r.Rejected, reported{name, h.Key.Name, h.Rejected.Version, h.Rejected.Message})
		case h.Pending():
			r.Pending = append(r.Pending, reported{Type: name, Name: h.Key.Name, Version: h.Sent})
		}
	}
	scopes := st.state.Scopes()
	name := typeName(translate.Scope)
	if scopes.Subscribed {
		r.Resources[name] = scopes.Count
		if !scopes.Settled {
			r.Pending = append(r.Pending, reported{Type: name, Name: delta.Wildcard})
		}
	}
	for scope, rejected := range scopes.Rejected {
		r.Rejected = append(r.Rejected, reported{name, scope, rejected.Version, rejected.Message})
	}
	sortReported(r.Pending)
	sortReported(r.Rejected)
	return r
}

func sortReported(l []reported) {
	slices.SortFunc(l, func(a, b reported) int {
		return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(a.Name, b.Name))
	})
}

// Debug answers with a JSON list of the streams; with ?pod=namespace/name only
// of that pod's, and then with everything that was sent on them.
func (s *Server) Debug() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reports := []report{}
		pod := r.URL.Query().Get("pod")
		for _, st := range s.all() {
			switch {
			case pod == "":
				reports = append(reports, st.report())
			case pod == st.peer.Pod.String():
				reports = append(reports, st.full())
			}
		}
		slices.SortFunc(reports, func(a, b report) int {
			return cmp.Or(strings.Compare(a.Pod, b.Pod), a.Since.Compare(b.Since))
		})
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(reports); err != nil {
			s.options.Log.V(1).Info("a reader of the proxies' state went away", "error", err.Error())
		}
	})
}
