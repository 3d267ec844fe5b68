package translate

import (
	"regexp"
	"strconv"
	"strings"

	cors "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// crossOrigin enables Envoy's CORS filter for a route. It answers all preflights itself.
// https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/cors_filter
func crossOrigin(c *mesh.CORS) map[string]*anypb.Any {
	if c == nil {
		return nil
	}
	out := &cors.CorsPolicy{
		AllowMethods: strings.Join(c.Methods, ", "), AllowHeaders: strings.Join(c.Headers, ", "), ExposeHeaders: strings.Join(c.Expose, ", "),
		MaxAge: strconv.Itoa(int(c.MaxAge)), ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	if c.Credentials {
		out.AllowCredentials = wrapperspb.Bool(true)
	}
	for _, o := range c.Origins {
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, originMatch(o))
	}
	return map[string]*anypb.Any{corsName: typed(out)}
}

// originMatch matches the header Origin, in which a port that is the scheme's own does
// not stand (RFC 6454, section 6.2).
func originMatch(origin string) *matcher.StringMatcher {
	if origin == "*" {
		return regex(".*")
	}
	scheme, _, _ := strings.Cut(origin, "://")
	origin = strings.TrimSuffix(origin, ":"+strconv.Itoa(int(defaultPort(scheme))))
	if !strings.Contains(origin, "*") {
		return exact(origin)
	}
	return regex(strings.ReplaceAll(regexp.QuoteMeta(origin), `\*`, "[^:/]+"))
}
