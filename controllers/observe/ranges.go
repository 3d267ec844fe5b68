package observe

import (
	"cmp"
	"net/netip"
	"slices"
)

// mergeRanges returns the fewest prefixes that cover exactly the same
// addresses, sorted: a thousand nodes' pod ranges are mostly neighbours, and
// every prefix is one in the listener of every proxy.
func mergeRanges(in []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, len(in))
	for i, p := range in {
		sorted[i] = p.Masked()
	}
	// Address first, and the wider of two before the narrower.
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Contains(p.Addr()) {
			continue
		}
		out = joinNeighbours(append(out, p))
	}
	return out
}

// joinNeighbours replaces the two halves of a prefix at the end of the list by
// the whole, for as long as there are some.
func joinNeighbours(ps []netip.Prefix) []netip.Prefix {
	for len(ps) >= 2 {
		a, b := ps[len(ps)-2], ps[len(ps)-1]
		if a.Bits() != b.Bits() || a.Bits() == 0 || a.Addr().BitLen() != b.Addr().BitLen() {
			break
		}
		whole := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
		if !whole.Contains(b.Addr()) {
			break
		}
		ps = append(ps[:len(ps)-2], whole)
	}
	return ps
}

// prefixes parses CIDRs. What is none is left out: the API server has refused
// it already.
func prefixes(texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		if p, err := netip.ParsePrefix(t); err == nil && !p.Addr().Is4In6() {
			out = append(out, p.Masked())
		}
	}
	return out
}
