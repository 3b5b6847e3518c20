// Package wire is the contract of package providers over gRPC, both halves: Server plays a
// providers.Kind to a host, Client is what the host holds of it. It is the only place that converts
// between the contract and package providerv1. What crosses is data: an Outcome that the other side does
// not know is Unknown, an error of the provider's is a text, and a gRPC status speaks of the connection
// alone.
package wire

import (
	"context"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/carillon-notify/carillon/plugins/providerv1"
)

// Version is the newest protocol that this package speaks.
const Version = 1

// PluginName is the name under which go-plugin dispenses a provider.
const PluginName = "provider"

// Handshake is what a host and a plugin of Carillon know each other by. It is no secret: it keeps a
// plugin that somebody runs by hand from waiting for a host that is not there.
var Handshake = plugin.HandshakeConfig{
	MagicCookieKey:   "CARILLON_PLUGIN",
	MagicCookieValue: "8c1f0e5a4d7b4b0e9f5d2c6a3b1e7f90",
}

// Versions are the protocols by their number, for go-plugin's negotiation. A host gives nil; a plugin
// gives what it serves.
func Versions(s *Server) map[int]plugin.PluginSet {
	return map[int]plugin.PluginSet{Version: {PluginName: &glue{server: s}}}
}

// glue is go-plugin's view of a provider.
type glue struct {
	plugin.NetRPCUnsupportedPlugin
	server *Server
}

// GRPCServer implements plugin.GRPCPlugin.
func (g *glue) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	providerv1.RegisterProviderServer(s, g.server)
	return nil
}

// GRPCClient implements plugin.GRPCPlugin. It returns a *Client.
func (g *glue) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return NewClient(conn), nil
}
