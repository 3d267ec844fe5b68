package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/tulle-mesh/tulle/e2e/echo/report"
	"github.com/tulle-mesh/tulle/e2e/kube"
)

// target is where calls of every kind go: a host, and its port of each kind.
type target struct{ host, http, grpc, tcp, greet, tls string }

func serviceAt(host string) target { return target{host, "80", "9000", "9001", "3306", "8443"} }
func podAt(host string) target     { return target{host, "8080", "9000", "9001", "3306", "8443"} }
func machineAt(host string) target {
	return target{host: host, http: "18080", tcp: "18081", greet: "18082", tls: "18083"}
}

// call is a kind of call, and to where, as tulle-echo takes them; "h2c" is "http" by
// that.
func (a target) call(kind string) []string {
	url := "http://" + net.JoinHostPort(a.host, a.http)
	switch kind {
	case "h2c":
		return []string{"http", url, "--h2c"}
	case "ws":
		return []string{kind, url + "/ws"}
	case "grpc", "grpc-bidi":
		return []string{kind, net.JoinHostPort(a.host, a.grpc)}
	case "tcp":
		return []string{kind, net.JoinHostPort(a.host, a.tcp)}
	case "greet":
		return []string{kind, net.JoinHostPort(a.host, a.greet)}
	case "tls":
		return []string{kind, net.JoinHostPort(a.host, a.tls)}
	default:
		return []string{kind, url}
	}
}

// conversation is what a client has to do with a target all the time.
type conversation struct {
	with   string
	target target
	held   []string // kinds of call that go on and on, a message every 100 ms
	calls  []string // kinds that are called again and again, on connections that are kept and on new ones
}

// protocols is a namespace under Strict with everything that there is to call.
type protocols struct {
	*space
	from  kube.Pod
	talks []conversation
}

func newProtocols(t *testing.T) *protocols {
	t.Helper()
	s, outside := newSpace(t, "protocols", true), newSpace(t, "machine", false)
	s.strict()
	// The first rule about paths makes proxies normalise them, which takes other
	// chains, and ends within 30 s what goes through the old ones: it is there first.
	s.apply("MeshPolicy", "paths", "authorization: {rules: [{action: Deny, to: [{paths: [/x], ports: [8080]}]}]}")
	outside.machine("machine")
	s.deploy(app{name: "client"},
		app{name: "server-v1", label: "server", version: "v1"},
		app{name: "server-v2", label: "server", version: "v2"})
	server := s.service("server", map[string]string{"app": "server"}, func(svc *corev1.Service) {
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyPreferDualStack)
	})
	six := slices.IndexFunc(server.Spec.ClusterIPs, func(ip string) bool { return strings.Contains(ip, ":") })
	if len(server.Spec.ClusterIPs) != 2 || six < 0 {
		t.Fatalf("the cluster has one family: a Service has %v", server.Spec.ClusterIPs)
	}
	s.statefulSet("web", 2)
	machine := outside.running("machine").Status.HostIP
	// One Service with an address and no pods, one that is no more than a name for
	// a machine, and two that are no more than names for names.
	s.slice(s.service("elsewhere", nil), machine)
	outside.slice(outside.service("machine", nil, headless), machine)
	s.alias("alias", s.host("server"))
	s.alias("away", outside.host("machine"))
	s.alias("nowhere", "nobody.invalid")

	undeclared := serviceAt(s.host("server"))
	undeclared.http, undeclared.tcp = "8888", "8889"
	p := &protocols{space: s, from: s.in("client"), talks: []conversation{
		{
			"a Service", serviceAt(s.host("server")),
			[]string{"http10", "ws", "grpc-bidi", "tcp", "greet"},
			[]string{"http10", "http", "h2c", "grpc", "grpc-bidi", "ws", "tcp", "greet", "tls"},
		},
		{"a Service by IPv6", serviceAt(server.Spec.ClusterIPs[six]), []string{"ws", "grpc-bidi", "tcp"}, []string{"http", "tcp"}},
		{"undeclared ports", undeclared, []string{"ws", "tcp"}, []string{"http", "tcp"}},
		{"a headless Service", podAt(s.host("web")), []string{"ws", "greet"}, []string{"http", "tcp"}},
		{"a pod of a StatefulSet", podAt("web-1." + s.host("web")), []string{"ws", "grpc-bidi", "tcp"}, []string{"http", "grpc"}},
		{"a Service without a selector", serviceAt(s.host("elsewhere")), []string{"ws", "tcp"}, []string{"http", "tls"}},
		{"a name for a Service", serviceAt(s.host("alias")), []string{"grpc-bidi"}, []string{"http"}},
		{"a name for a machine", machineAt(s.host("away")), []string{"ws", "greet"}, []string{"http"}},
	}}
	for _, talk := range p.talks {
		for _, kind := range slices.Concat(talk.held, talk.calls) {
			p.callUntil(p.from, works, talk.target.call(kind)...)
		}
	}
	return p
}

