package ca

import (
	"fmt"
	"strings"
	"time"
)

// ForceWord is what a request says that is to go on without proxies that do not
// acknowledge: these are cut off.
const ForceWord = "cut-off"

// Ask is a request to rotate, as an operator writes it: the scope, when it was
// written, and the force if any, separated by slashes. The time makes two
// requests differ.
type Ask struct {
	Scope  Scope
	At     time.Time
	Forced bool
}

// String is how it is written.
func (a Ask) String() string {
	text := string(a.Scope) + "/" + a.At.UTC().Format(time.RFC3339Nano)
	if a.Forced {
		text += "/" + ForceWord
	}
	return text
}

// ParseAsk reads a request.
func ParseAsk(text string) (Ask, error) {
	parts := strings.Split(text, "/")
	a := Ask{Scope: Scope(parts[0]), Forced: len(parts) == 3 && parts[2] == ForceWord}
	if a.Scope != ScopeIssuer && a.Scope != ScopeRoot || len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && !a.Forced {
		return a, fmt.Errorf("%.64q does not say what to rotate: write %s/TIME or %s/TIME, and /%s at the end to cut off proxies that do not acknowledge; the command does: tulle ca rotate",
			text, ScopeIssuer, ScopeRoot, ForceWord)
	}
	var err error
	if a.At, err = time.Parse(time.RFC3339Nano, parts[1]); err != nil {
		return a, fmt.Errorf("%.64q is no time: write it as 2006-01-02T15:04:05Z", parts[1])
	}
	return a, nil
}

// maxAhead is how far the clock of whoever asks may be ahead.
const maxAhead = time.Hour

// asked is what the request asks for; nil: nothing that is new. One that is not
// later than the last that was taken up is not: what keeps objects as they were
// (GitOps, a backup) would have it done again, and cut off again whom it cuts off.
func (m *material) asked(request string, now time.Time) (*Ask, error) {
	if request == "" || request == m.record.Request {
		return nil, nil
	}
	ask, err := ParseAsk(request)
	if err != nil {
		return nil, err
	}
	if last, err := ParseAsk(m.record.Request); err == nil && !ask.At.After(last.At) {
		return nil, fmt.Errorf("%.64q is not later than the last request that was taken up, %.64q: remove it, or ask anew: tulle ca rotate", request, m.record.Request)
	}
	if ask.At.After(now.Add(maxAhead)) {
		return nil, fmt.Errorf("%.64q is of a time to come: set the clock of whoever asks, and ask anew: tulle ca rotate", request)
	}
	return &ask, nil
}
