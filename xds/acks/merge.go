package acks

import (
	"maps"
	"slices"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// Verdict is what all proxies make of an object, as far as replicas have
// reported.
type Verdict struct {
	// Generation is the lowest that a replica has built for.
	Generation int64
	Tally
	// Missing are the replicas whose report is missing, sorted: others may be
	// concerned, and connected to these.
	Missing []string
}

// Complete reports whether every proxy that is concerned runs the generation.
func (v Verdict) Complete() bool {
	return len(v.Missing) == 0 && v.Concerned == v.Programmed
}

// Merge adds up what the replicas report, by replica. Missing are the replicas
// that have to report and have not. Running maps the UIDs of all running meshed
// pods to their names; of those that no report speaks of, all that they were
// connected to are gone, and they may run anything: stray says what may concern
// such a pod.
func Merge(reports map[string]*Report, missing []string, running map[string]mesh.Name, stray func(mesh.Name) []mesh.Ref) map[mesh.Ref]Verdict {
	m := merge{verdicts: map[mesh.Ref]*Verdict{}, replicas: map[mesh.Ref]int{}, known: map[string]struct{}{}}
	absent := map[string]located{} // by UID
	for _, replica := range slices.Sorted(maps.Keys(reports)) {
		r := reports[replica]
		for _, uid := range r.Connected {
			m.known[uid] = struct{}{}
		}
		heard := make(map[mesh.Ref]struct{}, len(r.Objects))
		for i := range r.Objects {
			if _, twice := heard[r.Objects[i].Ref()]; twice {
				continue // no replica of ours says it twice: it is not to stand for another's word
			}
			heard[r.Objects[i].Ref()] = struct{}{}
			m.object(&r.Objects[i])
		}
		for i := range r.Absent {
			a := &r.Absent[i]
			if was, ok := absent[a.UID]; !ok || was.pod.Left.Before(a.Left) {
				absent[a.UID] = located{r, a}
			}
		}
	}
	for uid, name := range running {
		if _, ok := m.known[uid]; ok {
			continue
		}
		if a, ok := absent[uid]; ok {
			m.absent(a)
			continue
		}
		for _, ref := range stray(name) {
			m.verdict(ref).Count(name.String(), Waiting, nil)
		}
	}
	out := make(map[mesh.Ref]Verdict, len(m.verdicts))
	for ref, v := range m.verdicts {
		if m.replicas[ref] < len(reports) { // one has not built for it at all
			v.Generation = 0
		}
		v.Missing = missing
		out[ref] = *v
	}
	return out
}

type merge struct {
	verdicts map[mesh.Ref]*Verdict
	replicas map[mesh.Ref]int    // how many know the object
	known    map[string]struct{} // UIDs of pods that are connected
}

// located is an absent pod and the report that it is in.
type located struct {
	report *Report
	pod    *Absent
}

func (m *merge) verdict(r mesh.Ref) *Verdict {
	v := m.verdicts[r]
	if v == nil {
		v = &Verdict{}
		m.verdicts[r] = v
	}
	return v
}

func (m *merge) object(o *Object) {
	ref := o.Ref()
	v := m.verdict(ref)
	if m.replicas[ref]++; m.replicas[ref] == 1 || o.Generation < v.Generation {
		v.Generation = o.Generation
	}
	v.add(o.Tally)
}

func (m *merge) absent(a located) {
	for state, objects := range [...][]int{Programmed: a.pod.Programmed, Waiting: a.pod.Waiting, Rejected: a.pod.Rejected} {
		for _, i := range objects {
			if i >= 0 && i < len(a.report.Objects) {
				m.verdict(a.report.Objects[i].Ref()).Count(a.pod.Pod, State(state), a.pod.Refusal)
			}
		}
	}
}
