package ca

import "testing"

// What is read of a request is what would be written.
func FuzzAsksAreReadAsTheyAreWritten(f *testing.F) {
	for _, text := range []string{"issuer/2026-01-02T03:04:05Z", "root/2026-01-02T03:04:05.6Z/cut-off", "root", "", "root//cut-off", "issuer/2026-01-02T03:04:05+02:00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ask, err := ParseAsk(text)
		if err != nil {
			return
		}
		again, err := ParseAsk(ask.String())
		if err != nil || again.Scope != ask.Scope || again.Forced != ask.Forced || !again.At.Equal(ask.At) {
			t.Errorf("%q is read as %+v, and that as %+v (%v)", text, ask, again, err)
		}
	})
}
