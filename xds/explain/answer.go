package explain

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-mesh/tulle/xds/mesh"
	"github.com/tulle-mesh/tulle/xds/translate"
)

// Question is who calls what.
type Question struct {
	// Pod is the caller, namespace/name, or ServiceAccount a pod of the mesh that runs as
	// it. Where both are empty the caller is outside of the mesh.
	Pod            string `json:"pod,omitempty"`
	ServiceAccount string `json:"serviceAccount,omitempty"`
	Address        string `json:"address,omitempty"` // of the caller; empty: the pod's

	Service string `json:"service,omitempty"` // namespace/name
	Port    uint16 `json:"port,omitempty"`    // 0: the only one
	// Outside is a host or an IP address outside of the cluster that is called, at Port, in
	// place of a Service.
	Outside string `json:"outside,omitempty"`
	// Scheme is http, https, tls (with anything in it) or tcp. Without Outside it is of what a
	// client outside of the mesh asks the Gateway for whose proxy Pod is, at Port; then there is
	// no Service, and Address is the client's. With it, empty is what is said of the port.
	Scheme string `json:"scheme,omitempty"`

	// TCP is a connection that is not HTTP. SNI is of the application's own TLS, with a
	// request of HTTP in it where one is described.
	TCP     bool     `json:"tcp,omitempty"`
	SNI     string   `json:"sni,omitempty"`
	Method  string   `json:"method,omitempty"` // empty: GET
	Path    string   `json:"path,omitempty"`   // with its query; empty: /
	Host    string   `json:"host,omitempty"`   // empty: the Service's name, and its port
	Headers []Header `json:"headers,omitempty"`
	// Claims are those of the valid token (JWT) that the request has; none: it has none.
	Claims map[string]any `json:"claims,omitempty"`
}

// Header is a line of a request's headers.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Caller is who calls.
type Caller struct {
	Pod      string `json:"pod,omitempty"`
	Meshed   bool   `json:"meshed"`             // it calls through a sidecar
	Identity string `json:"identity,omitempty"` // the SPIFFE ID that it can prove
	Address  string `json:"address,omitempty"`
}

// Answer is what becomes of the request.
type Answer struct {
	// Verdict is what all of the pods say that the request may go to; empty where they
	// do not say the same, or there is none.
	Verdict  Verdict   `json:"verdict,omitempty"`
	Caller   Caller    `json:"caller"`
	Service  string    `json:"service,omitempty"`
	Port     uint16    `json:"port"`
	Entrance *Entrance `json:"entrance,omitempty"` // where a Gateway is asked
	Route    *Route    `json:"route,omitempty"`    // nil: the caller has no sidecar to route it
	Backends []Backend `json:"backends"`
}

// Route is the rule of an object that says where the request goes.
type Route struct {
	// Kind is HTTPRoute, GRPCRoute, TLSRoute, TCPRoute, TrafficSplit or Service; or Gateway,
	// where the question is what its proxy sends to a Service, and not by which of its routes.
	Kind string `json:"kind"`
	Name string `json:"name"`           // namespace/name
	Rule string `json:"rule,omitempty"` // as in access logs
	// Answer is what the caller's sidecar, or the gateway, answers itself, instead of sending
	// it on.
	Answer string `json:"answer,omitempty"`
}

// Backend takes a share of the requests.
type Backend struct {
	// Service is namespace/name: of an ExternalService, where Outside is set. Empty: none that
	// exists, and its share fails; or no ExternalService.
	Service   string            `json:"service"`
	Port      uint16            `json:"port,omitempty"`
	Subset    map[string]string `json:"subset,omitempty"` // labels of the pods that are meant
	Weight    uint32            `json:"weight"`
	Endpoints int               `json:"endpoints"` // that are ready
	Pods      []Pods            `json:"pods,omitempty"`
	Outside   *Outside          `json:"outside,omitempty"` // nil: it is in the cluster
}

// Pods are endpoints that decide alike.
type Pods struct {
	Endpoints []string `json:"endpoints"`      // pods as namespace/name, addresses where there is none
	Port      uint16   `json:"port"`           // the pods'
	MTLS      bool     `json:"encrypted"`      // the caller speaks mesh mTLS to them
	Path      string   `json:"path,omitempty"` // that they are asked for, where a route makes another of it
	Decision
}

// errAmbiguous is of a question that could mean several things.
var errAmbiguous = errors.New("the Service has several ports: name one, as in web:80")

