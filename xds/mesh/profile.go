package mesh

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
)

// Profile is a class of workloads whose sidecars have the same inbound
// configuration: those that are alike in all that such configuration reads.
type Profile struct {
	ID        string
	Namespace string
	Labels    map[string]string
	Ports     []ContainerPort
	Probes    []Probe
	members   int
}

// revisionLabels tell one rollout of a workload from the next. They are left
// out of a profile, and so no policy can select by them: a rollout is to find
// the configuration that the pods before it had.
var revisionLabels = [...]string{"pod-template-hash", "controller-revision-hash"}

// RevisionLabel reports whether no selector may use the label.
func RevisionLabel(key string) bool {
	for _, l := range revisionLabels {
		if l == key {
			return true
		}
	}
	return false
}

// ProfileOf is the profile that the workload has.
func ProfileOf(w *Workload) *Profile {
	labels := maps.Clone(w.Labels)
	for _, l := range revisionLabels {
		delete(labels, l)
	}
	p := &Profile{Namespace: w.Namespace, Labels: labels, Ports: w.Ports, Probes: w.Probes}
	b, err := json.Marshal(p) // sorts map keys
	if err != nil {
		panic(err) // strings and numbers only
	}
	sum := sha256.Sum256(b)
	p.ID = w.Namespace + "/" + hex.EncodeToString(sum[:8])
	return p
}

// Profile is the id of the workload's profile.
func (s *Snapshot) Profile(w *Workload) string { return ProfileOf(w).ID }

// updateProfile counts the members of profiles. Only meshed workloads have one.
func (s *Snapshot) updateProfile(f facts, old, now *Workload) {
	if old != nil && old.Meshed {
		p := ProfileOf(old)
		if held, ok := s.profiles.get(p.ID); ok {
			if held.members == 1 {
				s.profiles.delete(p.ID)
				f.add(FactProfile, p.ID)
			} else {
				less := *held
				less.members--
				s.profiles.put(p.ID, &less)
			}
		}
	}
	if now != nil && now.Meshed {
		p := ProfileOf(now)
		if held, ok := s.profiles.get(p.ID); ok {
			p.members = held.members
		} else {
			f.add(FactProfile, p.ID)
		}
		p.members++
		s.profiles.put(p.ID, p)
	}
}
