package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

const goneUsage = "gone URL TEXT"

// gonePeriod is how often a page is looked at: short beside what is measured,
// which is tens of milliseconds, and a few percent of a core for Envoy's
// clusters of a test.
const gonePeriod = 4 * time.Millisecond

// goneCommand waits until a page that has a text does not have it. It is for the admin page
// of the pod's own proxy: asked through the API server, each look at it would
// cost more than what is measured.
func goneCommand(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: " + goneUsage)
	}
	tick := time.NewTicker(gonePeriod)
	defer tick.Stop()
	r := report.Gone{Since: time.Now()}
	for first := true; ; first = false {
		page, err := get(ctx, args[0])
		if err != nil {
			return err
		}
		if !bytes.Contains(page, []byte(args[1])) {
			if first {
				return fmt.Errorf("%s does not have %q", args[0], args[1])
			}
			r.At = time.Now()
			return writeJSON(out, r)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// get is the body of a page that is answered with 200.
func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s was answered with %s", url, response.Status)
	}
	return io.ReadAll(response.Body)
}
