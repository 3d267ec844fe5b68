package server

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tulle-mesh/tulle/xds/delta"
)

// codec writes responses as the resources' bytes are, which all streams share:
// gRPC's own would copy them into a buffer for each stream, and take one of 1 MiB
// for everything above 32 KiB, so that 200 proxies that connect at once cost 100 MiB
// more than they are sent. Everything else is left to gRPC's own.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// shared is from how many bytes on a resource is handed on where it is; what is
// smaller is copied, which costs less than a buffer more.
const shared = 512

// lendable is up to how many bytes a buffer comes from gRPC's pool, whose next are
// four times as large.
const lendable = 4 << 10

// Fields of envoy.service.discovery.v3.DeltaDiscoveryResponse, of its Resource, and of
// google.protobuf.Any.
const (
	fieldResources, fieldTypeURL, fieldNonce, fieldRemoved = 2, 4, 5, 6
	fieldVersion, fieldResource, fieldName                 = 1, 2, 3
	fieldAnyURL, fieldAnyValue                             = 1, 2
)

// Marshal encodes a push as a DeltaDiscoveryResponse, and any other message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	p, ok := v.(*delta.Push)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	url := p.Type.URL()
	small, parts := textSize(url)+textSize(p.Nonce), 1
	for _, name := range p.Removed {
		small += 1 + protowire.SizeBytes(len(name))
	}
	for i := range p.Resources {
		one := &p.Resources[i]
		outer, _ := resourceSize(one)
		small += 1 + protowire.SizeBytes(outer)
		if n := len(one.Body.GetValue()); n >= shared {
			small -= n
			parts += 2
		}
	}
	out := make(mem.BufferSlice, 0, parts)
	var lent *[]byte // all of the response, where it is small and nothing of it shared
	var b []byte
	if parts == 1 && small <= lendable {
		lent = mem.DefaultBufferPool().Get(small)
		b = (*lent)[:0]
	} else {
		b = make([]byte, 0, small) // never grows, so that parts of it can be handed on
	}
	begun := 0
	for i := range p.Resources {
		one := &p.Resources[i]
		b = appendResource(b, one)
		if value := one.Body.GetValue(); len(value) < shared {
			b = append(b, value...)
		} else {
			out = append(out, mem.SliceBuffer(b[begun:len(b):len(b)]), mem.SliceBuffer(value))
			begun = len(b)
		}
	}
	b = appendText(b, fieldTypeURL, url)
	b = appendText(b, fieldNonce, p.Nonce)
	for _, name := range p.Removed {
		b = appendElement(b, fieldRemoved, name)
	}
	if lent != nil {
		*lent = b
		return append(out, mem.NewBuffer(lent, mem.DefaultBufferPool())), nil
	}
	return append(out, mem.SliceBuffer(b[begun:])), nil
}

// resourceSize is how many bytes a resource has, and its Any.
func resourceSize(r *delta.Resource) (outer, inner int) {
	outer = textSize(r.Name) + textSize(r.Version)
	if a := r.Body; a != nil {
		inner = textSize(a.GetTypeUrl())
		if len(a.GetValue()) > 0 {
			inner += 1 + protowire.SizeBytes(len(a.GetValue()))
		}
		outer += 1 + protowire.SizeBytes(inner)
	}
	return outer, inner
}

// appendResource appends a resource up to where the value of its Any begins, which
// comes last.
func appendResource(b []byte, r *delta.Resource) []byte {
	outer, inner := resourceSize(r)
	b = protowire.AppendTag(b, fieldResources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(outer))
	b = appendText(b, fieldName, r.Name)
	b = appendText(b, fieldVersion, r.Version)
	a := r.Body
	if a == nil {
		return b
	}
	b = protowire.AppendTag(b, fieldResource, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(inner))
	b = appendText(b, fieldAnyURL, a.GetTypeUrl())
	if len(a.GetValue()) > 0 {
		b = protowire.AppendTag(b, fieldAnyValue, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(len(a.GetValue())))
	}
	return b
}

// textSize is what appendText appends: nothing for "", which is the default. All
// fields here have a tag of one byte.
func textSize(text string) int {
	if text == "" {
		return 0
	}
	return 1 + protowire.SizeBytes(len(text))
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return appendElement(b, field, text)
}

func appendElement(b []byte, field protowire.Number, text string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, text)
}