// Explain answers the question, or says what is wrong with it.
func Explain(v *mesh.View, q Question) (*Answer, error) {
	switch {
	case q.Outside != "":
		return explainOutside(v, q)
	case q.Scheme != "":
		return explainEntry(v, q)
	}
	svc, port, err := called(v, q)
	if err != nil {
		return nil, err
	}
	if g := gatewayBehind(v, svc, port); g != "" {
		return nil, fmt.Errorf("the Service %s is that of Gateway %s, which decides by its own routes: ask for gateway/NAME and http://HOST/PATH", svc.Name, g)
	}
	caller, client, peer, err := callerOf(v, q)
	if err != nil {
		return nil, err
	}
	a := &Answer{Caller: caller, Service: svc.Name.String(), Port: port.Port, Backends: []Backend{}}
	request, err := inQuestion(q, svc, port)
	if err != nil {
		return nil, err
	}
	if port.Protocol == mesh.TLS && request != nil && q.SNI == "" {
		q.SNI = hostOf(request.Host)
	}
	as := translate.SentHTTP
	if request == nil || q.SNI != "" || port.Protocol.Opaque() {
		as = translate.SentBytes
	}
	shares := []translate.Share{{Service: svc.Name, Port: port.Port, Weight: 1}}
	asked := func(int) *HTTP { return request }
	switch w, _ := v.Workload(nameOf(q.Pod)); {
	case w != nil && w.Gateway != "":
		a.Route = &Route{Kind: translate.KindGateway, Name: mesh.Name{Namespace: w.Namespace, Name: w.Gateway}.String()}
	case caller.Meshed:
		rule := chosen(translate.Calls(svc, port, client, as == translate.SentHTTP, v), request)
		a.Route, shares, asked = taken(rule, request)
	}
	for i, s := range shares {
		if s.Weight > 0 {
			a.Backends = append(a.Backends, backend(v, s, as, Request{Peer: peer, Identity: caller.Identity, SNI: q.SNI, HTTP: asked(i)}, request))
		}
	}
	a.Verdict = verdict(a.Backends)
	return a, nil
}

// inQuestion is the request of HTTP that the question is about; nil: it is about none. That
// of TLS is described, or is not looked for.
func inQuestion(q Question, svc *mesh.Service, port mesh.ServicePort) (*HTTP, error) {
	described := q.Method != "" || q.Path != "" || q.Host != "" || len(q.Headers)+len(q.Claims) > 0
	if q.TCP || q.SNI != "" && !described {
		return nil, nil
	}
	return httpOf(q, svc, port)
}

// called is what the question names.
func called(v *mesh.View, q Question) (*mesh.Service, mesh.ServicePort, error) {
	svc, ok := v.Service(nameOf(q.Service))
	if !ok {
		return nil, mesh.ServicePort{}, fmt.Errorf("there is no Service %s", q.Service)
	}
	if q.Port != 0 {
		port, ok := svc.Port(q.Port)
		if !ok {
			return nil, port, fmt.Errorf("the Service %s has no port %d", q.Service, q.Port)
		}
		return svc, port, nil
	}
	if len(svc.Ports) != 1 {
		return nil, mesh.ServicePort{}, errAmbiguous
	}
	return svc, svc.Ports[0], nil
}

// gatewayBehind is the Gateway, namespace/name, whose proxies are behind the Service.
func gatewayBehind(v *mesh.View, svc *mesh.Service, port mesh.ServicePort) string {
	for _, e := range translate.Ready(translate.Share{Service: svc.Name, Port: port.Port}, translate.SentHTTP, v) {
		if w, ok := v.WorkloadAt(e.At.Addr()); ok && w.Gateway != "" {
			return mesh.Name{Namespace: w.Namespace, Name: w.Gateway}.String()
		}
	}
	return ""
}

func nameOf(s string) mesh.Name {
	namespace, name, _ := strings.Cut(s, "/")
	return mesh.Name{Namespace: namespace, Name: name}
}

