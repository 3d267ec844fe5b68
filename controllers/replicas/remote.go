package replicas

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"

	"github.com/tulle-mesh/tulle/xds/acks"
)

// remote asks another replica.
type remote struct {
	client *http.Client
	token  func() (string, error)
	url    string
	last   *acks.Report
}

var _ Source = (*remote)(nil)

// maxReport bounds a report, in bytes: some 100 for each object, and 40 for each
// pod.
const maxReport = 256 << 20

func newRemote(o *Options, address string) *remote {
	return &remote{client: o.Client, token: o.Token, url: "https://" + net.JoinHostPort(address, strconv.Itoa(o.Port)) + Path}
}

// Report polls once.
func (r *remote) Report(ctx context.Context, version string, released []string) (*acks.Report, error) {
	body, err := json.Marshal(question{Version: version, Released: released})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	token, err := r.token()
	if err != nil {
		return nil, fmt.Errorf("reading the token to show to other replicas: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	switch response.StatusCode {
	case http.StatusNoContent:
		return r.last, nil
	case http.StatusOK:
	default:
		said, _ := io.ReadAll(io.LimitReader(response.Body, 256))
		return nil, fmt.Errorf("it answered %s: %s", response.Status, bytes.TrimSpace(said))
	}
	report := &acks.Report{}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxReport)).Decode(report); err != nil {
		return nil, fmt.Errorf("reading its report: %w", err)
	}
	r.last = report
	return report, nil
}
