package main

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// statRow is a counter, a gauge, a text, or a histogram.
type statRow struct {
	Name string `json:"name"`
	// Value is a number or a text; nil for a histogram.
	Value any `json:"value,omitempty"`
	// Quantiles are a histogram's, since the proxy started, by percent.
	Quantiles map[string]float64 `json:"quantiles,omitempty"`
}

type statsView []statRow

func (v statsView) data() any { return v }

func (v statsView) table(time.Time) *table {
	t := &table{header: []string{"STATISTIC", "VALUE"}}
	for _, r := range v {
		t.row(r.Name, r.text())
	}
	if len(v) == 0 {
		t.note("No statistics: nothing of that name was used yet (--all shows those that are zero).")
	}
	return t
}

func (r statRow) text() string {
	if r.Quantiles != nil {
		return fmt.Sprintf("p50 %v  p90 %v  p99 %v  max %v", r.Quantiles["50"], r.Quantiles["90"], r.Quantiles["99"], r.Quantiles["100"])
	}
	if f, ok := r.Value.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(r.Value)
}

// adminStats is /stats?format=json: values one by one, histograms in one
// element of their own.
type adminStats struct {
	Stats []struct {
		Name       string `json:"name"`
		Value      any    `json:"value"`
		Histograms *struct {
			Quantiles []float64 `json:"supported_quantiles"`
			Computed  []struct {
				Name   string `json:"name"`
				Values []struct {
					Cumulative *float64 `json:"cumulative"`
				} `json:"values"`
			} `json:"computed_quantiles"`
		} `json:"histograms"`
	} `json:"stats"`
}

func readStatsView(ctx context.Context, admin endpoint, o proxyOptions) (view, error) {
	set := url.Values{"format": {"json"}}
	if !o.all {
		set.Set("usedonly", "")
	}
	if o.filter != nil {
		set.Set("filter", o.filter.String())
	}
	var a adminStats
	if err := readJSON(ctx, admin, query("/stats", set), &a); err != nil {
		return nil, err
	}
	rows := statsView{}
	for _, s := range a.Stats {
		if s.Histograms == nil {
			rows = append(rows, statRow{Name: s.Name, Value: s.Value})
			continue
		}
		for _, h := range s.Histograms.Computed {
			r := statRow{Name: h.Name, Quantiles: map[string]float64{}}
			for i, v := range h.Values {
				if v.Cumulative != nil && i < len(s.Histograms.Quantiles) {
					r.Quantiles[strconv.FormatFloat(s.Histograms.Quantiles[i], 'f', -1, 64)] = *v.Cumulative
				}
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}
