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

// Peers is how other replicas are asked: over HTTPS at their pods' addresses,
// showing the token.
type Peers struct {
	Client *http.Client
	Port   int
	Token  func() (string, error)
}

// maxAnswer bounds an answer, in bytes: a report has some 100 for each object, and
// 40 for each pod.
const maxAnswer = 256 << 20

// ask posts the question to the replica at the address, and reads its answer; false
// where it has none (204).
func (p Peers) ask(ctx context.Context, address, path string, question, answer any) (bool, error) {
	body, err := json.Marshal(question)
	if err != nil {
		return false, err
	}
	url := "https://" + net.JoinHostPort(address, strconv.Itoa(p.Port)) + path
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	token, err := p.Token()
	if err != nil {
		return false, fmt.Errorf("reading the token to show to other replicas: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := p.Client.Do(request)
	if err != nil {
		return false, err
	}
	defer func() { _ = response.Body.Close() }()
	switch response.StatusCode {
	case http.StatusNoContent:
		return false, nil
	case http.StatusOK:
	default:
		said, _ := io.ReadAll(io.LimitReader(response.Body, 256))
		return false, fmt.Errorf("it answered %s: %s", response.Status, bytes.TrimSpace(said))
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(answer); err != nil {
		return false, fmt.Errorf("reading its answer: %w", err)
	}
	return true, nil
}

// remote asks another replica for reports.
type remote struct {
	peers   Peers
	address string
	last    *acks.Report
}

var _ Source = (*remote)(nil)

// Report polls once.
func (r *remote) Report(ctx context.Context, version string, released []string) (*acks.Report, error) {
	report := &acks.Report{}
	switch is, err := r.peers.ask(ctx, r.address, Path, question{Version: version, Released: released}, report); {
	case err != nil:
		return nil, err
	case is:
		r.last = report
	}
	return r.last, nil
}
