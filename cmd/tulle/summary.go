package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// summary is a proxy in numbers.
type summary struct {
	Envoy     string     `json:"envoy"`
	State     string     `json:"state"`
	Uptime    string     `json:"uptime"`
	Identity  string     `json:"identity,omitempty"`
	CertEnd   *time.Time `json:"certificateEnd,omitempty"`
	Listeners int        `json:"listeners"`
	Clusters  int        `json:"clusters"`
	Warming   int        `json:"warming"`
	Endpoints int        `json:"endpoints"`
	Routes    int        `json:"routes"`
	Scopes    int        `json:"scopes"`
	Errors    []string   `json:"errors,omitempty"`
}

func (s *summary) data() any { return s }

func (s *summary) lacks() bool {
	return s.State != "LIVE" || s.CertEnd == nil || s.Warming > 0 || len(s.Errors) > 0
}

func (s *summary) table(now time.Time) *table {
	t := &table{header: []string{"PROXY", "VALUE"}}
	t.row("Envoy", s.Envoy)
	t.row("state", strings.ToLower(s.State)+", up "+s.Uptime)
	t.row("identity", s.Identity)
	if s.CertEnd != nil {
		left := "has ended"
		if s.CertEnd.After(now) {
			left = age(now, *s.CertEnd) + " left"
		}
		t.row("certificate", fmt.Sprintf("until %s, %s", s.CertEnd.UTC().Format(time.RFC3339), left))
	} else {
		t.row("certificate", "none yet")
	}
	t.row("listeners", fmt.Sprint(s.Listeners))
	warming := ""
	if s.Warming > 0 {
		warming = fmt.Sprintf(" (%d warming)", s.Warming)
	}
	t.row("clusters", fmt.Sprint(s.Clusters)+warming)
	t.row("endpoints", fmt.Sprint(s.Endpoints))
	t.row("routes", fmt.Sprint(s.Routes))
	t.row("destinations", fmt.Sprint(s.Scopes))
	for _, e := range s.Errors {
		t.note("Envoy rejected an update of %s", e)
	}
	return t
}

func readSummary(ctx context.Context, admin endpoint, o proxyOptions) (view, error) {
	var info struct {
		Version string `json:"version"`
		State   string `json:"state"`
		Uptime  string `json:"uptime_all_epochs"`
	}
	if err := readJSON(ctx, admin, "/server_info", &info); err != nil {
		return nil, err
	}
	certs, err := readCerts(ctx, admin, o.now)
	if err != nil {
		return nil, err
	}
	d, err := readDump(ctx, admin)
	if err != nil {
		return nil, err
	}
	s := &summary{Envoy: envoyVersion(info.Version), State: info.State, Uptime: uptime(info.Uptime)}
	for _, c := range certs {
		if c.Use == useWorkload && len(c.Identities) > 0 && s.CertEnd == nil {
			until := c.Until
			s.Identity, s.CertEnd = strings.Join(c.Identities, ", "), &until
		}
	}
	s.count(d)
	return s, nil
}

// count counts what the proxy holds.
func (s *summary) count(d *dump) {
	rejected := d.listeners.errors()
	s.Listeners = len(d.listeners.Static)
	for _, l := range d.listeners.Dynamic {
		if l.Active != nil {
			s.Listeners++
		}
		if l.Warming != nil {
			s.Warming++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rejected)) {
		s.Errors = append(s.Errors, "listener "+name+": "+rejected[name])
	}
	s.Clusters = len(d.clusters.Static) + len(d.clusters.Active)
	s.Warming += len(d.clusters.Warming)
	for _, c := range d.clusters.Active {
		if c.Error != nil {
			s.Errors = append(s.Errors, "cluster "+c.Cluster.Name+": "+c.Error.Details)
		}
	}
	for _, e := range slices.Concat(d.endpoints.Static, d.endpoints.Dynamic) {
		for _, locality := range e.Config.Endpoints {
			s.Endpoints += len(locality.Endpoints)
		}
	}
	s.Routes = len(d.routes.Static) + len(d.routes.Dynamic)
	for _, set := range slices.Concat(d.scopes.Inline, d.scopes.Dynamic) {
		s.Scopes += len(set.Scopes)
	}
}

// envoyVersion takes "1.40.0" out of "<commit>/1.40.0/Clean/RELEASE/BoringSSL".
func envoyVersion(s string) string {
	if parts := strings.Split(s, "/"); len(parts) > 1 {
		return parts[1]
	}
	return s
}

// uptime makes "3600s" readable.
func uptime(s string) string {
	d, err := time.ParseDuration(s)
	if err != nil {
		return s
	}
	return age(time.Time{}.Add(1), time.Time{}.Add(1+d))
}