// machine is a server beside the cluster's pods, as it were: on an address that is
// neither a pod's nor a Service's.
func (s *space) machine(name string) {
	s.t.Helper()
	pod := barePod(name)
	pod.Spec.HostNetwork = true
	c := &pod.Spec.Containers[0]
	c.Ports, c.Env[0].Value = nil, "machine"
	at := machineAt("")
	c.Args = []string{"serve", "--grace=0s", "--http=:" + at.http, "--grpc=", "--tcp=:" + at.tcp, "--greet=:" + at.greet, "--tls=:" + at.tls}
	_, err := s.c.Client.CoreV1().Pods(s.name).Create(s.t.Context(), pod, metav1.CreateOptions{})
	must(s.t, err)
}

// slice gives a Service without a selector an endpoint: the machine at an address.
func (s *space) slice(service *corev1.Service, ip string) {
	s.t.Helper()
	family, at := discoveryv1.AddressTypeIPv4, machineAt("")
	if strings.Contains(ip, ":") {
		family = discoveryv1.AddressTypeIPv6
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service.Name}},
		AddressType: family,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
	}
	for name, number := range map[string]string{"http": at.http, "tcp-echo": at.tcp, "tcp-greet": at.greet, "tls-own": at.tls} {
		port := intstr.Parse(number)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: ptr.To(name), Port: ptr.To(port.IntVal), Protocol: ptr.To(corev1.ProtocolTCP)})
	}
	_, err := s.c.Client.DiscoveryV1().EndpointSlices(s.name).Create(s.t.Context(), slice, metav1.CreateOptions{})
	must(s.t, err)
}

// alias is a Service of type ExternalName.
func (s *space) alias(name, of string) {
	s.t.Helper()
	s.service(name, nil, func(svc *corev1.Service) {
		svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: of}
	})
}

// statefulSet creates one with its headless Service, and waits until it is ready.
func (s *space) statefulSet(name string, replicas int32) {
	s.t.Helper()
	ctx := s.t.Context()
	a := app{name: name}
	d := a.deployment()
	_, err := s.c.Client.CoreV1().ServiceAccounts(s.name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: d.ObjectMeta}, metav1.CreateOptions{})
	must(s.t, err)
	s.service(name, a.selector(), headless)
	sets := s.c.Client.AppsV1().StatefulSets(s.name)
	_, err = sets.Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: d.ObjectMeta,
		Spec: appsv1.StatefulSetSpec{
			ServiceName: name, Replicas: &replicas, PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector: d.Spec.Selector, Template: d.Spec.Template,
		},
	}, metav1.CreateOptions{})
	must(s.t, err)
	eventually(s.t, time.Minute, "StatefulSet "+name, func(ctx context.Context) error {
		set, err := sets.Get(ctx, name, metav1.GetOptions{})
		if err == nil && set.Status.ReadyReplicas < replicas {
			err = fmt.Errorf("%d of %d pods are ready", set.Status.ReadyReplicas, replicas)
		}
		return err
	})
}

const (
	exchangeEvery = 100 * time.Millisecond
	changeEvery   = 200 * time.Millisecond
)

// held is a call that goes on while the test does other things.
type held struct {
	name      string
	exchanges int
	begun     time.Time
	call      report.Call
	err       error
	done      chan struct{}
}

// hold begins every call that goes on, for at least so long.
func (p *protocols) hold(lasts time.Duration) []*held {
	p.t.Helper()
	var all []*held
	messages := int(lasts / exchangeEvery)
	for _, talk := range p.talks {
		for _, kind := range talk.held {
			h := &held{name: kind + " to " + talk.with, exchanges: messages, begun: time.Now(), done: make(chan struct{})}
			if kind == "greet" {
				h.exchanges++
			}
			args := append([]string{"call"}, talk.target.call(kind)...)
			args = append(args, "--messages", fmt.Sprint(messages), "--every", exchangeEvery.String(), "--timeout", (2 * lasts).String())
			go func() {
				defer close(h.done)
				h.err = p.c.Echo(p.t.Context(), p.from, &h.call, args...)
			}()
			all = append(all, h)
		}
	}
	return all
}

