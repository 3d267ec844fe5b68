package ca

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const (
	spiffeScheme = "spiffe"
	// Limits of the SPIFFE-ID specification, section 2.3, in bytes.
	maxIDLength          = 2048
	maxTrustDomainLength = 255
)

// ID is a workload's identity: the service account it runs as, in a trust
// domain.
type ID struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// ParseID reads "spiffe://<trust domain>/ns/<namespace>/sa/<service account>".
// Any other form is an error, one that is a SPIFFE ID of another layout
// included.
func ParseID(s string) (ID, error) {
	rest, ok := strings.CutPrefix(s, spiffeScheme+"://")
	if !ok {
		return ID{}, fmt.Errorf("identity %q: does not begin with spiffe://", s)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("identity %q: is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>", s)
	}
	id := ID{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if err := id.Validate(); err != nil {
		return ID{}, err
	}
	return id, nil
}

// String is the SPIFFE ID. ParseID(id.String()) is id when id is valid.
func (id ID) String() string {
	return spiffeScheme + "://" + id.TrustDomain + id.path()
}

func (id ID) path() string { return "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount }

// URL is the SPIFFE ID as a certificate's URI SAN has it.
func (id ID) URL() *url.URL {
	return &url.URL{Scheme: spiffeScheme, Host: id.TrustDomain, Path: id.path()}
}

// Validate checks the parts against the SPIFFE-ID specification, sections 2.1
// to 2.3.
func (id ID) Validate() error {
	if err := ValidateTrustDomain(id.TrustDomain); err != nil {
		return fmt.Errorf("identity %q: %w", id, err)
	}
	if err := validateSegment(id.Namespace); err != nil {
		return fmt.Errorf("identity %q: namespace: %w", id, err)
	}
	if err := validateSegment(id.ServiceAccount); err != nil {
		return fmt.Errorf("identity %q: service account: %w", id, err)
	}
	if n := len(id.String()); n > maxIDLength {
		return fmt.Errorf("identity of %d bytes: at most %d are allowed", n, maxIDLength)
	}
	return nil
}

// ValidateTrustDomain checks a trust domain's name: lower-case letters, digits,
// dots, dashes and underscores, at most 255 of them. Beyond the specification,
// the labels between dots must not be empty, because X.509 libraries refuse
// such a host in a URI.
func ValidateTrustDomain(name string) error {
	if len(name) > maxTrustDomainLength {
		return fmt.Errorf("trust domain of %d bytes: at most %d are allowed", len(name), maxTrustDomainLength)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return fmt.Errorf("trust domain %q: is empty or has an empty label", name)
		}
	}
	for _, c := range []byte(name) {
		if !isLower(c) && !isDigitOrMark(c) {
			return fmt.Errorf("trust domain %q: %q is not allowed, only a-z, 0-9, '.', '-' and '_' are", name, c)
		}
	}
	return nil
}

func validateSegment(s string) error {
	switch s {
	case "":
		return errors.New("is empty")
	case ".", "..":
		return fmt.Errorf("%q is not allowed as a path segment", s)
	}
	for _, c := range []byte(s) {
		if !isLower(c) && !isDigitOrMark(c) && (c < 'A' || c > 'Z') {
			return fmt.Errorf("%q is not allowed in %q, only letters, digits, '.', '-' and '_' are", c, s)
		}
	}
	return nil
}

func isLower(c byte) bool { return c >= 'a' && c <= 'z' }

func isDigitOrMark(c byte) bool {
	return c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}
