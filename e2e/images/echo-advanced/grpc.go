package main

import (
	"context"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The service has the name and the wire format that the original's has: each
// way a message whose field 1 is a string, which is what StringValue is.
const (
	grpcService = "proto.EchoTestService"
	grpcEcho    = "Echo"
)

// grpcServer is what grpc checks a registered server against.
type grpcServer interface {
	echo(context.Context, *wrapperspb.StringValue) (*wrapperspb.StringValue, error)
}

type grpcPort struct {
	*server
	port string
}

func (s *server) grpc(port string) *grpc.Server {
	g := grpc.NewServer()
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: grpcService,
		HandlerType: (*grpcServer)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: grpcEcho,
			Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				var in wrapperspb.StringValue
				if err := decode(&in); err != nil {
					return nil, err
				}
				return srv.(grpcServer).echo(ctx, &in)
			},
		}},
	}, grpcPort{server: s, port: port})
	return g
}

func (g grpcPort) echo(ctx context.Context, in *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
	var b strings.Builder
	// The suite expects 200 of a call that succeeds, not gRPC's 0.
	b.WriteString(field("StatusCode", "200"))
	md, _ := metadata.FromIncomingContext(ctx)
	for _, name := range slices.Sorted(maps.Keys(md)) {
		for _, value := range md[name] {
			if name == ":authority" {
				b.WriteString(field("Host", value))
				continue
			}
			b.WriteString(field("RequestHeader", name+":"+value))
		}
	}
	if from, ok := peer.FromContext(ctx); ok {
		b.WriteString(field("IP", remoteIP(from.Addr.String())))
	}
	b.WriteString(field("Proto", "GRPC"))
	b.WriteString(g.self(g.port))
	b.WriteString(field("Echo", in.GetValue()))
	return wrapperspb.String(b.String()), nil
}
