package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// found is a variant's medians over the rounds, and the medians of its ratios, each
// to the variant by hand in the same round.
type found struct {
	Variant string   `json:"variant"`
	What    string   `json:"what"`
	Median  sample   `json:"median"`
	Ratio   ratio    `json:"ratio"`
	Rounds  []sample `json:"rounds"`
}

type ratio struct {
	CPU float64 `json:"cpu"` // of both proxies
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func compare(all []*variant) (out []found) {
	base := all[slices.IndexFunc(all, func(v *variant) bool { return v.name == byHand })].samples
	for _, name := range names(variants()) { // in their order
		i := slices.IndexFunc(all, func(v *variant) bool { return v.name == name })
		if i < 0 {
			continue
		}
		v := all[i]
		f := found{Variant: v.name, What: v.what, Rounds: v.samples}
		of := func(value func(sample) float64) float64 {
			values := make([]float64, len(v.samples))
			for i, s := range v.samples {
				values[i] = value(s)
			}
			return median(values)
		}
		to := func(value func(sample) float64) float64 {
			values := make([]float64, len(v.samples))
			for i, s := range v.samples {
				values[i] = value(s) / value(base[i])
			}
			return median(values)
		}
		f.Median = sample{Client: of(client), Server: of(server), P50: of(p50), P99: of(p99)}
		f.Ratio = ratio{CPU: to(both), P50: to(p50), P99: to(p99)}
		out = append(out, f)
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
	fmt.Fprintln(w, "VARIANT\tCLIENT'S ENVOY µs\tSERVER'S\tBOTH, TO BY HAND\tP50 ms\tTO BY HAND\tP99 ms\tTO BY HAND")
	for _, f := range all {
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.3f\t%.2f\t%.3f\t%.2f\t%.3f\n",
			f.Variant, f.Median.Client, f.Median.Server, f.Ratio.CPU, f.Median.P50, f.Ratio.P50, f.Median.P99, f.Ratio.P99)
	}
	return w.Flush()
}