// ended waits for the end of a call that went on, and fails the test unless every
// exchange was answered.
func (h *held) ended(t *testing.T) {
	t.Helper()
	<-h.done
	if err := cmp.Or(h.err, works(&h.call)); err != nil || len(h.call.StepsMS) != h.exchanges {
		t.Errorf("%s: %d of %d exchanges, ended after %.1f s, at %v: %v", h.name, len(h.call.StepsMS), h.exchanges,
			h.call.MS/1000, h.begun.Add(time.Duration(h.call.MS)*time.Millisecond).Format(time.StampMilli), err)
	}
}

// round calls everything again and again for so long, while change is called five
// times a second with numbers from 0 on; nil changes nothing.
func (p *protocols) round(what string, lasts time.Duration, change func(n int)) {
	const (
		clients = 4
		kept    = 2 // of these keep their connection
	)
	p.t.Helper()
	loads := map[string]*loading{}
	for _, talk := range p.talks {
		for _, kind := range talk.calls {
			args := append(talk.target.call(kind), "--rate", "5", "--connections", fmt.Sprint(clients),
				"--new-connection-share", "0.5", "--messages", "2", "--duration", lasts.String())
			loads[kind+" to "+talk.with] = p.startLoad(p.from, args...)
		}
	}
	begin, changes := time.Now(), 0
	next := time.NewTicker(changeEvery)
	defer next.Stop()
	for change != nil && time.Since(begin) < lasts-changeEvery {
		change(changes)
		changes++
		<-next.C
	}
	if atLeast := int(lasts/changeEvery) / 2; change != nil && changes < atLeast {
		p.t.Errorf("%s: %d changes in %v, which shows little: want %d at least", what, changes, lasts, atLeast)
	}
	calls, failed, slowest := 0, 0, 0.
	for name, l := range loads {
		r := l.wait()
		calls, failed, slowest = calls+r.Requests, failed+r.Failed, max(slowest, r.Service.Max)
		if r.Failed > 0 || r.Requests == 0 {
			p.t.Errorf("%s, %s: %d of %d calls failed: %v; the first at %v: %s", what, name, r.Failed, r.Requests, r.Failures, r.FailedAt, r.Example)
		}
		if r.Opened > kept {
			p.t.Errorf("%s, %s: %d clients opened %d connections, %d more than they had to", what, name, kept, r.Opened, r.Opened-kept)
		}
	}
	figure(p.t, "%s: %d changes in %.0f s; %d calls in %d forms, %d failed, the slowest took %.0f ms", what, changes, time.Since(begin).Seconds(), calls, len(loads), failed, slowest)
	p.goesOn(what)
}

// goesOn writes what the proxies were told, and fails the test if one of them has
// replaced something under the connections that are open.
func (p *protocols) goesOn(what string) {
	p.t.Helper()
	for _, app := range []string{"client", "server", "web"} {
		out, err := p.c.Admin(p.t.Context(), p.name, p.running(app).Name,
			"/stats?usedonly&filter=_listeners_draining|downstream_cx_drain_close|listener_modified|cluster_modified|rds.*config_reload$|update_rejected")
		must(p.t, err)
		routes, rest := 0, []string{}
		for line := range strings.Lines(string(out)) {
			name, text, _ := strings.Cut(strings.TrimSpace(line), ": ")
			n, err := strconv.Atoi(text)
			must(p.t, err)
			switch {
			case strings.HasSuffix(name, "config_reload"):
				routes += n
			case n > 0:
				rest = append(rest, name+": "+text)
				if !strings.HasSuffix(name, "_modified") {
					p.t.Errorf("%s: the proxy of %s has %s: %d", what, app, name, n)
				}
			}
		}
		figure(p.t, "%s: the proxy of %s has taken %d changes of routes; %s", what, app, routes, strings.Join(rest, ", "))
	}
}

