package main

import (
	"encoding/json"
	"net/http"
	"os"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
)

// self is who this server is: the pod's name, which Kubernetes makes the host
// name, and the version from the environment.
func self() report.Reply {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		pod, _ = os.Hostname() // an empty name is a name that nobody asserts on
	}
	return report.Reply{Pod: pod, Version: os.Getenv("VERSION")}
}

// replyTo describes r, of which body bytes were read.
func replyTo(r *http.Request, body int64) report.Reply {
	p := self()
	p.Remote, p.Protocol = r.RemoteAddr, r.Proto
	p.Method, p.Path, p.Host = r.Method, r.URL.RequestURI(), r.Host
	p.BodyBytes, p.Headers = body, r.Header
	return p
}

// parseReply reads a Reply; what is not one gives nil.
func parseReply(text []byte) *report.Reply {
	var p report.Reply
	if json.Unmarshal(text, &p) != nil || p.Protocol == "" {
		return nil
	}
	return &p
}
