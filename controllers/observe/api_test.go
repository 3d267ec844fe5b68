package observe

import (
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/config/v1alpha1"
	"github.com/tulle-mesh/tulle/xds/mesh"
)

const created = `creationTimestamp: "2026-01-02T03:04:05Z"`

func metaOf(name string) mesh.Meta {
	return mesh.Meta{
		Name:       mesh.Name{Namespace: "shop", Name: name},
		Generation: 3,
		Created:    time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func TestServerSidePolicyIsConverted(t *testing.T) {
	same(t, policy(parse[v1alpha1.MeshPolicy](t, `
metadata: {namespace: shop, name: reviews, generation: 3, `+created+`}
spec:
  selector: {matchLabels: {app: reviews}}
  mtls:
    mode: Strict
    ports: [{port: 8080, mode: Permissive}, {port: 9090, mode: Disabled}]
  authorization:
    default: Deny
    rules:
    - name: frontend
      from:
      - serviceAccounts: [frontend, other/caller]
        namespaces: [shop]
      - identities: ["spiffe://cluster.local/ns/ops/*"]
        ipBlocks: [10.1.2.3/8, "fd00::/8"]
      to:
      - {ports: [8080], methods: [GET], paths: [/reviews/*], hosts: ["*.example"]}
    - action: Deny
      to: [{paths: [/admin]}]
`)), &mesh.Policy{
		Meta:     metaOf("reviews"),
		Selector: &mesh.Selector{MatchLabels: map[string]string{"app": "reviews"}},
		MTLS: &mesh.MTLS{
			Mode:  mesh.MTLSStrict,
			Ports: map[uint16]mesh.MTLSMode{8080: mesh.MTLSPermissive, 9090: mesh.MTLSDisabled},
		},
		Authorization: &mesh.Authorization{
			DefaultDeny: true,
			Rules: []mesh.Rule{{
				Name: "frontend",
				From: []mesh.Source{{
					Namespaces:      []string{"shop"},
					ServiceAccounts: []mesh.Name{{Name: "frontend"}, {Namespace: "other", Name: "caller"}},
				}, {
					Identities: []string{"spiffe://cluster.local/ns/ops/*"},
					IPBlocks:   nets("10.0.0.0/8", "fd00::/8"),
				}},
				To: []mesh.Operation{{
					Ports: []uint16{8080}, Methods: []string{"GET"}, Paths: []string{"/reviews/*"}, Hosts: []string{"*.example"},
				}},
			}, {
				Action: mesh.Deny,
				To:     []mesh.Operation{{Paths: []string{"/admin"}}},
			}},
		},
	})
}

func TestClientSidePolicyIsConverted(t *testing.T) {
	timeout := 2 * time.Second
	same(t, policy(parse[v1alpha1.MeshPolicy](t, `
metadata: {namespace: shop, name: calls, generation: 3, `+created+`}
spec:
  targetRefs: [{name: reviews}, {kind: Service, group: "", name: x, namespace: other, port: 80}]
  traffic:
    timeout: 2s
    retries: {attempts: 3, perTryTimeout: 250ms, retryOn: [5xx, connect-failure]}
`)), &mesh.Policy{
		Meta: metaOf("calls"),
		Targets: []mesh.Target{
			{Kind: mesh.KindService, Name: mesh.Name{Namespace: "shop", Name: "reviews"}},
			{Kind: mesh.KindService, Name: mesh.Name{Namespace: "other", Name: "x"}, Port: 80},
		},
		Traffic: &mesh.Traffic{
			Timeout: &timeout,
			Retries: &mesh.Retries{Attempts: 3, PerTryTimeout: 250 * time.Millisecond, On: []string{"5xx", "connect-failure"}},
		},
	})
}

func TestEverythingThatTrafficSaysIsConverted(t *testing.T) {
	n := func(n uint32) *uint32 { return &n }
	zero, minute := time.Duration(0), time.Minute
	got := policy(parse[v1alpha1.MeshPolicy](t, `
metadata: {namespace: shop, name: calls, generation: 3, `+created+`}
spec:
  traffic:
    idleTimeout: 1m
    retries: {attempts: 1, backOff: {base: 10ms, max: 1s}, budget: {percent: 5, minConcurrent: 0}}
    connections: {connectTimeout: 1s, idleTimeout: 2s, maxDuration: 3s, maxRequests: 4, keepalive: {time: 5s, interval: 6s, probes: 7}}
    circuitBreaker: {maxConnections: 1, maxConnectionsPerPod: 2, maxPendingRequests: 3, maxRequests: 4}
    outlierDetection: {consecutive5xx: 0, consecutiveGatewayErrors: 2, interval: 3s, baseEjectionTime: 4s, maxEjectionTime: 5s, maxEjectionPercent: 6}
    loadBalancer: {type: ConsistentHash, hash: {cookie: {name: a, path: /b, ttl: 0s}, algorithm: RingHash}}
`))
	same(t, got.Traffic, &mesh.Traffic{
		IdleTimeout: &minute,
		Retries: &mesh.Retries{
			Attempts: 1, Base: 10 * time.Millisecond, Max: time.Second, Budget: &mesh.RetryBudget{Percent: 5},
		},
		Connections: &mesh.Connections{
			ConnectTimeout: time.Second, IdleTimeout: 2 * time.Second, MaxDuration: 3 * time.Second, MaxRequests: 4,
			Keepalive: &mesh.Keepalive{Time: 5 * time.Second, Interval: 6 * time.Second, Probes: 7},
		},
		CircuitBreaker: &mesh.CircuitBreaker{MaxConnections: n(1), MaxConnectionsPerPod: n(2), MaxPendingRequests: n(3), MaxRequests: n(4)},
		OutlierDetection: &mesh.OutlierDetection{
			ConsecutiveGatewayErrors: 2, Interval: 3 * time.Second, BaseEjectionTime: 4 * time.Second, MaxEjectionTime: 5 * time.Second,
			MaxEjectionPercent: 6,
		},
		LoadBalancer: &mesh.LoadBalancer{Type: mesh.RingHash, Hash: mesh.Hash{Cookie: "a", Path: "/b", TTL: &zero}},
	})
	if got.Invalid != "" {
		t.Error(got.Invalid)
	}
}

// Which pods are near, and how one of those is chosen, are two things: a policy may
// speak of either.
func TestLocalityIsApartFromTheChoiceOfAPod(t *testing.T) {
	for spec, want := range map[string]*mesh.Traffic{
		`{locality: {prefer: SameZone}}`: {Locality: &mesh.LocalityPreference{Prefer: mesh.SameZone, Overprovisioning: 140}},
		`{locality: {prefer: None}}`:     {Locality: &mesh.LocalityPreference{Overprovisioning: 140}},
		`{type: Random}`:                 {LoadBalancer: &mesh.LoadBalancer{Type: mesh.Random}},
		`{type: LeastRequest, locality: {prefer: SameNode, overprovisioningFactor: 200, failover: [{from: a, to: b}]}}`: {
			LoadBalancer: &mesh.LoadBalancer{},
			Locality:     &mesh.LocalityPreference{Prefer: mesh.SameNode, Overprovisioning: 200, Failover: []mesh.RegionFailover{{From: "a", To: "b"}}},
		},
		`{slowStart: 1s, locality: {prefer: SameRegion}}`: {
			LoadBalancer: &mesh.LoadBalancer{SlowStart: time.Second},
			Locality:     &mesh.LocalityPreference{Prefer: mesh.SameRegion, Overprovisioning: 140},
		},
	} {
		got := policy(parse[v1alpha1.MeshPolicy](t, `{spec: {traffic: {loadBalancer: `+spec+`}}}`))
		if got.Invalid != "" {
			t.Errorf("%s: %s", spec, got.Invalid)
		}
		same(t, got.Traffic, want)
	}
}

// Stored under an older CRD, it may lack what the CRD gives by default.
func TestTrafficThatIsNotWrittenHasTheDefaultsOfTheCRD(t *testing.T) {
	got := policy(parse[v1alpha1.MeshPolicy](t, `{spec: {traffic: {retries: {attempts: 1, budget: {}}, outlierDetection: {}, loadBalancer: {}}}}`))
	same(t, got.Traffic, &mesh.Traffic{
		Retries: &mesh.Retries{Attempts: 1, Budget: &mesh.RetryBudget{Percent: 20, MinConcurrent: 3}},
		OutlierDetection: &mesh.OutlierDetection{
			Consecutive5xx: 5, Interval: 10 * time.Second, BaseEjectionTime: 30 * time.Second, MaxEjectionTime: 5 * time.Minute, MaxEjectionPercent: 10,
		},
		LoadBalancer: &mesh.LoadBalancer{},
	})
}

func TestPolicyWithoutSelectorSelectsAll(t *testing.T) {
	got := policy(parse[v1alpha1.MeshPolicy](t, `{spec: {mtls: {mode: Disabled}}}`))
	if got.Selector != nil || got.MTLS.Mode != mesh.MTLSDisabled || got.Invalid != "" {
		t.Errorf("got %+v", got)
	}
}

func TestZeroTimeoutIsNotTheSameAsNone(t *testing.T) {
	got := policy(parse[v1alpha1.MeshPolicy](t, `{spec: {traffic: {timeout: 0s}}}`))
	if got.Traffic.Timeout == nil || *got.Traffic.Timeout != 0 {
		t.Errorf("got %v, want 0: no timeout, whatever a wider policy says", got.Traffic.Timeout)
	}
}

func TestPolicyThatCannotBeUnderstoodSaysWhy(t *testing.T) {
	for name, c := range map[string]struct{ spec, says string }{
		"mode":            {`mtls: {mode: Lax}`, `spec.mtls.mode: "Lax" is no mode: write Strict, Permissive or Disabled`},
		"mode of a port":  {`mtls: {ports: [{port: 80, mode: Lax}]}`, `spec.mtls.ports[0].mode: "Lax"`},
		"no mode":         {`mtls: {ports: [{port: 80}]}`, `spec.mtls.ports[0].mode: ""`},
		"port":            {`mtls: {ports: [{port: 70000, mode: Strict}]}`, `spec.mtls.ports[0].port: 70000 is no port`},
		"block":           {`authorization: {rules: [{from: [{ipBlocks: [10.0.0.0]}]}]}`, `spec.authorization.rules[0].from[0].ipBlocks: "10.0.0.0" is no CIDR`},
		"account":         {`authorization: {rules: [{from: [{serviceAccounts: [a/b/c]}]}]}`, `"a/b/c" is no service account`},
		"empty account":   {`authorization: {rules: [{from: [{serviceAccounts: [/b]}]}]}`, `"/b" is no service account`},
		"action":          {`authorization: {rules: [{action: Ask}]}`, `spec.authorization.rules[0].action: "Ask" is no action: write Allow, Deny, Audit or Custom`},
		"default":         {`authorization: {default: Audit}`, `spec.authorization.default: "Audit" is no default: write Allow or Deny`},
		"rule's mode":     {`authorization: {rules: [{mode: Try}]}`, `spec.authorization.rules[0].mode: "Try" is no mode: write Enforce or DryRun`},
		"provider":        {`authorization: {rules: [{action: Custom}]}`, `spec.authorization.rules[0].provider: a Custom rule asks somebody`},
		"not block":       {`authorization: {rules: [{from: [{notRemoteIpBlocks: [x]}]}]}`, `spec.authorization.rules[0].from[0].notRemoteIpBlocks: "x" is no CIDR`},
		"not port":        {`authorization: {rules: [{to: [{notPorts: [0]}]}]}`, `spec.authorization.rules[0].to[0].notPorts[0]: 0 is no port`},
		"template":        {`authorization: {rules: [{to: [{notPaths: ["/a/**/b"]}]}]}`, `spec.authorization.rules[0].to[0].notPaths[0]: '**' is any number of segments, and nothing may follow it`},
		"header":          {`authorization: {rules: [{when: {headers: [{name: x_role, values: [a]}]}}]}`, `spec.authorization.rules[0].when.headers[0].name: the name of a header has letters, digits and single '-' here`},
		"operation":       {`authorization: {rules: [{to: [{ports: [0]}]}]}`, `spec.authorization.rules[0].to[0].ports[0]: 0 is no port`},
		"target":          {`{targetRefs: [{kind: Gateway, name: a}], traffic: {timeout: 1s}}`, `spec.targetRefs[0]: a Gateway of group "" cannot be a target`},
		"group":           {`{targetRefs: [{group: x.io, name: a}], traffic: {timeout: 1s}}`, `of group "x.io"`},
		"timeout":         {`traffic: {timeout: -1s}`, `spec.traffic.timeout: -1s is negative`},
		"per try":         {`traffic: {retries: {attempts: 1, perTryTimeout: -1s}}`, `perTryTimeout: -1s is negative`},
		"attempts":        {`traffic: {retries: {attempts: -1}}`, `spec.traffic.retries.attempts: -1 is negative`},
		"budget":          {`traffic: {retries: {attempts: 1, budget: {percent: 101}}}`, `spec.traffic.retries.budget.percent: 101 is more than 100 percent`},
		"breaker":         {`traffic: {circuitBreaker: {maxRequests: -1}}`, `spec.traffic.circuitBreaker.maxRequests: -1 is negative`},
		"balancer":        {`traffic: {loadBalancer: {type: Best}}`, `spec.traffic.loadBalancer.type: "Best" is no type`},
		"hash":            {`traffic: {loadBalancer: {type: ConsistentHash}}`, `spec.traffic.loadBalancer.hash: it does not say by what to choose`},
		"algorithm":       {`traffic: {loadBalancer: {type: ConsistentHash, hash: {header: a, algorithm: MD5}}}`, `"MD5" is no algorithm`},
		"limit":           {`rateLimit: {rules: [{limit: {requests: 0, unit: Second}}]}`, `spec.rateLimit.rules[0].limit.requests: 0 is less than 1`},
		"burst":           {`rateLimit: {rules: [{limit: {requests: 1, unit: Second, burst: 0}}]}`, `spec.rateLimit.rules[0].limit.burst: 0 is less than 1`},
		"unit":            {`rateLimit: {rules: [{limit: {requests: 1, unit: Day}}]}`, `spec.rateLimit.rules[0].limit.unit: "Day" is no unit: write Second, Minute or Hour`},
		"limited address": {`rateLimit: {rules: [{limit: {requests: 1, unit: Second}, from: [{ipBlocks: [10.0.0.0/8]}]}]}`, `spec.rateLimit.rules[0].from[0]: a rate limit tells callers apart by their certificates`},
		"limited port":    {`rateLimit: {rules: [{limit: {requests: 1, unit: Second}, to: [{ports: [0]}]}]}`, `spec.rateLimit.rules[0].to[0].ports[0]: 0 is no port`},
		"long limit":      {`rateLimit: {rules: [{limit: {requests: 1, unit: Second}, to: [{paths: [/` + strings.Repeat("a", 9000) + `]}]}]}`, `spec.rateLimit.rules[0]: it compares with 9001 bytes of text, and a rule takes 8192`},
		"fault":           {`traffic: {fault: {}}`, `spec.traffic.fault: it says nothing: write delay, abort or both`},
		"abort":           {`traffic: {fault: {abort: {}}}`, `spec.traffic.fault.abort: write one of httpStatus and grpcStatus`},
		"two aborts":      {`traffic: {fault: {abort: {httpStatus: 500, grpcStatus: 1}}}`, `spec.traffic.fault.abort: write one of httpStatus and grpcStatus`},
		"status":          {`traffic: {fault: {abort: {httpStatus: 600}}}`, `spec.traffic.fault.abort.httpStatus: 600 is no status: write 200 to 599`},
		"share":           {`traffic: {fault: {abort: {httpStatus: 500, percent: 101}}}`, `spec.traffic.fault.abort.percent: 101 is more than 100 percent`},
		"delay":           {`traffic: {fault: {delay: {fixedDelay: 0s}}}`, `spec.traffic.fault.delay.fixedDelay: a delay is above zero`},
		"fault's header":  {`traffic: {fault: {delay: {fixedDelay: 1s}, headers: [{name: a, type: RegularExpression, value: "("}]}}`, `spec.traffic.fault.headers[0].value: "(": this is not a regular expression`},
		"preference":      {`traffic: {loadBalancer: {locality: {prefer: Near}}}`, `spec.traffic.loadBalancer.locality.prefer: "Near" is no preference: write None, SameRegion, SameZone or SameNode`},
		"factor":          {`traffic: {loadBalancer: {locality: {prefer: SameZone, overprovisioningFactor: 50}}}`, `write 100 or more`},
		"failover":        {`traffic: {loadBalancer: {locality: {prefer: SameZone, failover: [{from: a}]}}}`, `spec.traffic.loadBalancer.locality.failover[0]: from "a" to "" is no way`},
		"rollout's label": {`{selector: {matchLabels: {pod-template-hash: x}}, mtls: {mode: Strict}}`, `pod-template-hash differs from one rollout to the next`},
	} {
		spec := c.spec
		if !strings.HasPrefix(spec, "{") {
			spec = "{" + spec + "}"
		}
		got := policy(parse[v1alpha1.MeshPolicy](t, `{spec: `+spec+`}`))
		if !strings.Contains(got.Invalid, c.says) {
			t.Errorf("%s: got %q, want it to say %q", name, got.Invalid, c.says)
		}
	}
}

func TestPolicyThatCannotBeUnderstoodKeepsItsReach(t *testing.T) {
	got := policy(parse[v1alpha1.MeshPolicy](t, `
spec:
  selector: {matchLabels: {app: a, pod-template-hash: x}}
  mtls: {mode: Lax, ports: [{port: 80, mode: Lax}]}
  authorization: {rules: [{from: [{ipBlocks: [x]}, {ipBlocks: [y]}]}]}
`))
	same(t, got.Selector, &mesh.Selector{MatchLabels: map[string]string{"app": "a"}})
	same(t, got.MTLS, &mesh.MTLS{Mode: mesh.MTLSStrict, Ports: map[uint16]mesh.MTLSMode{80: mesh.MTLSStrict}})
	if got.Authorization == nil {
		t.Error("without its section the policy would not fail closed")
	}
	if n := strings.Count(got.Invalid, "; "); n != 4 {
		t.Errorf("got %d separators in %q, want all five problems named", n, got.Invalid)
	}
}

func TestSplitIsConvertedWithItsDefaults(t *testing.T) {
	same(t, split(parse[v1alpha1.TrafficSplit](t, `
metadata: {namespace: shop, name: reviews, generation: 3, `+created+`}
spec:
  service: reviews
  port: 80
  rules:
  - matches:
    - path: {value: /beta}
      headers: [{name: X-User, value: jane}, {name: x-group, type: RegularExpression, value: "a|b"}]
    - path: {type: Exact, value: /x}
    - path: {type: RegularExpression, value: "/v[0-9]+/.*"}
    - {method: POST, queryParams: [{name: Beta, value: "1"}, {name: b, type: RegularExpression, value: "x|y"}]}
    backends: [{service: reviews-v2}]
    mirrors: [{service: reviews-v3, percent: 0}]
  mirrors: [{service: reviews-v2}]
  backends: [{service: reviews-v1, weight: 90}, {service: reviews-v2, weight: 0}, {service: reviews-v3}]
`)), &mesh.Split{
		Meta:    metaOf("reviews"),
		Service: "reviews",
		Port:    80,
		Rules: []mesh.SplitRule{{
			Matches: []mesh.RequestMatch{{
				Path:    &mesh.StringMatch{Type: mesh.Prefix, Value: "/beta"},
				Headers: []mesh.HeaderMatch{{Name: "x-user", Value: "jane"}, {Name: "x-group", Type: mesh.Regex, Value: "a|b"}},
			}, {
				Path: &mesh.StringMatch{Type: mesh.Exact, Value: "/x"},
			}, {
				Path: &mesh.StringMatch{Type: mesh.Regex, Value: "/v[0-9]+/.*"},
			}, {
				Method: "POST", Query: []mesh.HeaderMatch{{Name: "Beta", Value: "1"}, {Name: "b", Type: mesh.Regex, Value: "x|y"}},
			}},
			Backends: []mesh.SplitBackend{{Service: mesh.Name{Namespace: "shop", Name: "reviews-v2"}, Weight: 1}},
			Mirrors:  []mesh.Mirror{{Service: "reviews-v3"}},
		}},
		Mirrors: []mesh.Mirror{{Service: "reviews-v2", Percent: 100}},
		Backends: []mesh.SplitBackend{
			{Service: mesh.Name{Namespace: "shop", Name: "reviews-v1"}, Weight: 90},
			{Service: mesh.Name{Namespace: "shop", Name: "reviews-v2"}},
			{Service: mesh.Name{Namespace: "shop", Name: "reviews-v3"}, Weight: 1},
		},
	})
}

func TestSplitThatCannotBeUnderstoodSaysWhy(t *testing.T) {
	rule := func(match string) string {
		return `{rules: [{matches: [` + match + `], backends: [{service: b}]}], backends: [{service: a}]}`
	}
	for name, c := range map[string]struct{ spec, says string }{
		"no weight":       {`{backends: [{service: a, weight: 0}]}`, "spec.backends: no backend has a weight above 0"},
		"negative weight": {`{backends: [{service: a, weight: -1}, {service: b}]}`, "spec.backends[0].weight: -1 is negative"},
		"port":            {`{port: -1, backends: [{service: a}]}`, "spec.port: -1 is no port"},
		"path":            {rule(`{path: {type: RegularExpression, value: "/("}}`), `spec.rules[0].matches[0].path.value: "/(": this is not a regular expression in RE2 syntax`},
		"look-ahead":      {rule(`{path: {type: RegularExpression, value: "/(?!a)"}}`), "is not a regular expression in RE2 syntax"},
		"header":          {rule(`{headers: [{name: a, type: RegularExpression, value: "["}]}`), "spec.rules[0].matches[0].headers[0].value"},
		"path type":       {rule(`{path: {type: Glob, value: "/"}}`), `spec.rules[0].matches[0].path.type: "Glob" is no type`},
		"header type":     {rule(`{headers: [{name: a, type: Glob, value: b}]}`), `headers[0].type: "Glob" is no type`},
	} {
		got := split(parse[v1alpha1.TrafficSplit](t, `{spec: `+c.spec+`}`))
		if !strings.Contains(got.Invalid, c.says) {
			t.Errorf("%s: got %q, want it to say %q", name, got.Invalid, c.says)
		}
	}
}

func TestRateLimitsAndFaultsHaveTheirDefaults(t *testing.T) {
	got := policy(parse[v1alpha1.MeshPolicy](t, `
spec:
  rateLimit:
    rules:
    - limit: {requests: 10, unit: Minute}
      from: [{serviceAccounts: [a, b/c]}]
    - name: all
      limit: {requests: 10, unit: Hour, burst: 3}
      perCaller: true
      to: [{ports: [80], methods: [GET], paths: [/a], headers: [{name: X-A}, {name: X-B, value: b}]}]
`))
	same(t, got.Invalid, "")
	same(t, got.RateLimit, &mesh.RateLimit{Rules: []mesh.RateLimitRule{
		{Requests: 10, Burst: 10, Unit: time.Minute, From: []mesh.Source{{ServiceAccounts: []mesh.Name{{Name: "a"}, {Namespace: "b", Name: "c"}}}}},
		{Name: "all", Requests: 10, Burst: 3, Unit: time.Hour, PerCaller: true, To: []mesh.RateLimitOperation{{
			Ports: []uint16{80}, Methods: []string{"GET"}, Paths: []string{"/a"}, Headers: []mesh.HeaderMatch{{Name: "x-a"}, {Name: "x-b", Value: "b"}},
		}}},
	}})
	got = policy(parse[v1alpha1.MeshPolicy](t, `{spec: {traffic: {fault: {delay: {fixedDelay: 2s}, abort: {grpcStatus: 14, percent: 0}, headers: [{name: X-A, value: b}]}}}}`))
	same(t, got.Invalid, "")
	same(t, got.Traffic.Fault, &mesh.Fault{
		Delay: 2 * time.Second, DelayPercent: 100, GRPCStatus: 14, Headers: []mesh.HeaderMatch{{Name: "x-a", Value: "b"}},
	})
}
