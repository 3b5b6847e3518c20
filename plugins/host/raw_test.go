package host_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/plugins/wire"
)

// playRaw plays what the SDK does not let one do.
func playRaw(part string, args []string) bool {
	switch part {
	case "raw": // misbehaves in the calls
		serveRaw(args[0], nil)
	case "own-tls": // has a certificate that the handshake does not tell of
		serveRaw("", func() (*tls.Config, error) { return &tls.Config{InsecureSkipVerify: true}, nil })
	case "greet": // says what it is told for a handshake
		fmt.Println(strings.ReplaceAll(args[0], "DIR", os.Getenv(plugin.EnvUnixSocketDir)))
		select {}
	case "plaintext": // knows no TLS
		l, err := net.Listen("unix", filepath.Join(os.Getenv(plugin.EnvUnixSocketDir), "plugin"))
		if err != nil {
			panic(err)
		}
		s := grpc.NewServer()
		providerv1.RegisterProviderServer(s, &raw{})
		fmt.Printf("1|1|unix|%s|grpc|\n", l.Addr())
		panic(s.Serve(l))
	case "described": // describes itself as it is told
		kind := obedientKind()
		kind.Check, kind.Settings = nil, nil
		if err := json.Unmarshal([]byte(args[0]), &kind); err != nil {
			panic(err)
		}
		sdk.Serve(kind)
	default:
		return false
	}
	return true
}

func serveRaw(what string, provide func() (*tls.Config, error)) {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  wire.Handshake,
		VersionedPlugins: map[int]plugin.PluginSet{wire.Version: {wire.PluginName: &rawPlugin{raw: raw{what: what}}}},
		TLSProvider:      provide,
		Logger:           hclog.NewNullLogger(),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.ForceServerCodecV2(rawCodec{encoding.GetCodecV2("proto")}))...)
		},
	})
}

type rawPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	raw raw
}

func (p *rawPlugin) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	providerv1.RegisterProviderServer(s, &p.raw)
	return nil
}

func (p *rawPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

// rawReply is sent as it is.
type rawReply mem.BufferSlice

type rawCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(rawReply); ok {
		return mem.BufferSlice(r), nil
	}
	return c.CodecV2.Marshal(v)
}

// raw is a provider that misbehaves in one way whenever a batch begins with "misbehave".
type raw struct {
	providerv1.UnimplementedProviderServer
	what string
}

func (r *raw) Describe(context.Context, *providerv1.DescribeRequest) (*providerv1.DescribeResponse, error) {
	return &providerv1.DescribeResponse{Kind: &providerv1.Kind{Name: "raw", Channel: "test", MaxBatch: 100,
		Settings: []*providerv1.Setting{{Name: "key", Secret: true}}}, Features: &providerv1.Features{Check: true, Http: true}}, nil
}

func (r *raw) Open(context.Context, *providerv1.OpenRequest) (*providerv1.OpenResponse, error) {
	if r.what == "http-elsewhere" {
		return &providerv1.OpenResponse{Http: "unix:/var/run/docker.sock"}, nil
	}
	return &providerv1.OpenResponse{}, nil
}

func (r *raw) Check(context.Context, *providerv1.CheckRequest) (*providerv1.CheckResponse, error) {
	return nil, status.Error(codes.Internal, "no idea")
}

func (r *raw) Health(ctx context.Context, _ *providerv1.HealthRequest) (*providerv1.HealthResponse, error) {
	switch r.what {
	case "health-hangs":
		<-ctx.Done()
	case "health-fails":
		return nil, status.Error(codes.Unknown, "Traceback (most recent call last)")
	}
	return &providerv1.HealthResponse{Status: "splendid", Pool: &providerv1.PoolStats{Max: 7}}, nil
}

func (r *raw) Close(context.Context, *providerv1.CloseRequest) (*providerv1.CloseResponse, error) {
	return &providerv1.CloseResponse{Error: "I will not"}, nil
}

func (r *raw) Deliver(stream providerv1.Provider_DeliverServer) error {
	if r.what == "reads-nothing" {
		<-stream.Context().Done()
		return nil
	}
	var ids []string
	misbehave := false
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, m := range req.GetMessages() {
			ids = append(ids, m.GetId())
			misbehave = misbehave || m.GetBody() == "misbehave"
		}
		if !req.GetMore() {
			break
		}
	}
	if misbehave {
		return r.misbehave(stream, ids)
	}
	out := &providerv1.DeliverResponse{}
	for _, id := range ids {
		out.Results = append(out.Results, accepted(id))
	}
	return stream.Send(out)
}

func accepted(id string) *providerv1.Result {
	return &providerv1.Result{Id: id, Outcome: providerv1.Outcome_OUTCOME_ACCEPTED, ProviderId: strconv.Itoa(os.Getpid())}
}

// misbehave answers the first message as it should be, and then does what it is there for.
func (r *raw) misbehave(stream providerv1.Provider_DeliverServer, ids []string) error {
	send := func(rs ...*providerv1.Result) error { return stream.Send(&providerv1.DeliverResponse{Results: rs}) }
	if err := send(accepted(ids[0])); err != nil {
		return err
	}
	switch r.what {
	case "prints": // over go-plugin's stream, which the SDK does without
		fmt.Println("a line on the standard output")
		fmt.Fprint(os.Stderr, strings.Repeat("z", 300_000), "\n")
	case "prints-much":
		for range 5000 {
			fmt.Println("one of many")
		}
		fmt.Print("without an end: " + strings.Repeat("z", 300_000))
	case "strange-ids":
		return send(accepted("nobody"), accepted(""), accepted(ids[1]))
	case "twice":
		second := accepted(ids[0])
		second.Outcome = providerv1.Outcome_OUTCOME_REJECTED
		return send(second, accepted(ids[1]))
	case "negative":
		second := accepted(ids[1])
		second.After, second.Parts = durationpb.New(-5*time.Second), -3
		return send(second)
	case "outcome":
		second := accepted(ids[1])
		second.Outcome = 99
		return send(second)
	case "utf8":
		id := ids[1]
		result := append([]byte{1<<3 | 2, byte(len(id))}, id...)
		result = append(result, 4<<3|2, 3, 'a', 0xff, 0xfe)
		return stream.SendMsg(rawReply{mem.SliceBuffer(append([]byte{1<<3 | 2, byte(len(result))}, result...))})
	case "garbage":
		return stream.SendMsg(rawReply{mem.SliceBuffer("\xff\xff\xff\xff\xff this is not protobuf")})
	case "huge":
		part := mem.SliceBuffer(make([]byte, 1<<20))
		var reply rawReply
		for range 600 {
			reply = append(reply, part)
		}
		return stream.SendMsg(reply)
	case "endless":
		many := make([]*providerv1.Result, 100)
		for i := range many {
			many[i] = accepted("nobody-" + strconv.Itoa(i))
		}
		for {
			if err := send(many...); err != nil {
				return err
			}
		}
	case "empty":
		for {
			if err := send(); err != nil {
				return err
			}
		}
	case "never-ends":
		<-stream.Context().Done()
		return nil
	case "status":
		return status.Error(codes.Unknown, "could not reach +491510000001 with sesame-sesame")
	}
	return nil // it just ends
}
