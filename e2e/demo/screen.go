package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// screen writes for a person. Colours are for terminals alone.
type screen struct {
	out    io.Writer
	colour bool
	start  time.Time
	mu     sync.Mutex
}

func newScreen(f *os.File) *screen {
	info, err := f.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &screen{out: f, colour: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb", start: time.Now()}
}

const (
	bold  = "1"
	green = "32"
	red   = "31"
)

func (s *screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s *screen) title(text string) { s.line(s.paint(bold, text)) }

// say tells of progress.
func (s *screen) say(format string, args ...any) { s.line("  " + fmt.Sprintf(format, args...)) }

func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, "%6.1f s  %s\n", time.Since(s.start).Seconds(), text)
}

// row is one line of the table at the end.
type row struct {
	what     string
	expected string
	seen     string
	ok       bool
}

// table writes the rows and reports whether all are as expected.
func (s *screen) table(rows []row) bool {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "WHAT\tEXPECTED\tSEEN\t ")
	all := true
	for _, r := range rows {
		verdict := "as expected"
		if !r.ok {
			verdict = "DIFFERS"
			all = false
		}
		// The whole of it was said when it was seen.
		const widest = 70
		seen := r.seen
		if runes := []rune(seen); len(runes) > widest {
			seen = string(runes[:widest-1]) + "…"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.what, r.expected, seen, verdict)
	}
	_ = w.Flush() // a strings.Builder does not fail
	for line := range strings.Lines(text.String()) {
		// Painted after the columns are laid out, or the codes would count.
		if body, found := strings.CutSuffix(line, "as expected\n"); found {
			line = body + s.paint(green, "as expected") + "\n"
		} else if body, found := strings.CutSuffix(line, "DIFFERS\n"); found {
			line = body + s.paint(red, "DIFFERS") + "\n"
		}
		text := line
		if strings.HasPrefix(line, "WHAT") {
			text = "\n" + line
		}
		fmt.Fprint(s.out, text)
	}
	return all
}

// next says what to type next.
func (s *screen) next(ok bool) {
	if !ok {
		fmt.Fprint(s.out, `
Not all is as expected. Where to look:
  kubectl -n tulle-system logs deploy/tulled
  kubectl get mpol,tsplit,mcfg -A
  kubectl -n shop get events
`)
		return
	}
	fmt.Fprintf(s.out, `
All as expected, in %.0f s. The shop is still there. What to type next:
  export KUBECONFIG=%s
  kubectl get mesh -A                             every object of the mesh, and whether it is accepted
  go run ./cmd/tulle status                       every proxy, and whether it has what it should
  go run ./cmd/tulle proxy -n shop POD clusters   what a proxy knows: what its workload called, no more
  kubectl -n shop logs deploy/reviews-v1 -c tulle-proxy --tail 3
                                                  who called, as the server's proxy saw it
  kubectl -n shop patch tsplit reviews --type merge -p \
    '{"spec":{"backends":[{"service":"reviews-v2","weight":1}]}}'
                                                  version 2 for everybody, from now
  kubectl -n shop exec deploy/frontend -c app -- /tulle-echo load http http://reviews/ --rate 100 --requests 500
                                                  and see it
`, time.Since(s.start).Seconds(), os.Getenv("KUBECONFIG"))
}
