// Package preview is what some objects would change of the mesh, as data: what
// one replica of the control plane can say of the proxies that it serves
// ([Part]), and what all of them say together ([Merge]).
//
// In: parts, which xds/server makes and controllers/replicas gathers. Out: an
// [Answer], for the CLI and for warnings of a dry run. Nothing is changed by it.
package preview

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Question is what would be applied and deleted, at once.
type Question struct {
	// Put are objects of the API as they would be stored.
	Put []json.RawMessage `json:"put,omitempty"`
	// Delete are objects of which kind, namespace and name count.
	Delete []json.RawMessage `json:"delete,omitempty"`
	// Details asks for the resources' texts.
	Details bool `json:"details,omitempty"`
}

// Resource is an xDS resource that some proxies hold and would be sent anew, or
// would lose.
type Resource struct {
	Type string `json:"type"`
	Name string `json:"name"`
	// Versions tell equal ones apart from others of the same name; empty: there
	// is none.
	NowVersion  string `json:"nowVersion,omitempty"`
	ThenVersion string `json:"thenVersion,omitempty"`
	// Now and Then are the resource as protobuf's JSON, where that was asked for;
	// never of secrets.
	Now  json.RawMessage `json:"now,omitempty"`
	Then json.RawMessage `json:"then,omitempty"`
	// Pods hold it, as namespace/name, sorted.
	Pods []string `json:"pods"`
}

// Condition is one that the object's status would have.
type Condition struct {
	Type    string `json:"type"`
	OK      bool   `json:"ok"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Object is an object whose conditions would be others, or that was asked about.
type Object struct {
	Kind       string      `json:"kind"`
	Namespace  string      `json:"namespace,omitempty"`
	Name       string      `json:"name"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// Part is what one replica says.
type Part struct {
	// Known are the pods of which the replica knows what their proxies hold.
	Known     []string   `json:"known"`
	Resources []Resource `json:"resources,omitempty"`
	Objects   []Object   `json:"objects,omitempty"`
}

// Answer is what all replicas say.
type Answer struct {
	// Proxies is how many pods run a proxy; Unknown are those of which no replica
	// knows what it holds.
	Proxies int      `json:"proxies"`
	Unknown []string `json:"unknown,omitempty"`
	// Changed are the pods whose proxies would be sent something, sorted.
	Changed   []string   `json:"changed"`
	Resources []Resource `json:"resources"`
	Objects   []Object   `json:"objects"`
	// Missing are replicas that did not answer, and why.
	Missing map[string]string `json:"missing,omitempty"`
}

// Merge adds up what replicas say. Running are all pods that run a proxy.
func Merge(parts []Part, missing map[string]string, running map[string]struct{}) Answer {
	a := Answer{Proxies: len(running), Changed: []string{}, Resources: []Resource{}, Objects: []Object{}, Missing: missing}
	known, changed := map[string]struct{}{}, map[string]struct{}{}
	type id struct{ kind, name, now, then string }
	resources, pods := map[id]Resource{}, map[id]map[string]struct{}{}
	objects := map[string]Object{}
	for _, p := range parts {
		for _, pod := range p.Known {
			known[pod] = struct{}{}
		}
		for _, r := range p.Resources {
			k := id{r.Type, r.Name, r.NowVersion, r.ThenVersion}
			if pods[k] == nil {
				resources[k], pods[k] = r, map[string]struct{}{}
			}
			for _, pod := range r.Pods {
				pods[k][pod] = struct{}{}
				changed[pod] = struct{}{}
			}
		}
		for _, o := range p.Objects {
			objects[o.Kind+"/"+o.Namespace+"/"+o.Name] = o
		}
	}
	for k, r := range resources {
		r.Pods = slices.Sorted(maps.Keys(pods[k]))
		a.Resources = append(a.Resources, r)
	}
	slices.SortFunc(a.Resources, func(x, y Resource) int {
		return cmp.Or(strings.Compare(x.Type, y.Type), strings.Compare(x.Name, y.Name),
			strings.Compare(x.NowVersion, y.NowVersion), strings.Compare(x.ThenVersion, y.ThenVersion))
	})
	for _, k := range slices.Sorted(maps.Keys(objects)) {
		a.Objects = append(a.Objects, objects[k])
	}
	for pod := range running {
		if _, ok := known[pod]; !ok {
			a.Unknown = append(a.Unknown, pod)
		}
	}
	slices.Sort(a.Unknown)
	a.Changed = slices.AppendSeq(a.Changed, maps.Keys(changed))
	slices.Sort(a.Changed)
	return a
}

// Sentences are the answer in short: to somebody who may write in the namespace,
// and is told of others in numbers only; empty: who may see all.
func (a *Answer) Sentences(to string) []string {
	perNamespace, others := map[string]int{}, 0
	for _, pod := range a.Changed {
		namespace, _, _ := strings.Cut(pod, "/")
		if to != "" && namespace != to {
			others++
			continue
		}
		perNamespace[namespace]++
	}
	where := make([]string, 0, len(perNamespace))
	for _, namespace := range slices.Sorted(maps.Keys(perNamespace)) {
		where = append(where, fmt.Sprintf("%s: %d", namespace, perNamespace[namespace]))
	}
	if others > 0 {
		where = append(where, fmt.Sprintf("in other namespaces: %d", others))
	}
	first := fmt.Sprintf("this would change %d of %d proxies", len(a.Changed), a.Proxies)
	if len(where) > 0 {
		first += " (" + shortened(where) + ")"
	}
	out := []string{first}
	for _, o := range a.Objects {
		for _, c := range o.Conditions {
			if !c.OK && (to == "" || o.Namespace == to) {
				name := strings.TrimPrefix(o.Namespace+"/"+o.Name, "/")
				out = append(out, fmt.Sprintf("%s %s would have %s=False (%s): %s", o.Kind, name, c.Type, c.Reason, c.Message))
			}
		}
	}
	if to != "" {
		if n := len(a.Unknown) + len(a.Missing); n > 0 {
			out = append(out, fmt.Sprintf("not known is what the proxies hold of %d pods; %d replicas did not answer", len(a.Unknown), len(a.Missing)))
		}
		return out
	}
	if len(a.Unknown) > 0 {
		out = append(out, "not known is what the proxies hold of "+shortened(a.Unknown))
	}
	for _, name := range slices.Sorted(maps.Keys(a.Missing)) {
		out = append(out, fmt.Sprintf("replica %s did not answer, its proxies are not counted: %s", name, a.Missing[name]))
	}
	return out
}

// shortened joins a few, and says how many more there are.
func shortened(items []string) string {
	const most = 5
	if len(items) <= most {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:most], ", "), len(items)-most)
}
