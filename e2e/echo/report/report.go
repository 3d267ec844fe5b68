// Package report holds what tulle-echo writes: the replies of its server, and
// the reports of its clients as JSON on standard output. The demo and the
// tests read them back into the same structs.
package report

import (
	"net/http"
	"time"
)

// Reply is what the server tells of itself and of the request it saw. It is
// the body of an HTTP answer and the text of a gRPC one; over TCP the greeting
// and the prefix of each line carry pod and version alone.
type Reply struct {
	Pod       string              `json:"pod"`
	Version   string              `json:"version"`
	Remote    string              `json:"remote"`
	Protocol  string              `json:"protocol"`
	Method    string              `json:"method,omitempty"`
	Path      string              `json:"path,omitempty"`
	Host      string              `json:"host,omitempty"`
	BodyBytes int64               `json:"body_bytes"`
	Headers   map[string][]string `json:"headers,omitempty"`
}

// Failure says how a call ended when it did not end well. Kind is one of
// reset (the peer sent RST), eof (it closed before an answer was complete),
// refused, timeout, dns, "grpc-<code>" and other; Text is the error as it was.
type Failure struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// Call is the report of one call.
type Call struct {
	// MS is the time from the start of the connection to the whole answer, in
	// milliseconds.
	MS float64 `json:"ms"`
	// Status is the HTTP status, or 0 where there was none.
	Status int `json:"status,omitempty"`
	// Reply is the server's Reply, if it answered with one.
	Reply *Reply `json:"reply,omitempty"`
	// Text is the answer as it came, cut at 4 KiB, where it is not a Reply.
	Text string `json:"text,omitempty"`
	// BodyBytes is the size of the answer's body.
	BodyBytes int64 `json:"body_bytes,omitempty"`
	// StepsMS are the times of the single exchanges of a stream, in
	// milliseconds, each from its own start.
	StepsMS []float64 `json:"steps_ms,omitempty"`
	// Peer is the common name in the certificate of the server, over TLS.
	Peer string `json:"peer,omitempty"`
	// Certificate is that certificate, in PEM.
	Certificate string `json:"certificate,omitempty"`
	// Headers are those of an HTTP answer.
	Headers http.Header `json:"headers,omitempty"`
	// Failure is nil if the call ended as it should. A status of 500 is not a
	// failure of the call: it is an answer.
	Failure *Failure `json:"failure,omitempty"`
}

// Load is the outcome of many calls. Times are the machine's wall clock, so
// that they can be set against what happened elsewhere on it.
type Load struct {
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	Requests int       `json:"requests"`
	// Failed counts the calls without an answer and those answered with a
	// status of 500 or more; Failures says of what kinds, the latter as
	// "status-503".
	Failed   int            `json:"failed"`
	Failures map[string]int `json:"failures"`
	// Example is the text of the first failure and FailedAt when it was.
	Example  string         `json:"example,omitempty"`
	FailedAt *time.Time     `json:"failed_at,omitempty"`
	Status   map[string]int `json:"status"`
	Versions map[string]int `json:"versions"`
	Pods     map[string]int `json:"pods"`
	// Opened counts the connections of the clients that keep theirs: where none
	// was ended, there is one for each such client.
	Opened int `json:"opened,omitempty"`
	// ClientRetries counts requests that the HTTP client sent again of its own
	// accord, because its idle connection had been closed.
	ClientRetries int `json:"client_retries"`
	// Latency counts from when a call was due, Service from when it was sent.
	Latency Quantiles `json:"latency_ms"`
	Service Quantiles `json:"service_ms"`
	// Timeline is the order of the answers: runs of one version.
	Timeline []Run `json:"timeline,omitempty"`
}

// Quantiles are in milliseconds, by nearest rank.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Run is a row of answers of the same version, without another one between.
type Run struct {
	Version string    `json:"version"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Answers int       `json:"answers"`
}

// Capture is what passed the links of the network namespace that capture ran
// in. In a pod with hostNetwork these are the links to all pods of the node.
type Capture struct {
	Packets int            `json:"packets"`
	Bytes   int64          `json:"bytes"`
	Found   map[string]int `json:"found"` // packets by the string that they carried
	// TLS counts packets that begin with a TLS record, a sign that the capture
	// did look at the right links.
	TLS   int            `json:"tls"`
	Links map[string]int `json:"links"`
}

// Gone is when a page, which was looked at since a moment and had a text then,
// was first seen without it.
type Gone struct {
	Since time.Time `json:"since"`
	At    time.Time `json:"at"`
}
