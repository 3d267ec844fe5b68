package acks

import (
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

var (
	shopPolicy = mesh.Ref{Kind: mesh.KindPolicy, Name: mesh.Name{Namespace: "shop", Name: "p"}}
	pods       = map[string]mesh.Name{
		"1": {Namespace: "shop", Name: "a"}, "2": {Namespace: "shop", Name: "b"}, "3": {Namespace: "shop", Name: "c"},
	}
)

func report(generation int64, connected []string, programmed int, absent ...Absent) *Report {
	return &Report{
		Connected: connected, Absent: absent,
		Objects: []Object{{
			Kind: mesh.KindPolicy, Namespace: "shop", Name: "p", Generation: generation,
			Tally: Tally{Concerned: len(connected), Programmed: programmed},
		}},
	}
}

func stray(mesh.Name) []mesh.Ref { return []mesh.Ref{shopPolicy} }

func TestMerge(t *testing.T) {
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	for _, c := range []struct {
		name                  string
		reports               map[string]*Report
		missing               []string
		generation            int64
		concerned, programmed int
		waiting               string
	}{
		{"all replicas together", map[string]*Report{"x": report(2, []string{"1", "2"}, 2), "y": report(2, []string{"3"}, 1)}, nil, 2, 3, 3, ""},
		{"one has not built for the generation", map[string]*Report{"x": report(2, []string{"1", "2"}, 2), "y": report(1, []string{"3"}, 1)}, nil, 1, 3, 3, ""},
		{"one does not know the object", map[string]*Report{"x": report(2, []string{"1", "2", "3"}, 3), "y": {}}, nil, 0, 3, 3, ""},
		{"a pod that nobody knows may run anything", map[string]*Report{"x": report(2, []string{"1", "2"}, 2)}, nil, 2, 3, 2, "shop/c"},
		{
			"an absent pod runs what it acknowledged",
			map[string]*Report{"x": report(2, []string{"1", "2"}, 2, Absent{UID: "3", Pod: "shop/c", Programmed: []int{0}})},
			nil, 2, 3, 3, "",
		},
		{
			"one that is connected elsewhere counts there",
			map[string]*Report{"x": report(2, []string{"1", "2"}, 2, Absent{UID: "3", Pod: "shop/c", Waiting: []int{0}}), "y": report(2, []string{"3"}, 1)},
			nil, 2, 3, 3, "",
		},
		{
			"of two memories the newer counts",
			map[string]*Report{
				"x": report(2, []string{"1", "2"}, 2, Absent{UID: "3", Pod: "shop/c", Left: late, Waiting: []int{0}}),
				"y": report(2, nil, 0, Absent{UID: "3", Pod: "shop/c", Left: early, Programmed: []int{0}}),
			},
			nil, 2, 3, 2, "shop/c",
		},
		{
			"one that has ended is nobody's",
			map[string]*Report{"x": report(2, []string{"1", "2", "3"}, 3, Absent{UID: "4", Pod: "shop/d", Waiting: []int{0}})},
			nil, 2, 3, 3, "",
		},
		{
			"a place that is not there is passed over",
			map[string]*Report{"x": report(2, []string{"1", "2"}, 2, Absent{UID: "3", Pod: "shop/c", Waiting: []int{7, -1}})},
			nil, 2, 2, 2, "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := Merge(c.reports, c.missing, pods, stray)[shopPolicy]
			waiting := ""
			if len(v.Waiting) == 1 {
				waiting = v.Waiting[0]
			}
			if v.Generation != c.generation || v.Concerned != c.concerned || v.Programmed != c.programmed || waiting != c.waiting {
				t.Errorf("got %+v", v)
			}
		})
	}
}

func TestMissingReportsAreNamedInEveryVerdict(t *testing.T) {
	v := Merge(map[string]*Report{"x": report(2, []string{"1", "2", "3"}, 3)}, []string{"y"}, pods, stray)[shopPolicy]
	if len(v.Missing) != 1 || v.Missing[0] != "y" {
		t.Errorf("got %+v", v)
	}
}

func TestExamplesDoNotDependOnTheOrderOfCounting(t *testing.T) {
	var a, b Tally
	for _, pod := range []string{"5", "1", "4", "2", "3"} {
		a.Count(pod, Waiting, nil)
	}
	for _, pod := range []string{"3", "2", "1", "5", "4"} {
		b.Count(pod, Waiting, nil)
	}
	if len(a.Waiting) != Examples || a.Waiting[0] != "1" || a.Waiting[2] != "3" || b.Waiting[2] != "3" {
		t.Errorf("got %v and %v", a.Waiting, b.Waiting)
	}
}

func TestOneRefusalIsKept(t *testing.T) {
	var a Tally
	a.Count("b", Rejected, &Refusal{Pod: "b"})
	a.Count("a", Rejected, &Refusal{Pod: "a"})
	a.Count("c", Rejected, &Refusal{Pod: "c"})
	a.Count("d", Programmed, nil)
	if a.Rejected != 3 || a.Concerned != 4 || a.Refusal.Pod != "a" {
		t.Errorf("got %+v", a)
	}
}
