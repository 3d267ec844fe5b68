package server

import (
	"slices"
	"sync"

	"github.com/tulle-mesh/tulle/xds/build"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Bounds of what is remembered: names of each sort for a profile, and profiles.
const (
	siblingNames    = 100
	siblingProfiles = 4096
)

// siblings remembers what the proxies of a profile asked for of their own
// accord: a new pod of a workload will call what the others call, and is given
// it ahead. It is a cache in memory: a control plane that starts anew learns
// from the proxies as they come back.
type siblings struct {
	lock     sync.Mutex
	profiles map[string]*used
	clock    uint64
}

// used are names, the one used last at the end.
type used struct {
	clusters, routes []string
	at               uint64 // when it was used last
}

func newSiblings() *siblings { return &siblings{profiles: map[string]*used{}} }

// known returns the clusters and the scopes that proxies of the profile use.
func (s *siblings) known(profile string) (clusters, scopes []string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	u := s.profiles[profile]
	if u == nil {
		return nil, nil
	}
	s.touch(u)
	return slices.Clone(u.clusters), slices.Clone(u.routes)
}

// learn notes what a proxy asked for.
func (s *siblings) learn(profile string, asked []build.Key) {
	s.lock.Lock()
	defer s.lock.Unlock()
	u := s.profiles[profile]
	if u == nil {
		u = s.add(profile)
	}
	s.touch(u)
	for _, k := range asked {
		switch {
		case k.Type == translate.Cluster:
			u.clusters = remember(u.clusters, k.Name)
		case k.Type == translate.Route && !inboundRoute(k.Name) && !egressRoute(k.Name):
			u.routes = remember(u.routes, k.Name) // a scope has the name of its route
		}
	}
}

func (s *siblings) add(profile string) *used {
	if len(s.profiles) >= siblingProfiles {
		var oldest string
		for name, u := range s.profiles {
			if o := s.profiles[oldest]; o == nil || u.at < o.at {
				oldest = name
			}
		}
		delete(s.profiles, oldest)
	}
	u := &used{}
	s.profiles[profile] = u
	return u
}

func (s *siblings) touch(u *used) {
	s.clock++
	u.at = s.clock
}

// remember puts the name at the end, and forgets the first of too many.
func remember(names []string, name string) []string {
	if i := slices.Index(names, name); i >= 0 {
		names = slices.Delete(names, i, i+1)
	} else if len(names) >= siblingNames {
		names = slices.Delete(names, 0, 1)
	}
	return append(names, name)
}
