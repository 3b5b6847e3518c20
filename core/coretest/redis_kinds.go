package coretest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// StartRedisCluster starts a throw-away Redis Cluster of three nodes without replicas, each with a part of
// the slots, and arguments added to each one's command line.
func StartRedisCluster(t testing.TB, args ...string) []*RedisServer {
	t.Helper()
	nodes, addrs := startNodes(t, 3, args)
	joinNodes(t, nodes, addrs)
	return nodes
}

// RedisClusterTLS is StartRedisCluster for nodes that speak TLS on the addresses that are returned, to each
// other too, and plainly on their own, for the test's eyes.
func RedisClusterTLS(t testing.TB, with TLS, args ...string) (addrs []string, nodes []*RedisServer) {
	t.Helper()
	for range 3 {
		addr := FreeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		one, _ := startNodes(t, 1, slices.Concat(with.serve(port), []string{"--tls-cluster", "yes"}, args))
		addrs, nodes = append(addrs, addr), append(nodes, one...)
	}
	joinNodes(t, nodes, addrs, "--tls", "--cacert", with.CAFile)
	return addrs, nodes
}

// serve are the arguments of a server that speaks TLS on a port.
func (c TLS) serve(port string) []string {
	return []string{"--tls-port", port, "--tls-cert-file", c.CertFile, "--tls-key-file", c.KeyFile, "--tls-ca-cert-file", c.CAFile, "--tls-auth-clients", "no"}
}

// startNodes starts nodes that know nothing of each other.
func startNodes(t testing.TB, n int, args []string) (nodes []*RedisServer, addrs []string) {
	t.Helper()
	for range n {
		_, bus, _ := net.SplitHostPort(FreeAddr(t))
		s := StartRedis(t, append([]string{"--cluster-enabled", "yes", "--cluster-port", bus}, args...)...)
		nodes, addrs = append(nodes, s), append(addrs, s.Addr)
	}
	return nodes, addrs
}

// joinNodes makes a cluster of them and waits until each knows it.
func joinNodes(t testing.TB, nodes []*RedisServer, addrs []string, options ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	command := slices.Concat([]string{"--cluster", "create"}, addrs, []string{"--cluster-replicas", "0", "--cluster-yes"}, options)
	if out, err := exec.CommandContext(ctx, "redis-cli", command...).CombinedOutput(); err != nil {
		t.Fatalf("make a Redis Cluster: %v: %s", err, out)
	}
	for _, s := range nodes {
		s.do(func(ctx context.Context, c *redis.Client) error {
			info, err := c.ClusterInfo(ctx).Result()
			if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384")) {
				err = errNotYet
			}
			return err
		})
	}
}

// LoseNode loses a node of a Redis Cluster, by Kill or Pause, and gives its slots to the next one, as an administrator
// would. It returns when the living agree on it.
func LoseNode(t testing.TB, nodes []*RedisServer, dead int, lose func(*RedisServer)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var slots []redis.SlotRange
	clients := make([]*redis.Client, len(nodes))
	for i, n := range nodes {
		clients[i] = redis.NewClient(&redis.Options{Addr: n.Addr})
		defer func() { _ = clients[i].Close() }()
	}
	shards, err := clients[dead].ClusterShards(ctx).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shards {
		if ShardAddr(s) == nodes[dead].Addr {
			slots = s.Slots
		}
	}
	heir := (dead + 1) % len(nodes)
	lose(nodes[dead])
	for _, r := range slots {
		for _, line := range []string{"DELSLOTSRANGE", "ADDSLOTSRANGE"} {
			if err := clients[heir].Do(ctx, "CLUSTER", line, r.Start, r.End).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := clients[heir].Do(ctx, "CLUSTER", "BUMPEPOCH").Err(); err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		for i != dead && !(agrees(ctx, c, nodes[heir].Addr, slots) && strings.Contains(c.ClusterInfo(ctx).Val(), "cluster_state:ok")) {
			if ctx.Err() != nil {
				t.Fatal("the living nodes do not agree who has the slots of the dead one")
			}
		}
	}
}

// ShardAddr is the address, host:port, of the node that has a part of a Redis Cluster's slots.
func ShardAddr(s redis.ClusterShard) string {
	return net.JoinHostPort(s.Nodes[0].IP, strconv.FormatInt(s.Nodes[0].Port, 10))
}

// agrees says whether a node holds that another has all of the slots.
func agrees(ctx context.Context, c *redis.Client, addr string, slots []redis.SlotRange) bool {
	for _, s := range c.ClusterShards(ctx).Val() {
		if ShardAddr(s) == addr {
			for _, r := range slots {
				if !slices.ContainsFunc(s.Slots, func(has redis.SlotRange) bool { return has.Start <= r.Start && r.End <= has.End }) {
					return false
				}
			}
			return true
		}
	}
	return false
}

var errNotYet = errors.New("not yet")

// TLS is a server certificate for 127.0.0.1 and localhost, in PEM files.
type TLS struct{ CAFile, CertFile, KeyFile string }

// NewTLS makes a certificate authority of the test's own and a certificate by it.
func NewTLS(t testing.TB) TLS {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ca, server := key(), key()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test server"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, ca.Public(), ca)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, server.Public(), ca)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(server)
	if err != nil {
		t.Fatal(err)
	}
	return TLS{CAFile: write("ca.pem", "CERTIFICATE", rootDER), CertFile: write("cert.pem", "CERTIFICATE", leafDER), KeyFile: write("key.pem", "EC PRIVATE KEY", keyDER)}
}

// RedisTLS starts a throw-away redis-server that speaks TLS on one address, with a certificate of NewTLS, and
// plainly on another, for the test's own eyes; with arguments added to its command line.
func RedisTLS(t testing.TB, with TLS, args ...string) (addr, plain string) {
	t.Helper()
	addr = FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	s := StartRedis(t, append(with.serve(port), args...)...)
	return addr, s.Addr
}

// SentinelTLS starts a throw-away Redis Sentinel that speaks TLS on one address and reaches what it watches by
// TLS, and plainly on another, for the test's own words.
func SentinelTLS(t testing.TB, with TLS) (addr, plain string) {
	t.Helper()
	addr = FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	return addr, StartSentinel(t, append(with.serve(port), "--tls-replication", "yes")...)
}
