package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// results are what one run of this program finds.
type results struct {
	When    time.Time `json:"when"`
	Size    size      `json:"size"`
	CPUs    int       `json:"cpus"`
	Results []*result `json:"results"`
}

// result is what one work cost one control plane. Delays are in milliseconds, from
// the API server's answer to the write until a sidecar has received it; CPU times
// in seconds, to 10 ms; memory in MiB.
type result struct {
	Plane   string `json:"plane"`
	Manner  string `json:"manner"`
	Work    string `json:"work"`
	Changes int    `json:"changes,omitempty"`
	Missed  int    `json:"missed,omitempty"` // receipts that did not come
	Failed  int    `json:"failed,omitempty"` // streams

	Delay *spread `json:"delay,omitempty"`
	// Slowest is of the last sidecar of each change.
	Slowest *spread `json:"slowest,omitempty"`

	Seconds   float64 `json:"seconds"`
	CPU       float64 `json:"cpu"`
	Sidecars  float64 `json:"sidecarsCPU"` // of this program
	Foreign   float64 `json:"foreignCPU"`  // of neither the control plane, nor this program, nor the API server and etcd
	Bytes     int64   `json:"bytes"`
	Resources int64   `json:"resources"`
	Messages  int64   `json:"messages"`

	Resident float64 `json:"resident"`
	Peak     float64 `json:"peak"`
	// PerSidecar is by how much there is more in KiB than before the first
	// sidecar, for each of them.
	PerSidecar float64 `json:"perSidecar,omitempty"`
	Heap       float64 `json:"heap,omitempty"` // in use, after the work
	Note       string  `json:"note,omitempty"`

	delays, slowest []float64
}

// name is what results are compared by.
func (r *result) name() string { return r.Plane + " " + r.Manner + " " + r.Work }

// perChange is the CPU time of one change in milliseconds.
func (r *result) perChange() float64 {
	if r.Changes == 0 {
		return 0
	}
	return 1000 * r.CPU / float64(r.Changes)
}

// show writes the results to the file, if there is one, and the table.
func (r *results) show(file string) error {
	if file != "" {
		if err := r.write(file); err != nil {
			return err
		}
	}
	return r.table(os.Stdout)
}

func (r *results) write(file string) error {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}

func readResults(file string) (*results, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	var r results
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("reading the results of %s: %w", file, err)
	}
	return &r, nil
}

// header and row are the table.
const header = "PLANE\tMANNER\tWORK\tN\tP50 ms\tP99 ms\tMAX ms\tSLOWEST P50\tCPU s\tms/CHANGE\tBYTES\tRESOURCES\tRSS MiB\tPEAK\tKiB/SIDECAR\tSIDECARS s\tFOREIGN s\tMISSED"

func (r *result) row() string {
	delay, slowest := "-\t-\t-", "-"
	if d := r.Delay; d != nil {
		delay = fmt.Sprintf("%.1f\t%.1f\t%.1f", d.P50, d.P99, d.Max)
	}
	if r.Slowest != nil {
		slowest = fmt.Sprintf("%.1f", r.Slowest.P50)
	}
	line := fmt.Sprintf("%s\t%s\t%s\t%d\t%s\t%s\t%.2f\t%.2f\t%d\t%d\t%.0f\t%.0f\t%.0f\t%.2f\t%.1f\t%d", r.Plane, r.Manner, r.Work, r.Changes,
		delay, slowest, r.CPU, r.perChange(), r.Bytes, r.Resources, r.Resident, r.Peak, r.PerSidecar, r.Sidecars, r.Foreign, r.Missed)
	if r.Failed > 0 {
		line += fmt.Sprintf("\t%d streams failed", r.Failed)
	}
	if r.Note != "" {
		line += "\t" + r.Note
	}
	return line
}

func (r *results) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, header)
	for _, one := range r.Results {
		fmt.Fprintln(w, one.row())
	}
	return w.Flush()
}

// ask is a request whose answer, which the caller closes, is 200.
func ask(ctx context.Context, method, url string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err == nil && response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, url, response.Status)
	}
	return response, err
}

// scrape is the sum of a metric over its labels.
func scrape(ctx context.Context, url, metric string) (float64, error) {
	response, err := ask(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	sum := 0.0
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		name, labels, _ := strings.Cut(name, "{")
		if _, after, ok := strings.Cut(labels, "} "); ok {
			value = after
		}
		if name == metric {
			sum += number(value)
		}
	}
	return sum, lines.Err()
}