// callerOf is who calls, the namespace whose routes hold for it, and its address.
func callerOf(v *mesh.View, q Question) (c Caller, namespace string, peer netip.Addr, err error) {
	domain := v.Config().TrustDomain
	switch {
	case q.Pod != "":
		w, ok := v.Workload(nameOf(q.Pod))
		if !ok {
			return c, "", peer, fmt.Errorf("there is no pod %s that the mesh knows", q.Pod)
		}
		c.Pod, c.Meshed = w.Name.String(), w.Meshed || w.Gateway != ""
		if c.Meshed {
			c.Identity = translate.Identity(domain, w.Namespace, w.ServiceAccount)
		}
		if len(w.Addresses) > 0 {
			peer = w.Addresses[0]
		}
		namespace = w.Namespace
	case q.ServiceAccount != "":
		account := nameOf(q.ServiceAccount)
		c.Meshed, c.Identity, namespace = true, translate.Identity(domain, account.Namespace, account.Name), account.Namespace
	}
	if q.Address != "" {
		if peer, err = netip.ParseAddr(q.Address); err != nil {
			return c, "", peer, fmt.Errorf("%q is no IP address", q.Address)
		}
	}
	if peer.IsValid() {
		c.Address = peer.String()
	}
	return c, namespace, peer, nil
}

// httpOf is the request that the question asks for, of a Service or nil.
func httpOf(q Question, svc *mesh.Service, port mesh.ServicePort) (*HTTP, error) {
	r := &HTTP{Method: cmp.Or(q.Method, http.MethodGet), Path: cmp.Or(q.Path, "/"), Host: q.Host, Claims: q.Claims}
	for _, h := range q.Headers {
		r.Headers = append(r.Headers, mesh.Header(h))
	}
	if r.Host == "" && svc != nil {
		r.Host = fmt.Sprintf("%s.%s", svc.Name.Name, svc.Namespace)
		if port.Port != 80 {
			r.Host += fmt.Sprintf(":%d", port.Port)
		}
	}
	if !strings.HasPrefix(r.Path, "/") {
		return nil, fmt.Errorf("the path %q does not begin with '/'", r.Path)
	}
	if strings.ContainsFunc(r.Path+r.Host, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return nil, errors.New("a path and a host have printable characters of ASCII alone: write others in their escaped form, such as %C3%A4")
	}
	if r.Method != strings.ToUpper(r.Method) {
		return nil, fmt.Errorf("the method %q is not in capitals", r.Method)
	}
	return r, nil
}

// backend is what becomes of the share's part of the requests, which are sent on as said.
// Sent is the request as its caller sends it.
func backend(v *mesh.View, s translate.Share, as translate.Sent, r Request, sent *HTTP) Backend {
	b := Backend{Port: s.Port, Subset: s.Labels, Weight: s.Weight}
	if s.Service == (mesh.Name{}) {
		return b
	}
	b.Service = s.Service.String()
	at := map[string]int{} // in b.Pods, by what the decision reads of a pod
	for _, e := range translate.Ready(s, as, v) {
		b.Endpoints++
		to := r
		to.Port, to.Unseen = e.At.Port(), as != translate.SentHTTP
		w, known := v.WorkloadAt(e.At.Addr())
		name, key := e.At.Addr().String(), "none"
		if known {
			name, key = w.Name.String(), fmt.Sprint(mesh.ProfileOf(w).ID, w.Meshed, w.Direct)
		}
		if known && r.Identity == "" && to.HTTP != nil && to.SNI == "" {
			if ends, _ := translate.InboundOf(w, v).EndsTLS(to.Port); ends {
				to.SNI = cmp.Or(hostOf(to.HTTP.Host), "-") // nothing else is let in there
			}
		}
		if !e.MTLS {
			to.Identity = ""
		}
		key = fmt.Sprint(key, to.Port, e.MTLS)
		if i, ok := at[key]; ok {
			b.Pods[i].Endpoints = append(b.Pods[i].Endpoints, name)
			continue
		}
		at[key] = len(b.Pods)
		p := Pods{Endpoints: []string{name}, Port: to.Port, MTLS: to.Identity != ""}
		if to.HTTP != nil && to.HTTP.Path != sent.Path {
			p.Path = to.HTTP.Path
		}
		if known {
			p.Decision = Decide(v, w, to)
		} else {
			p.Decision = Decision{Verdict: Allowed, Reason: "this is no pod: nothing of the mesh stands before it", Mode: modeName(mesh.MTLSDisabled)}
		}
		b.Pods = append(b.Pods, p)
	}
	return b
}

// verdict is what all say.
func verdict(bs []Backend) Verdict {
	var all []Verdict
	for _, b := range bs {
		for _, p := range b.Pods {
			all = append(all, p.Verdict)
		}
		if b.Outside != nil {
			all = append(all, b.Outside.verdict())
		}
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) == 1 {
		return all[0]
	}
	return ""
}
