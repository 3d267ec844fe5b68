package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// listenerRow is a listener as the proxy has it.
type listenerRow struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	// State is static (of the bootstrap), active, warming (not used yet) or
	// draining (ends when its connections do).
	State   string     `json:"state"`
	Version string     `json:"version,omitempty"`
	Updated time.Time  `json:"updated"`
	Chains  []chainRow `json:"chains"`
	Error   string     `json:"error,omitempty"`
}

// chainRow is a filter chain: which connections it takes, and where they go.
type chainRow struct {
	Name  string `json:"name"`
	Match string `json:"match"`
	TLS   string `json:"tls"`
	To    string `json:"to"`
}

type listenersView []listenerRow

func (v listenersView) data() any { return v }

func (v listenersView) lacks() bool {
	return slices.ContainsFunc(v, func(r listenerRow) bool { return r.State == "warming" || r.Error != "" })
}

func (v listenersView) table(time.Time) *table {
	t := &table{header: []string{"LISTENER", "ADDRESS", "STATE", "CHAIN", "MATCH", "TLS", "TO"}}
	for _, l := range v {
		name, at, state := l.Name, strings.Join(l.Addresses, ", "), l.State
		for i, c := range l.Chains {
			if i > 0 {
				name, at, state = `"`, `"`, `"` // as above
			}
			t.row(name, at, state, c.Name, c.Match, c.TLS, c.To)
		}
		if len(l.Chains) == 0 {
			t.row(name, at, state, none, none, none, none)
		}
		if l.Error != "" {
			t.note("Envoy rejected an update of %s: %s", l.Name, l.Error)
		}
	}
	if len(v) == 0 {
		t.note("No listeners.")
	}
	return t
}

func readListenersView(ctx context.Context, admin endpoint, o proxyOptions) (view, error) {
	d, err := readDump(ctx, admin)
	if err != nil {
		return nil, err
	}
	rows := listenersView{}
	for _, s := range d.listeners.Static {
		rows = append(rows, s.Listener.row("static", "", s.Updated))
	}
	rejected := d.listeners.errors()
	for _, l := range d.listeners.Dynamic {
		states := []struct {
			name  string
			state *listenerState
		}{{"active", l.Active}, {"warming", l.Warming}, {"draining", l.Draining}}
		for _, s := range states {
			if s.state != nil {
				r := s.state.Listener.row(s.name, s.state.Version, s.state.Updated)
				r.Error = rejected[l.Name]
				delete(rejected, l.Name) // said once
				rows = append(rows, r)
			}
		}
	}
	for name, words := range rejected { // refused from the start: there is no state
		rows = append(rows, listenerRow{Name: name, State: "rejected", Error: words})
	}
	rows = slices.DeleteFunc(rows, func(r listenerRow) bool { return !o.matches(r.Name) })
	slices.SortStableFunc(rows, func(a, b listenerRow) int { return strings.Compare(a.Name, b.Name) })
	return rows, nil
}

func (l *listenerConfig) row(state, version string, updated time.Time) listenerRow {
	r := listenerRow{Name: l.Name, State: state, Version: version, Updated: updated, Addresses: []string{l.Address.String()}}
	for _, a := range l.More {
		r.Addresses = append(r.Addresses, a.Address.String())
	}
	byMatcher := len(l.Matcher) > 0
	for i := range l.Chains {
		r.Chains = append(r.Chains, l.Chains[i].row(byMatcher))
	}
	if l.DefaultChain != nil {
		c := l.DefaultChain.row(false)
		c.Match = "otherwise"
		r.Chains = append(r.Chains, c)
	}
	return r
}

// row says what the chain takes and where it leads. Where the listener has a
// matcher tree, that decides, and not the chain.
func (c *filterChain) row(byMatcher bool) chainRow {
	r := chainRow{Name: c.Name, Match: c.Match.String(), TLS: c.Socket.kind(), To: none}
	if byMatcher {
		r.Match = "by the matcher"
	}
	for _, f := range c.Filters {
		if to := f.Config.leadsTo(); to != "" {
			r.To = to
		}
	}
	return r
}

func (m *chainMatch) String() string {
	if m == nil {
		return "any"
	}
	var parts []string
	if m.Port != 0 {
		parts = append(parts, fmt.Sprintf("port %d", m.Port))
	}
	if len(m.Ranges) > 0 {
		ranges := make([]string, len(m.Ranges))
		for i, r := range m.Ranges {
			ranges[i] = fmt.Sprintf("%s/%d", r.Prefix, r.Length)
		}
		parts = append(parts, "to "+list(ranges, 2))
	}
	if m.Transport != "" {
		parts = append(parts, m.Transport)
	}
	if len(m.Protocols) > 0 {
		parts = append(parts, strings.Join(m.Protocols, ","))
	}
	if len(m.SNI) > 0 {
		parts = append(parts, "SNI "+list(m.SNI, 2))
	}
	return cmp.Or(strings.Join(parts, " "), "any")
}

// leadsTo says where a filter sends its connections; "" for one that passes
// them on to the next.
func (f *filterConfig) leadsTo() string {
	switch {
	case strings.HasSuffix(f.Type, "HttpConnectionManager"):
		switch {
		case f.Scoped != nil:
			return "HTTP, routes by scope"
		case f.RDS != nil:
			return "HTTP, routes " + f.RDS.Name
		case f.Routes != nil:
			return strings.TrimSpace("HTTP, own routes " + f.Routes.Name)
		}
		return "HTTP"
	case strings.HasSuffix(f.Type, "TcpProxy"):
		switch {
		case f.Weighted != nil:
			return "TCP, " + f.Weighted.String()
		case len(f.OnDemand) > 0:
			return "TCP, cluster on demand"
		}
		return "TCP, cluster " + f.Cluster
	}
	return ""
}

// String is the clusters with their shares, as "90 a, 10 b".
func (w *weighted) String() string {
	parts := make([]string, len(w.Clusters))
	for i, c := range w.Clusters {
		parts[i] = fmt.Sprintf("%d %s", c.Weight, c.Name)
	}
	return list(parts, 4)
}
