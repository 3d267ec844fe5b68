package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// compare puts what two runs have in common side by side. A ratio is B over A: below
// 1 is less.
func compare(out io.Writer, a, b *results) error {
	if a.Size != b.Size {
		fmt.Fprintf(out, "The meshes are not of one size: %+v and %+v.\n", a.Size, b.Size)
	}
	before := map[string]*result{}
	for _, r := range a.Results {
		before[r.name()] = r
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tP50 A\tB\tratio\tP99 A\tB\tratio\tCPU A\tB\tratio\tBYTES A\tB\tratio\tRSS A\tB\tratio\t")
	for _, y := range b.Results {
		x := before[y.name()]
		if x == nil {
			continue
		}
		var none spread
		d, e := x.Delay, y.Delay
		if d == nil || e == nil {
			d, e = &none, &none
		}
		fmt.Fprintf(w, "%s\t%s%s%s%s%s\n", y.name(), pair(d.P50, e.P50), pair(d.P99, e.P99), pair(x.CPU, y.CPU),
			pair(float64(x.Bytes), float64(y.Bytes)), pair(x.Resident, y.Resident))
	}
	return w.Flush()
}

func pair(a, b float64) string {
	ratio := "-"
	if a > 0 {
		ratio = fmt.Sprintf("%.2f", b/a)
	}
	return fmt.Sprintf("%.5g\t%.5g\t%s\t", a, b, ratio)
}