// to changes an object by a merge patch.
func (p *protocols) to(kind, name, patch string, args ...any) {
	p.t.Helper()
	must(p.t, p.c.MergePatch(p.t.Context(), kube.MeshKind(kind), p.name, name, fmt.Sprintf(patch, args...)))
}

// arrived waits until proxies run the last state of an object.
func (p *protocols) arrived(kind, name string) {
	p.t.Helper()
	eventually(p.t, 20*time.Second, kind+" "+name, func(ctx context.Context) error {
		return p.c.Condition(ctx, kube.MeshKind(kind), p.name, name, "Programmed", "True")
	})
}

// Whatever is spoken goes on while policies change that are not about it: no call
// fails, and no connection ends.
func TestEveryProtocolGoesOnWhilePoliciesChange(t *testing.T) {
	p := newProtocols(t)
	t.Run("names lead to whom they name", p.namesLead)
	all := p.hold(46 * time.Second)
	p.round("quiet", 4*time.Second, nil)
	p.round("authorization changes", 18*time.Second, func(n int) {
		p.to("MeshPolicy", "paths", `{"spec":{"authorization":{"rules":[{"action":"Deny","to":[{"paths":["/x%d"],"ports":[8080]}]}]}}}`, n)
	})
	p.arrived("MeshPolicy", "paths")
	p.apply("MeshPolicy", "traffic", "traffic: {timeout: 100s}")
	p.apply("MeshPolicy", "ports", "selector: {matchLabels: {app: server}}\nmtls: {ports: [{port: 7000, mode: Strict}]}")
	p.apply("TrafficSplit", "server", weights(1, 1))
	p.round("traffic, mTLS and a split change", 18*time.Second, func(n int) {
		switch n % 3 {
		case 0:
			p.to("MeshPolicy", "traffic", `{"spec":{"traffic":{"timeout":"%ds","outlierDetection":{"consecutive5xx":%d}}}}`, 100+n, 100+n)
		case 1:
			p.to("MeshPolicy", "ports", `{"spec":{"mtls":{"ports":[{"port":7000,"mode":"%s"}]}}}`, []string{"Strict", "Permissive"}[n/3%2])
		default:
			p.to("TrafficSplit", "server", `{"spec":{"backends":[{"service":"server-v1","weight":%d},{"service":"server-v2","weight":5}]}}`, n)
		}
	})
	p.arrived("MeshPolicy", "traffic")
	p.arrived("MeshPolicy", "ports")
	p.arrived("TrafficSplit", "server")
	for _, h := range all {
		h.ended(t)
	}
}

// namesLead checks that each pod of a StatefulSet answers to its own name, and that a
// Service of type ExternalName is what it names: a Service of the mesh with all that
// the mesh does for it, or a machine elsewhere to which nobody speaks mTLS.
func (p *protocols) namesLead(t *testing.T) {
	s := p.on(t)
	for _, pod := range []string{"web-0", "web-1"} {
		at := podAt(pod + "." + s.host("web"))
		for _, kind := range []string{"http", "http10", "grpc", "tcp"} {
			r := s.callUntil(p.from, works, at.call(kind)...)
			if r.Reply == nil || r.Reply.Pod != pod {
				t.Errorf("%s to %s was answered by %+v", kind, pod, r.Reply)
			}
		}
		seen(t, pod, s.call(p.from, at.call("http")...), s.name)
	}
	seen(t, "alias", s.callUntil(p.from, answered(200), serviceAt(s.host("alias")).call("http")...), s.name)
	for _, at := range []target{machineAt(s.host("away")), serviceAt(s.host("elsewhere"))} {
		r := s.callUntil(p.from, answered(200), at.call("http")...)
		if r.Reply == nil || r.Reply.Version != "machine" || saw(r, "X-Forwarded-Client-Cert") != "" {
			t.Errorf("%s: a machine elsewhere answered %+v", at.host, r.Reply)
		}
	}
	if r := s.call(p.from, serviceAt(s.host("nowhere")).call("http")...); r.Failure == nil || r.Failure.Kind != "dns" {
		t.Errorf("a name for a name that does not exist: %d, %+v", r.Status, r.Failure)
	}
}

// asBytes reports whether a request passed without a proxy's having read it: one
// that does gives it an id.
func asBytes(r *report.Call) bool { return r.Reply != nil && saw(r, "X-Request-Id") == "" }

