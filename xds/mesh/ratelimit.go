package mesh

import "time"

// RateLimit is a policy's rateLimit section.
type RateLimit struct {
	Rules []RateLimitRule
}

// MaxRateLimitText is how many bytes the identities, names, paths and headers of one
// rule may have together: a rule becomes an expression, of which Envoy's parser of CEL
// takes 100,000 characters.
const MaxRateLimitText = 8192

// RateLimitRule bounds the requests for which one of From matches (or it is empty) and
// one of To matches (or it is empty).
type RateLimitRule struct {
	Name string
	// Requests come back evenly within Unit; at most Burst are there at once.
	Requests, Burst uint32
	Unit            time.Duration
	PerCaller       bool // each caller's identity has the limit for itself
	From            []Source
	To              []RateLimitOperation
}

// RateLimitOperation matches when each field that is not empty has a value that
// matches, as [Operation] has it, and the request has all of Headers.
type RateLimitOperation struct {
	Ports   []uint16
	Methods []string
	Paths   []string
	Headers []HeaderMatch // an empty Value is any; Type is Exact
}
