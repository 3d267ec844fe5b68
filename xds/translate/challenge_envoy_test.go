package translate

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// answerTo is the answer to a request, by mesh mTLS as somebody or without.
func (s *sidecarProxy) answerTo(id string, lines ...string) *http.Response {
	s.t.Helper()
	c, err := net.Dial("tcp", s.at)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	if id != "" {
		c = tls.Client(c, &tls.Config{Certificates: []tls.Certificate{s.identity(id)}, InsecureSkipVerify: true, NextProtos: []string{ALPNHTTP}})
	}
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		s.t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// Who lacks a token is told so, with what is asked for (RFC 6750, section 3), and is
// forbidden what no token would help with.
func TestWhoLacksATokenIsAskedForOne(t *testing.T) {
	app := startApplication(t)
	a := newIssuer(t, "https://a.example", jose.ES256)
	member := []mesh.Source{{RequestPrincipals: []mesh.RequestPrincipal{{Issuer: a.name, Subject: "al*"}}}}
	path := func(p string) []mesh.Operation { return []mesh.Operation{{Paths: []string{p}}} }
	s := startSidecar(t, app.Addr(), meshConfig(), withTokens(mesh.Issuer{Issuer: a.name, Keys: a.keys()}), authorized(
		mesh.Rule{Name: "members", From: member, To: path("/members")},
		mesh.Rule{Name: "friends", From: []mesh.Source{{Identities: []string{friend}}}, To: path("/members")},
		mesh.Rule{Name: "clerks", To: path("/desk"), When: mesh.Condition{Claims: []mesh.ClaimCondition{{Path: []string{"role"}, Values: []string{"clerk"}}}}},
		mesh.Rule{Name: "open", To: path("/open/*")},
		mesh.Rule{Name: "closed", Action: mesh.Deny, To: path("/open/closed")},
		mesh.Rule{Name: "known", Action: mesh.Deny, To: path("/open/known"), From: []mesh.Source{{NotRequestPrincipals: []mesh.RequestPrincipal{{Subject: "*"}}}}},
		mesh.Rule{Name: "tried", DryRun: true, From: member, To: path("/tried")},
	))
	get := func(path string, more ...string) []string {
		return append([]string{"GET " + path + " HTTP/1.1", "host: web"}, more...)
	}
	with := func(token string) string { return "authorization: Bearer " + token }
	grpc := "content-type: application/grpc"
	const missing, invalid = `://web/`, `error="invalid_token"`
	for what, c := range map[string]struct {
		from  string
		lines []string
		want  int
		says  string // WWW-Authenticate, or of gRPC its status
	}{
		"no token":                       {lines: get("/members"), want: 401, says: missing},
		"no token, by mesh mTLS":         {from: stranger, lines: get("/members"), want: 401, says: missing},
		"another scheme":                 {lines: get("/members", "authorization: Basic YTpi"), want: 401, says: missing},
		"who needs none":                 {from: friend, lines: get("/members"), want: 200},
		"a good one":                     {lines: get("/members", with(a.token(nil))), want: 200},
		"a bad one":                      {lines: get("/members", with(a.unsigned())), want: 401, says: invalid},
		"a bad one where none is needed": {from: friend, lines: get("/members", with(a.unsigned())), want: 401, says: invalid},
		"another's":                      {lines: get("/members", with(a.token(claimsOf{"sub": "bob"}))), want: 403},
		"no token for a claim":           {lines: get("/desk"), want: 401, says: missing},
		"without the claim":              {lines: get("/desk", with(a.token(nil))), want: 403},
		"what no rule allows":            {lines: get("/none"), want: 403},
		"what is denied to all":          {lines: get("/open/closed"), want: 403},
		"what is denied without a token": {lines: get("/open/known"), want: 401, says: missing},
		"what it is not denied with":     {lines: get("/open/known", with(a.token(nil))), want: 200},
		"what a rule of DryRun allows":   {lines: get("/tried"), want: 403},
		"what could be read two ways":    {lines: get("/members%2f"), want: 400},
		"gRPC, no token":                 {lines: get("/members", grpc), want: 200, says: "16"},
		"gRPC, a bad one":                {lines: get("/members", grpc, with(a.unsigned())), want: 200, says: "16"},
		"gRPC, another's":                {lines: get("/members", grpc, with(a.token(claimsOf{"sub": "bob"}))), want: 200, says: "7"},
	} {
		app.take()
		r := s.answerTo(c.from, c.lines...)
		said := r.Header.Get("Www-Authenticate")
		if status := r.Header.Get("Grpc-Status"); status != "" {
			said = status
		}
		if r.StatusCode != c.want || (c.says == "") != (said == "") || !strings.Contains(said, c.says) {
			t.Errorf("%s: %d, %q; want %d, %s", what, r.StatusCode, said, c.want, c.says)
		}
		if reached := len(app.take()) > 0; reached != (c.want == 200 && c.says == "") {
			t.Errorf("%s: it reached the application: %t", what, reached)
		}
		if c.says == missing && strings.Contains(said, "error=") {
			t.Errorf("%s: %q speaks of an error, and nothing was sent (RFC 6750, section 3.1)", what, said)
		}
	}
}
