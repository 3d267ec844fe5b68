package translate

import (
	"net/netip"
	"slices"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	network "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A listener's filter_chain_matcher: a tree of decisions that ends in the name
// of a chain. filter_chain_match cannot say "this address on this port, all
// others by their own rules": a chain that names a port takes the port's other
// destinations from every chain that does not.

// chain is a decision that is made: the connection is for the named chain.
func chain(name string) *xdsmatcher.Matcher_OnMatch {
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Action{Action: extension(name, wrapperspb.String(name))}}
}

// further is a decision that is left to another matcher.
func further(m *xdsmatcher.Matcher) *xdsmatcher.Matcher_OnMatch {
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Matcher{Matcher: m}}
}

func extension(name string, m proto.Message) *xdscore.TypedExtensionConfig {
	return &xdscore.TypedExtensionConfig{Name: name, TypedConfig: typed(m)}
}

// byExact looks the input up in a map; otherwise may be nil, and no map is
// otherwise alone. Where the choice is left to another matcher that finds none, Envoy
// goes on with otherwise.
func byExact(input proto.Message, choices map[string]*xdsmatcher.Matcher_OnMatch, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	if len(choices) == 0 {
		return &xdsmatcher.Matcher{OnNoMatch: otherwise}
	}
	return &xdsmatcher.Matcher{
		MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
			Input: extension("input", input),
			TreeType: &xdsmatcher.Matcher_MatcherTree_ExactMatchMap{
				ExactMatchMap: &xdsmatcher.Matcher_MatcherTree_MatchMap{Map: choices},
			},
		}},
		OnNoMatch: otherwise,
	}
}

// byPort decides on the port that the client meant.
func byPort(choices map[string]*xdsmatcher.Matcher_OnMatch, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	return byExact(&network.DestinationPortInput{}, choices, otherwise)
}

// byProtocol decides on what inspection found: HTTP in the clear, one of the
// mesh's ALPN names, or neither. Envoy quotes the names.
func byProtocol(choices map[string]*xdsmatcher.Matcher_OnMatch, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	quoted := make(map[string]*xdsmatcher.Matcher_OnMatch, len(choices))
	for k, m := range choices {
		quoted["'"+k+"'"] = m
	}
	return byExact(&network.ApplicationProtocolInput{}, quoted, otherwise)
}

// plaintextHTTP is what the HTTP inspector calls HTTP.
var plaintextHTTP = [...]string{"http/1.0", "http/1.1", "h2c"}

// ifHTTP chooses between HTTP in the clear and all else.
func ifHTTP(http, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	choices := map[string]*xdsmatcher.Matcher_OnMatch{}
	for _, p := range plaintextHTTP {
		choices[p] = http
	}
	return byProtocol(choices, otherwise)
}

// byTLS chooses between TLS, whoever's, and the clear.
func byTLS(tls, plain *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	return byExact(&network.TransportProtocolInput{}, map[string]*xdsmatcher.Matcher_OnMatch{"tls": tls, "raw_buffer": plain}, nil)
}

// destinations are what is decided for the addresses of some ranges.
type destinations struct {
	ranges []netip.Prefix
	match  *xdsmatcher.Matcher_OnMatch
}

// byDestination decides on the address that the client meant: the narrowest
// range that has it.
func byDestination(ds []destinations, otherwise *xdsmatcher.Matcher_OnMatch) *xdsmatcher.Matcher {
	m := &xdsmatcher.IPMatcher{}
	for _, d := range ds {
		if len(d.ranges) == 0 {
			continue
		}
		r := &xdsmatcher.IPMatcher_IPRangeMatcher{OnMatch: d.match}
		for _, p := range d.ranges {
			r.Ranges = append(r.Ranges, &xdscore.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))})
		}
		m.RangeMatchers = append(m.RangeMatchers, r)
	}
	if len(m.RangeMatchers) == 0 {
		return &xdsmatcher.Matcher{OnNoMatch: otherwise}
	}
	return &xdsmatcher.Matcher{
		MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
			Input:    extension("input", &network.DestinationIPInput{}),
			TreeType: &xdsmatcher.Matcher_MatcherTree_CustomMatch{CustomMatch: extension("ranges", m)},
		}},
		OnNoMatch: otherwise,
	}
}

// hosts are ranges of single addresses, each once, in order.
func hosts(as []netip.Addr) []netip.Prefix {
	as = slices.Clone(as)
	slices.SortFunc(as, netip.Addr.Compare)
	as = slices.Compact(as)
	out := make([]netip.Prefix, 0, len(as))
	for _, a := range as {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

func portPredicate(p uint16) *listener.ListenerFilterChainMatchPredicate {
	return &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_DestinationPortRange{
		DestinationPortRange: &envoytype.Int32Range{Start: int32(p), End: int32(p) + 1},
	}}
}
