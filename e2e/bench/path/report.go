package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// found is a variant's medians over the rounds, and the medians of its ratios, each
// to the variant by hand in the same round, and to that which does the same.
type found struct {
	Variant string   `json:"variant"`
	What    string   `json:"what"`
	Median  sample   `json:"median"`
	Ratio   ratio    `json:"ratio"`
	Same    *ratio   `json:"toTheSame,omitempty"` // if it was measured
	Rounds  []sample `json:"rounds"`
}

type ratio struct {
	CPU float64 `json:"cpu"` // of both proxies
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func compare(all []*variant) (out []found) {
	named := func(name string) *variant {
		if i := slices.IndexFunc(all, func(v *variant) bool { return v.name == name }); i >= 0 {
			return all[i]
		}
		return nil
	}
	for _, name := range names(variants()) { // in their order
		v := named(name)
		if v == nil {
			continue
		}
		of := func(value func(sample) float64) float64 { return median(each(v.samples, value)) }
		f := found{
			Variant: v.name, What: v.what, Rounds: v.samples,
			Median: sample{Client: of(client), Server: of(server), P50: of(p50), P99: of(p99)},
			Ratio:  v.to(named(byHand)),
		}
		if like := named(v.like); like != nil {
			r := v.to(like)
			f.Same = &r
		}
		out = append(out, f)
	}
	return out
}

// to are the medians of the ratios to what another found in the same round.
func (v *variant) to(other *variant) ratio {
	of := func(value func(sample) float64) float64 {
		ratios := each(v.samples, value)
		for i := range ratios {
			ratios[i] /= value(other.samples[i])
		}
		return median(ratios)
	}
	return ratio{CPU: of(both), P50: of(p50), P99: of(p99)}
}

func each(samples []sample, value func(sample) float64) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = value(s)
	}
	return out
}

func client(s sample) float64 { return s.Client }
func server(s sample) float64 { return s.Server }
func both(s sample) float64   { return s.Client + s.Server }
func p50(s sample) float64    { return s.P50 }
func p99(s sample) float64    { return s.P99 }

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2
	}
	return values[middle]
}

func table(out io.Writer, all []found) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VARIANT\tCLIENT'S ENVOY µs\tSERVER'S\tBOTH, TO BY HAND\tTO THE SAME\tP50 ms\tTO BY HAND\tTO THE SAME\tP99 ms\tTO BY HAND")
	for _, f := range all {
		var cpu, p50 string
		if f.Same != nil {
			cpu, p50 = fmt.Sprintf("%.3f", f.Same.CPU), fmt.Sprintf("%.3f", f.Same.P50)
		}
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.3f\t%s\t%.2f\t%.3f\t%s\t%.2f\t%.3f\n",
			f.Variant, f.Median.Client, f.Median.Server, f.Ratio.CPU, cpu, f.Median.P50, f.Ratio.P50, p50, f.Median.P99, f.Ratio.P99)
	}
	return w.Flush()
}
