package main

import (
	"encoding/json"
	"net/http"
	"os"
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

// self is who this server is: the pod's name, which Kubernetes makes the host
// name, and the version from the environment.
func self() Reply {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		pod, _ = os.Hostname() // an empty name is a name that nobody asserts on
	}
	return Reply{Pod: pod, Version: os.Getenv("VERSION")}
}

// replyTo describes r, of which body bytes were read.
func replyTo(r *http.Request, body int64) Reply {
	p := self()
	p.Remote, p.Protocol = r.RemoteAddr, r.Proto
	p.Method, p.Path, p.Host = r.Method, r.URL.RequestURI(), r.Host
	p.BodyBytes, p.Headers = body, r.Header
	return p
}

// parseReply reads a Reply; what is not one gives an empty Reply.
func parseReply(text []byte) *Reply {
	var p Reply
	if json.Unmarshal(text, &p) != nil || p.Protocol == "" {
		return nil
	}
	return &p
}
