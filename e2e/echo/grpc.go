package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The gRPC service is written by hand over well-known message types, so that
// no generated code and no protoc is needed. As a .proto file it would be
//
//	package tulle.echo.v1;
//	service Echo {
//	  rpc Unary(google.protobuf.StringValue) returns (google.protobuf.StringValue);
//	  rpc Stream(stream google.protobuf.StringValue) returns (stream google.protobuf.StringValue);
//	}
//
// Unary answers with a Reply as JSON, Stream with what it was sent.
const (
	grpcService = "tulle.echo.v1.Echo"
	grpcUnary   = "/" + grpcService + "/Unary"
	grpcStream  = "/" + grpcService + "/Stream"
)

// echoService is the interface that grpc checks a registered server against.
type echoService interface {
	unary(context.Context, *wrapperspb.StringValue) (*wrapperspb.StringValue, error)
	stream(grpc.ServerStream) error
}

type echoServer struct{}

func (echoServer) unary(ctx context.Context, in *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
	p := self()
	p.Protocol, p.Method, p.BodyBytes = "gRPC", grpcUnary, int64(len(in.GetValue()))
	if from, ok := peer.FromContext(ctx); ok {
		p.Remote = from.Addr.String()
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		p.Headers = md
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding the reply: %w", err)
	}
	return wrapperspb.String(string(text)), nil
}

func (echoServer) stream(s grpc.ServerStream) error {
	for {
		var m wrapperspb.StringValue
		if err := s.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(&m); err != nil {
			return err
		}
	}
}

func echoServiceDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: grpcService,
		HandlerType: (*echoService)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Unary",
			Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				var in wrapperspb.StringValue
				if err := dec(&in); err != nil {
					return nil, err
				}
				return srv.(echoService).unary(ctx, &in)
			},
		}},
		Streams: []grpc.StreamDesc{{
			StreamName:    "Stream",
			Handler:       func(srv any, s grpc.ServerStream) error { return srv.(echoService).stream(s) },
			ServerStreams: true,
			ClientStreams: true,
		}},
	}
}
