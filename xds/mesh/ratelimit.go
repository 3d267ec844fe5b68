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
	// Global has the rate limit service count, instead; nil: the pod does.
	Global *GlobalRateLimit
	From   []Source
	To     []RateLimitOperation
}

// GlobalRateLimit is what the rate limit service is told of a request, after the rule.
type GlobalRateLimit struct {
	Entries []RateLimitEntry
}

// RateLimitEntry is a key and where its value is from: one of the others.
type RateLimitEntry struct {
	Key, Value string
	Header     string // lower case
	Attribute  RateLimitAttribute
}

// RateLimitAttribute is what is known of a request.
type RateLimitAttribute uint8

// The attributes.
const (
	NoAttribute RateLimitAttribute = iota
	CallerAttribute
	MethodAttribute
	PathAttribute
)

// RateLimitService is a Service that speaks Envoy's rate limit protocol.
type RateLimitService struct {
	Service Name
	Port    uint16
	Domain  string
	Timeout time.Duration
	Closed  bool // requests are refused while it does not answer
}

// RateLimitOperation matches when each field that is not empty has a value that
// matches, as [Operation] has it, and the request has all of Headers.
type RateLimitOperation struct {
	Ports   []uint16
	Methods []string
	Paths   []string
	Headers []HeaderMatch // an empty Value is any; Type is Exact
}
