// Package providerv1 is the gRPC protocol between Carillon and a provider in a process of its own,
// version 1, generated from provider.proto. The version is in the name: what cannot be said by adding
// fields becomes providerv2 beside it.
package providerv1

//go:generate go tool -modfile=../../.ci/tools/proto/go.mod buf generate
