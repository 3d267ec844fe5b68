package redirect

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// All registers are the first: each match consumes what the load before it
// put there.
const register = 1

// Names of the table's chains.
const (
	chainOutbound = "outbound"
	chainInbound  = "inbound"
)

// builder adds chains and rules to one table. The first error stays; the
// kernel is not asked when there is one.
type builder struct {
	conn  *nftables.Conn
	table *nftables.Table
	err   error
}

// outbound decides about what starts in the pod. The chain sees the first
// packet of each connection only.
func (b *builder) outbound(c Config) {
	chain := b.chain(chainOutbound, nftables.ChainHookOutput)
	b.rule(chain, "only TCP is redirected", notTCP(), verdict(expr.VerdictReturn))
	b.rule(chain, "no way into the sidecar's own listeners: they would call themselves",
		local(), tcp(), b.port(PortOutbound, PortEgress, PortInbound), verdict(expr.VerdictDrop))
	for _, r := range loopbacks() {
		b.rule(chain, "loopback", within(r), verdict(expr.VerdictReturn))
	}
	proxy := slices.Concat(uid(c.ProxyUID), gid(c.ProxyUID))
	if len(c.ExcludeInbound) > 0 {
		b.rule(chain, "the pod calls itself on excluded ports",
			proxy, local(), tcp(), b.port(c.ExcludeInbound...), verdict(expr.VerdictReturn))
	}
	b.rule(chain, "the pod calls itself by way of a service",
		proxy, local(), priority(Hairpin), tcp(), redirect(PortInbound))
	b.rule(chain, "the proxy", proxy, verdict(expr.VerdictReturn))
	for _, u := range c.ExcludeUIDs {
		b.rule(chain, "excluded user", uid(u), verdict(expr.VerdictReturn))
	}
	for _, g := range c.ExcludeGIDs {
		b.rule(chain, "excluded group", gid(g), verdict(expr.VerdictReturn))
	}
	b.rule(chain, "the pod's own addresses", local(), verdict(expr.VerdictReturn))
	for _, r := range c.Resolvers {
		b.rule(chain, "DNS goes the same way over TCP as over UDP",
			within(netip.PrefixFrom(r, r.BitLen())), tcp(), b.port(dnsPort), verdict(expr.VerdictReturn))
	}
	if len(c.ExcludeOutbound) > 0 {
		b.rule(chain, "excluded ports", tcp(), b.port(c.ExcludeOutbound...), verdict(expr.VerdictReturn))
	}
	for _, r := range sorted(c.ExcludeRanges) {
		b.rule(chain, "excluded range", within(r), verdict(expr.VerdictReturn))
	}
	for _, r := range sorted(slices.Concat(c.Services, c.Pods)) {
		b.rule(chain, "within the cluster", within(r), tcp(), redirect(PortOutbound))
	}
	b.rule(chain, "to elsewhere", tcp(), redirect(PortEgress))
}

// inbound decides about what comes from outside to the pod's own addresses.
// What the pod merely forwards (a container engine or a virtual machine within
// it) is not its own.
func (b *builder) inbound(c Config) {
	chain := b.chain(chainInbound, nftables.ChainHookPrerouting)
	b.rule(chain, "only TCP is redirected", notTCP(), verdict(expr.VerdictReturn))
	b.rule(chain, "only what is for the pod", notLocal(), verdict(expr.VerdictReturn))
	b.rule(chain, "loopback was decided about where it started", fromLoopback(), verdict(expr.VerdictReturn))
	b.rule(chain, "no way into the sidecar's own listeners: they would call themselves",
		tcp(), b.port(PortAdmin, PortOutbound, PortEgress, PortInbound), verdict(expr.VerdictDrop))
	b.rule(chain, "the sidecar's own ports: probes, readiness, metrics",
		tcp(), b.port(PortProbes, PortReady, PortStats), verdict(expr.VerdictReturn))
	if len(c.ExcludeInbound) > 0 {
		b.rule(chain, "excluded ports", tcp(), b.port(c.ExcludeInbound...), verdict(expr.VerdictReturn))
	}
	b.rule(chain, "to the pod", tcp(), redirect(PortInbound))
}

func (b *builder) chain(name string, hook *nftables.ChainHook) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return b.conn.AddChain(&nftables.Chain{
		Name:     name,
		Table:    b.table,
		Type:     nftables.ChainTypeNAT,
		Hooknum:  hook,
		Priority: nftables.ChainPriorityNATDest,
		Policy:   &accept,
	})
}

// rule adds a rule; the comment is what `nft list table inet tulle` shows.
func (b *builder) rule(chain *nftables.Chain, comment string, parts ...[]expr.Any) {
	b.conn.AddRule(&nftables.Rule{
		Table:    b.table,
		Chain:    chain,
		Exprs:    slices.Concat(parts...),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	})
}

// port matches the destination port against a set.
func (b *builder) port(ports ...uint16) []expr.Any {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	set := &nftables.Set{Table: b.table, Anonymous: true, Constant: true, KeyType: nftables.TypeInetService}
	elements := make([]nftables.SetElement, len(ports))
	for i, p := range ports {
		elements[i].Key = binaryutil.BigEndian.PutUint16(p)
	}
	if err := b.conn.AddSet(set, elements); err != nil && b.err == nil {
		b.err = err
	}
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: register, SetName: set.Name, SetID: set.ID},
	}
}

func tcp() []expr.Any    { return protocol(expr.CmpOpEq) }
func notTCP() []expr.Any { return protocol(expr.CmpOpNeq) }

func protocol(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: op, Register: register, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// local matches what is for an address of this network namespace, loopback
// included.
func local() []expr.Any    { return addressType(expr.CmpOpEq) }
func notLocal() []expr.Any { return addressType(expr.CmpOpNeq) }

func addressType(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: register, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: register, Data: native(unix.RTN_LOCAL)},
	}
}

func loopbacks() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8),
		netip.PrefixFrom(netip.IPv6Loopback(), 128),
	}
}

func fromLoopback() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte("lo\x00")},
	}
}

func uid(user uint32) []expr.Any  { return owner(expr.MetaKeySKUID, user) }
func gid(group uint32) []expr.Any { return owner(expr.MetaKeySKGID, group) }

func owner(key expr.MetaKey, id uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: native(id)},
	}
}

func priority(p uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: native(p)},
	}
}

// within matches a destination address in a range of either family.
func within(r netip.Prefix) []expr.Any {
	r = r.Masked()
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if r.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	address := r.Addr().AsSlice()
	mask := make([]byte, len(address))
	for i := range r.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{family}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(address))},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(address)), Mask: mask, Xor: make([]byte, len(address))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: address},
	}
}

func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: register, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: register},
	}
}

func verdict(k expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: k}}
}

// native is a number in the byte order that the kernel keeps its own in.
func native(n uint32) []byte {
	return binary.NativeEndian.AppendUint32(nil, n)
}

// sorted puts ranges in a stable order and drops repetitions.
func sorted(ranges []netip.Prefix) []netip.Prefix {
	masked := make([]netip.Prefix, len(ranges))
	for i, r := range ranges {
		masked[i] = r.Masked()
	}
	slices.SortFunc(masked, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(masked)
}
