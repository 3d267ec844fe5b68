package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

// States of a resource in a diff.
const (
	diffSame     = "same"
	diffOther    = "other version" // Envoy has an older one, or has not taken the newest yet
	diffMissing  = "missing"       // it was sent, and Envoy does not have it
	diffExtra    = "extra"         // Envoy has it, and it was not sent on this stream
	diffRejected = "rejected"
)

// difference is one resource.
type difference struct {
	Type  string `json:"type"`
	Name  string `json:"name"`
	State string `json:"state"`
	Sent  string `json:"sent,omitempty"`
	Has   string `json:"has,omitempty"`
	Error string `json:"error,omitempty"`
}

// diffView is what was sent against what Envoy has.
type diffView struct {
	Pod         string         `json:"pod"`
	Replica     string         `json:"replica"`
	Same        map[string]int `json:"same"` // by type
	Differences []difference   `json:"differences"`
}

func (v *diffView) data() any { return v }

func (v *diffView) lacks() bool { return len(v.Differences) > 0 }

func (v *diffView) table(time.Time) *table {
	t := &table{header: []string{"TYPE", "NAME", "STATE", "SENT", "ENVOY HAS"}}
	for _, d := range v.Differences {
		t.row(d.Type, d.Name, d.State, short(d.Sent), short(d.Has))
	}
	for _, d := range v.Differences {
		if d.Error != "" {
			t.note("Envoy refused %s %s: %s", d.Type, d.Name, d.Error)
		}
	}
	var same []string
	total := 0
	for _, kind := range slices.Sorted(maps.Keys(v.Same)) {
		same = append(same, fmt.Sprintf("%d %s", v.Same[kind], kind))
		total += v.Same[kind]
	}
	t.note("%d resources are the same as %s sent them: %s.", total, v.Replica, strings.Join(same, ", "))
	return t
}

// diff compares what the control plane sent to the pod's proxy with what that
// has.
func (a *app) diff(ctx context.Context, arg, format string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	p, admin, err := c.admin(ctx, arg)
	if err != nil {
		return err
	}
	defer admin.Close()
	sent, err := c.sentTo(ctx, podName(p))
	if err != nil {
		return err
	}
	has, err := heldBy(ctx, admin)
	if err != nil {
		return fmt.Errorf("pod %s: %w", podName(p), err)
	}
	v := compare(podName(p), sent, has)
	if err := a.show(format, v); err != nil {
		return err
	}
	if v.lacks() {
		return errLacking
	}
	return nil
}

// sentTo is the pod's newest stream.
func (c *cluster) sentTo(ctx context.Context, pod string) (*stream, error) {
	replicas, err := c.listPods(ctx, c.meshNamespace, selectTulled)
	if err != nil {
		return nil, err
	}
	var newest *stream
	var last error
	for i := range replicas {
		if !ready(&replicas[i]) {
			continue
		}
		streams, err := c.askReplicaFor(ctx, &replicas[i], pathStreams+"?"+url.Values{"pod": {pod}}.Encode())
		if err != nil {
			last = err
			continue
		}
		for j := range streams {
			if newest == nil || newest.Since.Before(streams[j].Since) {
				newest = &streams[j]
			}
		}
	}
	switch {
	case newest != nil:
		return newest, nil
	case last != nil:
		return nil, last
	}
	return nil, &advice{fmt.Errorf("the proxy of pod %s is not connected to any replica of the control plane", pod), "tulle status, and the proxy's log: kubectl logs -c " + containerProxy}
}

// heldBy is what Envoy has by type and name: the version, "" where it does not
// tell.
func heldBy(ctx context.Context, admin endpoint) (map[string]map[string]string, error) {
	var raw struct {
		Configs []map[string]json.RawMessage `json:"configs"`
	}
	if err := readJSON(ctx, admin, pathDump, &raw); err != nil {
		return nil, err
	}
	out := map[string]map[string]string{}
	for _, section := range dumpSections {
		if out[section.kind] == nil {
			out[section.kind] = map[string]string{}
		}
		for _, config := range raw.Configs {
			entries := config[section.field]
			if len(entries) == 0 {
				continue
			}
			var list []dumpEntry
			if err := json.Unmarshal(entries, &list); err != nil {
				return nil, fmt.Errorf("reading %s of Envoy's configuration: %w", section.field, err)
			}
			for _, e := range list {
				for name, version := range section.read(e) {
					out[section.kind][name] = version
				}
			}
		}
	}
	return out, nil
}

