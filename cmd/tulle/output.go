package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"
)

// Formats of output. JSON and YAML have the same fields.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

func formats() []string { return []string{formatTable, formatJSON, formatYAML} }

// none stands in a table for what there is none of.
const none = "-"

// table is a view as people read it: a header, rows, and notes below that
// say what a row has no room for.
type table struct {
	header []string
	rows   [][]string
	notes  []string
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// note adds one. What it tells of may be a proxy's or an object's words.
func (t *table) note(format string, args ...any) {
	for i, a := range args {
		if text, ok := a.(string); ok {
			args[i] = printable(text)
		}
	}
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// view is what a command answers with: data for programs, a table for people.
type view interface {
	// data is what is marshalled to JSON or YAML.
	data() any
	table(now time.Time) *table
}

// show writes the view in the format.
func (a *app) show(format string, v view) error {
	var out []byte
	var err error
	switch format {
	case formatJSON:
		if out, err = json.MarshalIndent(v.data(), "", "  "); err == nil {
			out = append(out, '\n')
		}
	case formatYAML:
		out, err = yaml.Marshal(v.data())
	default:
		return v.table(a.now()).write(a.streams.Out)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", format, err)
	}
	_, err = a.streams.Out.Write(out)
	return err
}

// write writes the table. An empty one has no header: its notes say why.
func (t *table) write(w io.Writer) error {
	if len(t.rows) > 0 {
		tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
		line(tw, t.header)
		for _, r := range t.rows {
			line(tw, r)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for i, n := range t.notes {
		if i == 0 && len(t.rows) > 0 {
			n = "\n" + n
		}
		if _, err := fmt.Fprintln(w, n); err != nil {
			return err
		}
	}
	return nil
}

// line writes one row. Errors come with Flush. A cell may hold what a proxy or
// an object says, so nothing in it may move the cursor or break the row.
func line(w io.Writer, cells []string) {
	clean := make([]string, len(cells))
	for i, c := range cells {
		clean[i] = printable(orNone(c))
	}
	fmt.Fprintln(w, strings.TrimRight(strings.Join(clean, "\t"), "\t"))
}

// printable replaces control characters by spaces.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, s)
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// age is how long ago t was, as kubectl says it: "5m", "3d".
func age(t, now time.Time) string {
	if t.IsZero() {
		return none
	}
	return duration.HumanDuration(max(now.Sub(t), 0))
}

// short cuts a version, which is a hash, to what one can compare by eye.
func short(version string) string {
	const enough = 12
	if len(version) > enough {
		return version[:enough]
	}
	return version
}

// count says "1 proxy", "2 proxies".
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// list joins up to limit items and says how many more there are.
func list(items []string, limit int) string {
	if len(items) <= limit {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:limit], ", "), len(items)-limit)
}
