package main

import (
	"context"
	"strconv"
	"strings"
	"sync"

	rls "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
)

// mostKey names the entry of a descriptor that says how many requests it stands for.
const mostKey = "most"

// limiter is a server of Envoy's rate limit protocol. It lets each descriptor through as
// often as its own entry "most" says, from when it began; without one, always.
type limiter struct {
	rls.UnimplementedRateLimitServiceServer
	lock   sync.Mutex
	counts map[string]int
}

func (l *limiter) ShouldRateLimit(_ context.Context, in *rls.RateLimitRequest) (*rls.RateLimitResponse, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	out := &rls.RateLimitResponse{OverallCode: rls.RateLimitResponse_OK}
	for _, d := range in.GetDescriptors() {
		key, most := []string{in.GetDomain()}, 0
		for _, e := range d.GetEntries() {
			key = append(key, e.GetKey()+"="+e.GetValue())
			if e.GetKey() == mostKey {
				most, _ = strconv.Atoi(e.GetValue()) // what is no number is no limit
			}
		}
		status := &rls.RateLimitResponse_DescriptorStatus{Code: rls.RateLimitResponse_OK}
		if most > 0 {
			n := strings.Join(key, ",")
			l.counts[n]++
			if l.counts[n] > most {
				status.Code, out.OverallCode = rls.RateLimitResponse_OVER_LIMIT, rls.RateLimitResponse_OVER_LIMIT
			}
		}
		out.Statuses = append(out.Statuses, status)
	}
	return out, nil
}