// dumpEntry has the fields of all sections' elements that are of use.
type dumpEntry struct {
	Name    string `json:"name"`
	Version string `json:"version_info"`
	Cluster struct {
		Name string `json:"name"`
	} `json:"cluster"`
	Active *struct {
		Version string `json:"version_info"`
	} `json:"active_state"`
	Route struct {
		Name string `json:"name"`
	} `json:"route_config"`
	Endpoint struct {
		Cluster string `json:"cluster_name"`
	} `json:"endpoint_config"`
	Scopes []struct {
		Name string `json:"name"`
	} `json:"scoped_route_configs"`
}

func one(name, version string) map[string]string { return map[string]string{name: version} }

// dumpSections are where the resources of a type stand in /config_dump.
var dumpSections = []struct {
	kind, field string
	read        func(dumpEntry) map[string]string
}{
	{"Cluster", "dynamic_active_clusters", func(e dumpEntry) map[string]string { return one(e.Cluster.Name, e.Version) }},
	{"Cluster", "dynamic_warming_clusters", func(e dumpEntry) map[string]string { return one(e.Cluster.Name, e.Version) }},
	{"Listener", "dynamic_listeners", func(e dumpEntry) map[string]string {
		if e.Active == nil {
			return nil
		}
		return one(e.Name, e.Active.Version)
	}},
	{"Route", "dynamic_route_configs", func(e dumpEntry) map[string]string { return one(e.Route.Name, e.Version) }},
	{"Endpoints", "dynamic_endpoint_configs", func(e dumpEntry) map[string]string { return one(e.Endpoint.Cluster, "") }},
	{"Secret", "dynamic_active_secrets", func(e dumpEntry) map[string]string { return one(e.Name, e.Version) }},
	{"Scope", "dynamic_scoped_route_configs", func(e dumpEntry) map[string]string {
		out := map[string]string{}
		for _, s := range e.Scopes {
			out[s.Name] = ""
		}
		return out
	}},
}

func compare(pod string, sent *stream, has map[string]map[string]string) *diffView {
	v := &diffView{Pod: pod, Replica: sent.Replica, Same: map[string]int{}, Differences: []difference{}}
	refused := map[string]resource{}
	for _, r := range sent.Rejected {
		refused[r.Type+"/"+r.Name] = r
	}
	expected := map[string]bool{}
	held := slices.Clone(sent.Held)
	for _, name := range sent.Scopes {
		held = append(held, resource{Type: "Scope", Name: name})
	}
	for _, r := range held {
		expected[r.Type+"/"+r.Name] = true
		version, there := has[r.Type][r.Name]
		d := difference{Type: r.Type, Name: r.Name, Sent: r.Version, Has: version}
		switch {
		case refused[r.Type+"/"+r.Name].Error != "":
			d.State, d.Error = diffRejected, refused[r.Type+"/"+r.Name].Error
		case !there:
			d.State = diffMissing
		case version != "" && r.Version != "" && version != r.Version:
			d.State = diffOther
		default:
			v.Same[r.Type]++
			continue
		}
		v.Differences = append(v.Differences, d)
	}
	for _, r := range sent.Rejected {
		if key := r.Type + "/" + r.Name; !expected[key] { // nothing of it was taken
			expected[key] = true
			v.Differences = append(v.Differences, difference{Type: r.Type, Name: r.Name, State: diffRejected, Sent: r.Version, Error: r.Error})
		}
	}
	for kind, names := range has {
		for name, version := range names {
			// A cluster's own addresses are listed among the endpoints that were
			// sent, and the token is of a file.
			if !expected[kind+"/"+name] && kind != "Endpoints" && kind+"/"+name != "Secret/token" {
				v.Differences = append(v.Differences, difference{Type: kind, Name: name, State: diffExtra, Has: version})
			}
		}
	}
	slices.SortFunc(v.Differences, func(a, b difference) int {
		return strings.Compare(a.Type+"/"+a.Name, b.Type+"/"+b.Name)
	})
	return v
}