// saw is a header that the application saw; those of gRPC's are in lower case.
func saw(r *report.Call, name string) string {
	return strings.Join(slices.Concat(r.Reply.Headers[name], r.Reply.Headers[strings.ToLower(name)]), ",")
}

// What a port's appProtocol says is how calls to it are treated, on both sides: read
// as HTTP, passed on as bytes, or, where it says nothing, as the port's name says, or
// as the first bytes do.
func TestAPortIsTreatedAsItsAppProtocolSays(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "appprotocol", true)
	s.strict()
	s.deploy(app{name: "client", noService: true}, app{name: "server", noService: true})
	from := s.in("client")
	const read, bytes = true, false
	for _, c := range []struct {
		protocol, name string
		kind           string
		target         int
		want           bool
	}{
		{"http", "a", "http", 8080, read},
		{"HTTP", "a", "http10", 8080, read},
		{"kubernetes.io/h2c", "a", "h2c", 8080, read},
		{"kubernetes.io/ws", "a", "http", 8080, read},
		{"kubernetes.io/ws", "a", "ws", 8080, read},
		{"http2", "tcp-a", "h2c", 8080, read},
		{"grpc", "a", "grpc", 9000, read},
		{"grpc", "a", "grpc-bidi", 9000, read},
		{"grpc-web", "a", "http", 8080, read},
		{"tcp", "http-a", "http", 8080, bytes},
		{"tcp", "a", "h2c", 8080, bytes},
		{"https", "a", "tls", 8443, bytes},
		{"kubernetes.io/wss", "a", "tls", 8443, bytes},
		{"mysql", "a", "greet", 3306, bytes},
		{"postgresql", "http-a", "greet", 3306, bytes},
		{"redis", "a", "tcp", 9001, bytes},
		{"example.com/own", "http-a", "http", 8080, read},
		{"example.com/own", "tcp-a", "http", 8080, bytes},
		{"example.com/own", "a", "http", 8080, read},
		{"", "a", "tcp", 9001, bytes},
	} {
		name := fmt.Sprintf("%s on %s, %s", c.protocol, c.name, c.kind)
		t.Run(name, func(t *testing.T) {
			s := s.on(t)
			svc := s.service("declared", map[string]string{"app": "server"}, func(svc *corev1.Service) {
				svc.Spec.Ports = []corev1.ServicePort{{Name: c.name, Port: 7070, TargetPort: intstr.FromInt(c.target)}}
				if c.protocol != "" {
					svc.Spec.Ports[0].AppProtocol = ptr.To(c.protocol)
				}
			})
			defer func() {
				must(t, s.c.Client.CoreV1().Services(s.name).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
			}()
			s.endpoints(svc.Name)
			at := target{svc.Spec.ClusterIP, "7070", "7070", "7070", "7070", "7070"}
			s.callUntil(from, func(r *report.Call) error { return treated(r, c.kind, c.want) }, at.call(c.kind)...)
		})
	}
	t.Run("what is not HTTP on a port that is", func(t *testing.T) {
		s := s.on(t)
		svc := s.service("declared", map[string]string{"app": "server"}, func(svc *corev1.Service) {
			svc.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 7070, TargetPort: intstr.FromInt(9001), AppProtocol: ptr.To("http")}}
		})
		s.endpoints(svc.Name)
		s.callUntil(from, fails("reset", "eof", "other"), "tcp", svc.Spec.ClusterIP+":7070")
	})
}

// treated complains unless a call worked, and was read as HTTP or passed on as
// bytes, as far as an answer tells.
func treated(r *report.Call, kind string, read bool) error {
	if err := works(r); err != nil {
		return err
	}
	switch {
	case kind == "tls" && r.Peer != "echo.application.test":
		return fmt.Errorf("certificate of %q, want the application's own", r.Peer)
	case kind == "greet" && r.StepsMS[0] > float64(greetingAtOnce.Milliseconds()):
		return fmt.Errorf("the greeting took %.0f ms: somebody waited for first bytes", r.StepsMS[0])
	case kind == "http" || kind == "http10" || kind == "h2c" || kind == "grpc":
		if r.Reply == nil {
			return errors.New("no reply: " + r.Text)
		}
		if asBytes(r) == read || (saw(r, "X-Forwarded-Client-Cert") != "") != read {
			return fmt.Errorf("the application saw %v", r.Reply.Headers)
		}
	}
	return nil
}
