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
}

// reported is one resource that a proxy does not have as it should.
type reported struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Error   string `json:"error,omitempty"`
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

// Debug answers with a JSON list of the streams.
func (s *Server) Debug() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reports := []report{}
		for _, st := range s.all() {
			reports = append(reports, st.report())
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
