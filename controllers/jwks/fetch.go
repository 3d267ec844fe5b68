package jwks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

const (
	// fetchTimeout bounds a request with its redirects.
	fetchTimeout = 10 * time.Second
	// maxBody bounds an answer, in bytes: real ones have some 2 KiB.
	maxBody = 256 << 10
	// maxRedirects is what issuers that have moved need.
	maxRedirects = 3
)

// special are addresses that no public server has, beyond those that [netip.Addr] tells
// of, and ones in which such an address may be hidden from IPv6: the special-purpose
// registries of IANA (RFC 6890).
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
	"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
)

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(a) })
}

// settings are what the MeshConfig says.
type settings struct {
	interval  time.Duration
	allowed   []netip.Prefix
	allowHTTP bool
}

// permits looks at an address that a connection is about to be made to.
func (s *settings) permits(address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return errors.New("it has no address")
	}
	ip := at.Addr().Unmap().WithZone("")
	if public(ip) || slices.ContainsFunc(s.allowed, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return nil
	}
	return errors.New("its address is not a public one: have whoever runs the mesh write its range in the MeshConfig, jwks.allowedRanges")
}

func (s *settings) permitsURL(u *url.URL) error {
	if u.Scheme == "https" || u.Scheme == "http" && s.allowHTTP {
		return nil
	}
	return fmt.Errorf("it is asked over %s: write https://, or have whoever runs the mesh write jwks.allowHTTP in the MeshConfig", u.Scheme)
}

// fetch gets the keys. maxAge is how long the answer says that they hold, 0 where it
// does not. The error is a sentence for the policy's owner, and is the same as long as
// the cause is.
func (s *settings) fetch(ctx context.Context, uri string, roots *tls.Config) (set *mesh.KeySet, maxAge time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, 0, errors.New("it is no address of keys: write https://accounts.example/keys")
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	request.Header.Set("User-Agent", "tulle")
	if err := s.permitsURL(request.URL); err != nil {
		return nil, 0, err
	}
	dialer := &net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error { return s.permits(address) }}
	transport := &http.Transport{ // no proxy: it would be what resolves the name
		DialContext: dialer.DialContext, TLSClientConfig: roots, ForceAttemptHTTP2: true,
		DisableKeepAlives: true, MaxResponseHeaderBytes: 32 << 10,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("it redirects more than %d times", maxRedirects)
		}
		return s.permitsURL(r.URL)
	}}
	response, err := client.Do(request)
	if err != nil {
		return nil, 0, cause(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("it answers with status %d", response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, 0, cause(err)
	case len(body) > maxBody:
		return nil, 0, fmt.Errorf("its answer has more than %d bytes", maxBody)
	}
	set = mesh.ParseKeySet(string(body))
	if set.JWKS == "" {
		return nil, 0, errors.New(set.Problem)
	}
	return set, age(response.Header.Get("Cache-Control")), nil
}

// cause is the innermost error that says something: those around it have ports that
// differ each time.
func cause(err error) error {
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("it does not answer within %s", fetchTimeout)
	}
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		return errors.New("its name cannot be resolved")
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err
	}
	if outer := (*url.Error)(nil); errors.As(err, &outer) {
		return outer.Err
	}
	return err
}

// age is the max-age of a Cache-Control header (RFC 9111, section 5.2.2.1), or 0.
func age(header string) time.Duration {
	for directive := range strings.SplitSeq(header, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		if !strings.EqualFold(name, "max-age") {
			continue
		}
		if n, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
			return time.Duration(n) * time.Second
		}
	}
	return 0
}
