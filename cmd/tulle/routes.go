package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// routeRow is one route. A scope whose routes the proxy has not asked for has
// one row that leads nowhere.
type routeRow struct {
	// Config is the name of the route configuration: the destination's address
	// and port for what goes out.
	Config string `json:"config"`
	// Scopes are the destinations that lead to it.
	Scopes  []string `json:"scopes,omitempty"`
	Loaded  bool     `json:"loaded"`
	Host    string   `json:"host,omitempty"`
	Domains []string `json:"domains,omitempty"`
	Match   string   `json:"match,omitempty"`
	To      string   `json:"to,omitempty"`
	Timeout string   `json:"timeout,omitempty"`
	Retries string   `json:"retries,omitempty"`
	Version string   `json:"version,omitempty"`
}

type routesView struct {
	rows []routeRow
	// hidden counts the scopes that were left out, since the proxy has not
	// asked for their routes.
	hidden int
}

func (v *routesView) data() any { return v.rows }

func (v *routesView) table(time.Time) *table {
	t := &table{header: []string{"ROUTES", "HOST", "MATCH", "TO", "TIMEOUT", "RETRIES", "VERSION"}}
	for _, r := range v.rows {
		if !r.Loaded {
			t.row(r.Config, none, none, "not used yet", none, none, none)
			continue
		}
		t.row(r.Config, r.Host, r.Match, r.To, r.Timeout, r.Retries, short(r.Version))
	}
	switch {
	case v.hidden > 0:
		t.note("%s known, of which the routes are fetched at first use: --all lists them.",
			count(v.hidden, "more destination is", "more destinations are"))
	case len(v.rows) == 0:
		t.note("No routes.")
	}
	return t
}

func readRoutesView(ctx context.Context, admin endpoint, o proxyOptions) (view, error) {
	d, err := readDump(ctx, admin)
	if err != nil {
		return nil, err
	}
	scopes := map[string][]string{} // by route configuration
	for _, set := range slices.Concat(d.scopes.Inline, d.scopes.Dynamic) {
		for _, s := range set.Scopes {
			scopes[s.Routes] = append(scopes[s.Routes], s.Name)
		}
	}
	v := &routesView{rows: []routeRow{}}
	for _, e := range slices.Concat(d.routes.Static, d.routes.Dynamic) {
		rows := e.rows(scopes[e.Config.Name])
		delete(scopes, e.Config.Name)
		// A destination is an address; people look for it by the names of its
		// hosts and clusters too.
		v.rows = append(v.rows, slices.DeleteFunc(rows, func(r routeRow) bool {
			return !o.matches(r.Config) && !o.matches(r.Host) && !o.matches(r.To)
		})...)
	}
	for name, from := range scopes {
		switch {
		case !o.matches(name):
		case !o.all:
			v.hidden++
		default:
			v.rows = append(v.rows, routeRow{Config: name, Scopes: from})
		}
	}
	slices.SortStableFunc(v.rows, func(a, b routeRow) int { return strings.Compare(a.Config, b.Config) })
	return v, nil
}

func (e *routeEntry) rows(scopes []string) []routeRow {
	var rows []routeRow
	base := routeRow{Config: e.Config.Name, Scopes: scopes, Loaded: true, Version: e.Version}
	for _, h := range e.Config.Hosts {
		for i := range h.Routes {
			r := base
			r.Host, r.Domains = h.Name, h.Domains
			h.Routes[i].describe(&r)
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		base.To = "404: no routes"
		rows = append(rows, base)
	}
	return rows
}

func (a *routeAction) describe(r *routeRow) {
	r.Match = a.Match.String()
	switch {
	case a.Direct != nil:
		r.To = fmt.Sprintf("answer %d", a.Direct.Status)
	case a.Redirect != nil:
		r.To = "redirect to " + a.Redirect.Host + a.Redirect.Path
	case a.Route != nil:
		switch {
		case a.Route.Weighted != nil:
			r.To = a.Route.Weighted.String()
		case a.Route.Header != "":
			r.To = "cluster named by header " + a.Route.Header
		default:
			r.To = a.Route.Cluster
		}
		r.Timeout = a.Route.Timeout
		if p := a.Route.Retry; p != nil {
			attempts := 1 // Envoy's default
			if p.Attempts != nil {
				attempts = *p.Attempts
			}
			r.Retries = strings.TrimSpace(fmt.Sprintf("%d on %s", attempts, p.On))
		}
	case len(a.Forward) > 0:
		r.To = "not forwarded"
	}
}

func (m *routeMatch) String() string {
	var path string
	switch {
	case m.Path != "":
		path = "= " + m.Path
	case m.Separated != "":
		path = m.Separated + "/*"
	case m.Regex != nil:
		path = "~ " + m.Regex.Regex
	case len(m.Connect) > 0:
		path = "CONNECT"
	default:
		path = m.Prefix + "*"
	}
	parts := []string{path}
	for _, h := range m.Headers {
		not := ""
		if h.Invert {
			not = "not "
		}
		cond := not + h.Name
		if s := h.Match; s != nil {
			switch {
			case s.Exact != "":
				cond += "=" + s.Exact
			case s.Regex != nil:
				cond += "~" + s.Regex.Regex
			case s.Prefix != "":
				cond += "=" + s.Prefix + "*"
			case s.Suffix != "":
				cond += "=*" + s.Suffix
			case s.Contains != "":
				cond += "=*" + s.Contains + "*"
			}
		}
		parts = append(parts, cond)
	}
	return strings.Join(parts, ", ")
}
