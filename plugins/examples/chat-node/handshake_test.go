package chat_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// TestStockGoPlugin has hashicorp's own host start the plugin, ping it, speak to it and end it.
func TestStockGoPlugin(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(installed(t))
	client := plugin.NewClient(&plugin.ClientConfig{HandshakeConfig: wire.Handshake, VersionedPlugins: wire.Versions(nil), Cmd: cmd,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, AutoMTLS: true, StartTimeout: time.Minute, Logger: hclog.NewNullLogger(),
		// go-plugin names a directory to plugins only where it has a runner.
		SkipHostEnv: true})
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PLUGIN_UNIX_SOCKET_DIR=" + shortDir(t)}
	defer client.Kill()
	protocol, err := client.Client()
	if err != nil {
		t.Fatal(err)
	}
	if err := protocol.Ping(); err != nil {
		t.Errorf("ping: %v", err)
	}
	raw, err := protocol.Dispense(wire.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), waiting)
	defer cancel()
	kind, features, err := raw.(*wire.Client).Describe(ctx)
	if err != nil || kind.Name != "chat" || features != (wire.Features{Check: true}) {
		t.Errorf("described as %q with %+v, %v", kind.Name, features, err)
	}
	client.Kill()
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("Shutdown ended it as %s", cmd.ProcessState)
	}
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "chat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// identity is a certificate such as go-plugin makes for a host.
func identity(t *testing.T) (cert tls.Certificate, inPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost", Organization: []string{"HashiCorp"}}, DNSNames: []string{"localhost"},
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement | x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true, SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// raw is a plugin that was started by hand, as docs/plugins-protocol.md says.
type raw struct {
	cmd    *exec.Cmd
	fields []string // of its line
	leaf   *x509.Certificate
	own    tls.Certificate
	output *strings.Builder // its standard error; read it after done
	done   chan struct{}
}

// start starts the plugin with what go-plugin gives it, change laid over, and reads its line, which has no
// fields if it ended instead.
func start(t *testing.T, change map[string]string) *raw {
	t.Helper()
	own, inPEM := identity(t)
	env := map[string]string{"PATH": os.Getenv("PATH"), wire.Handshake.MagicCookieKey: wire.Handshake.MagicCookieValue,
		"PLUGIN_MIN_PORT": "10000", "PLUGIN_MAX_PORT": "25000", "PLUGIN_PROTOCOL_VERSIONS": "1",
		"PLUGIN_CLIENT_CERT": inPEM, "PLUGIN_UNIX_SOCKET_DIR": shortDir(t)}
	for k, v := range change {
		env[k] = v
	}
	r := &raw{cmd: exec.Command(installed(t)), own: own, output: &strings.Builder{}, done: make(chan struct{})}
	for k, v := range env {
		r.cmd.Env = append(r.cmd.Env, k+"="+v)
	}
	r.cmd.Stderr = r.output
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.done
	})
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	go func() {
		defer close(r.done)
		_, _ = io.Copy(io.Discard, lines)
		_ = r.cmd.Wait()
	}()
	if err != nil {
		<-r.done
		return r
	}
	r.fields = strings.Split(strings.TrimSuffix(line, "\n"), "|")
	if len(r.fields) != 6 {
		t.Fatalf("it says %q, which is not of six fields", line)
	}
	der, err := base64.RawStdEncoding.DecodeString(r.fields[5])
	if err != nil {
		t.Fatalf("its certificate: %v", err)
	}
	if r.leaf, err = x509.ParseCertificate(der); err != nil {
		t.Fatalf("its certificate: %v", err)
	}
	return r
}

// dial connects with a certificate, or with none.
func (r *raw) dial(t *testing.T, certs ...tls.Certificate) *grpc.ClientConn {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(r.leaf)
	return r.dialWith(t, credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: certs, ServerName: "localhost", MinVersion: tls.VersionTLS12}))
}

func (r *raw) dialWith(t *testing.T, c credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+r.fields[3], grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (r *raw) provider(t *testing.T) providerv1.ProviderClient {
	t.Helper()
	return providerv1.NewProviderClient(r.dial(t, r.own))
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	dir := filepath.Dir(r.fields[3])
	if got := strings.Join(r.fields[:5], "|"); got != "1|1|unix|"+dir+"/grpc.sock|grpc" {
		t.Errorf("its line is %s", got)
	}
	info, err := os.Stat(r.fields[3])
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("its socket is %v, %v", info.Mode(), err)
	}
	key, ok := r.leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() || r.leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		t.Errorf("its key is %T, signed by %s", r.leaf.PublicKey, r.leaf.SignatureAlgorithm)
	}
	if r.leaf.NotAfter.Before(time.Now().AddDate(9, 0, 0)) {
		t.Errorf("its certificate ends on %s", r.leaf.NotAfter)
	}
	other := start(t, nil)
	if r.leaf.Equal(other.leaf) {
		t.Error("two processes have the same certificate")
	}
}

// TestStranger lets only the host's certificate in: not another one of the same name, not none, not plain text.
func TestStranger(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	stranger, _ := identity(t)
	for _, c := range []struct {
		name string
		conn *grpc.ClientConn
		let  bool
	}{
		{"the host", r.dial(t, r.own), true},
		{"no certificate", r.dial(t), false},
		{"another certificate", r.dial(t, stranger), false},
		{"its own certificate without the key", r.dial(t, tls.Certificate{Certificate: [][]byte{r.own.Certificate[0]}, PrivateKey: stranger.PrivateKey}), false},
		{"plain text", r.dialWith(t, insecure.NewCredentials()), false},
		{"the host again", r.dial(t, r.own), true},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), waiting)
		resp, err := providerv1.NewProviderClient(c.conn).Describe(ctx, &providerv1.DescribeRequest{})
		cancel()
		if c.let != (err == nil) || c.let != (resp.GetKind().GetName() == "chat") {
			t.Errorf("%s: %v, %v", c.name, resp, err)
		}
		if !c.let && status.Code(err) != codes.Unavailable {
			t.Errorf("%s got as far as %v", c.name, err)
		}
	}
}

// TestVersions has the newest common version chosen, and ours named where there is none.
func TestVersions(t *testing.T) {
	t.Parallel()
	for offered, want := range map[string]string{"3,1,2": "1", "2,3": "1"} {
		if got := start(t, map[string]string{"PLUGIN_PROTOCOL_VERSIONS": offered}).fields; len(got) < 2 || got[1] != want {
			t.Errorf("offered %q it says %v, want %s", offered, got, want)
		}
	}
}

// TestRefusesToStart where it could not be safe, and says why.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		change map[string]string
		want   string
	}{
		{map[string]string{"CARILLON_PLUGIN": ""}, "Carillon starts it"},
		{map[string]string{"PLUGIN_CLIENT_CERT": ""}, "PLUGIN_CLIENT_CERT"},
		{map[string]string{"PLUGIN_CLIENT_CERT": "no certificate"}, "the plugin cannot start"},
		{map[string]string{"PLUGIN_UNIX_SOCKET_DIR": "/nowhere"}, "the plugin cannot start"},
	} {
		r := start(t, c.change)
		if r.fields != nil {
			t.Errorf("%v: it started", c.change)
			continue
		}
		if r.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(r.output.String(), c.want) {
			t.Errorf("%v: %s, %s", c.change, r.cmd.ProcessState, r.output)
		}
	}
}

// TestServices asks for what is beside the provider's service.
func TestServices(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	conn := r.dial(t, r.own)
	ctx, cancel := context.WithTimeout(t.Context(), waiting)
	defer cancel()
	health := grpc_health_v1.NewHealthClient(conn)
	resp, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: plugin.GRPCServiceName})
	if err != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", resp, err)
	}
	if _, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of what is not there: %v", err)
	}
	p := providerv1.NewProviderClient(conn)
	stream, err := p.Receive(ctx)
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("Receive: %v", err)
	}
	if resp, err := p.Health(ctx, &providerv1.HealthRequest{}); err != nil || resp.GetStatus() != "ok" {
		t.Errorf("Health before Open: %v, %v", resp, err)
	}
	if err := outcomeOf(p.Deliver(ctx)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Deliver before Open: %v", err)
	}
	settings := []byte(`{"base_url":"http://127.0.0.1:1/"}`)
	for i, want := range []codes.Code{codes.OK, codes.FailedPrecondition} {
		if resp, err := p.Open(ctx, &providerv1.OpenRequest{Settings: settings}); status.Code(err) != want || resp.GetError() != "" {
			t.Errorf("Open %d: %v, %v", i, resp, err)
		}
	}
	if err := conn.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	<-r.done
	if code := r.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("Shutdown ended it as %s", r.cmd.ProcessState)
	}
}

// outcomeOf sends a batch of one, and says how the stream ended.
func outcomeOf(stream providerv1.Provider_DeliverClient, err error) error {
	if err != nil {
		return err
	}
	if err := stream.Send(&providerv1.DeliverRequest{Messages: []*providerv1.Message{{Id: "a", Address: "200", Body: "x"}}}); err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// TestStop ends a call each way that a host may, with one message answered, one on its way and two in line: its
// time is up, its side of the stream is closed, it is cancelled, it never sends the whole batch. Each time the
// process goes on.
func TestStop(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	p := start(t, nil).provider(t)
	all, cancel := context.WithTimeout(t.Context(), 2*waiting)
	defer cancel()
	settings := `{"base_url":"` + s.hooks() + `","timeout":"2m","pool":{"max":1}}`
	if resp, err := p.Open(all, &providerv1.OpenRequest{Settings: []byte(settings)}); err != nil || resp.GetError() != "" {
		t.Fatal(resp, err)
	}
	const text = "no answer came for 1 of 4 messages"
	answers := map[string]providerv1.Outcome{"a": providerv1.Outcome_OUTCOME_ACCEPTED, "c": providerv1.Outcome_OUTCOME_DEFERRED, "d": providerv1.Outcome_OUTCOME_DEFERRED}
	half := func(stream providerv1.Provider_DeliverClient, _ func()) { _ = stream.CloseSend() }
	for _, c := range []struct {
		name string
		time time.Duration
		more bool
		stop func(stream providerv1.Provider_DeliverClient, cancel func())
		want answer
	}{
		{"time is up", 5 * time.Second, false, nil, answer{answers, codes.OK, text}},
		{"half-closed", 0, false, half, answer{answers, codes.OK, text}},
		{"half-closed with time left", time.Minute, false, half, answer{answers, codes.OK, text}},
		{"cancelled", time.Minute, false, func(_ providerv1.Provider_DeliverClient, cancel func()) { cancel() }, answer{nil, codes.Canceled, ""}},
		{"not whole", time.Minute, true, half, answer{map[string]providerv1.Outcome{}, codes.InvalidArgument, ""}},
	} {
		ctx, cancel := context.WithCancel(all)
		req := &providerv1.DeliverRequest{More: c.more, Messages: []*providerv1.Message{{Id: "a", Address: "200", Body: "x"},
			{Id: "b", Address: "hang", Body: "x"}, {Id: "c", Address: "200", Body: "x"}, {Id: "d", Address: "200", Body: "x"}}}
		if c.time > 0 {
			req.Timeout = durationpb.New(c.time)
		}
		stream, err := p.Deliver(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		if !c.more { // "a" and "b" get to the service
			for range 2 {
				<-s.posts
			}
		}
		if c.stop != nil {
			c.stop(stream, cancel)
		}
		got := read(stream)
		if c.want.outcomes == nil {
			got.outcomes = nil // some may have come before
		}
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(answer{})); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
		cancel()
	}
	if len(s.posts) != 0 {
		t.Errorf("%d messages were sent after the call was stopped", len(s.posts))
	}
	if _, err := p.Close(all, &providerv1.CloseRequest{}); err != nil {
		t.Error(err)
	}
}

// answer is what a stream had to say in all.
type answer struct {
	outcomes map[string]providerv1.Outcome
	status   codes.Code
	text     string
}

// read reads a stream to its end.
func read(stream providerv1.Provider_DeliverClient) answer {
	a := answer{outcomes: map[string]providerv1.Outcome{}}
	for {
		resp, err := stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				a.status = status.Code(err)
			}
			return a
		}
		a.text += resp.GetError()
		for _, r := range resp.GetResults() {
			a.outcomes[r.GetId()] = r.GetOutcome()
		}
	}
}

// TestRequests sends one batch in two requests, with a message above gRPC's own limit of 4 MiB.
func TestRequests(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	r := start(t, nil)
	p := r.provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), waiting)
	defer cancel()
	if resp, err := p.Open(ctx, &providerv1.OpenRequest{Settings: []byte(`{"base_url":"` + s.hooks() + `"}`)}); err != nil || resp.GetError() != "" {
		t.Fatal(resp, err)
	}
	stream, err := p.Deliver(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, req := range []*providerv1.DeliverRequest{
		{Messages: []*providerv1.Message{{Id: "a", Address: "200", Body: "x"}, {Id: "b", Address: "200", Body: strings.Repeat("x", 5<<20)}}, More: true},
		{Messages: []*providerv1.Message{{Id: "c", Address: "200", Body: "x"}}},
	} {
		if err := stream.Send(req); err != nil {
			t.Fatal(i, err)
		}
	}
	want := answer{outcomes: map[string]providerv1.Outcome{"a": providerv1.Outcome_OUTCOME_ACCEPTED, "b": providerv1.Outcome_OUTCOME_REJECTED,
		"c": providerv1.Outcome_OUTCOME_ACCEPTED}}
	if d := cmp.Diff(want, read(stream), cmp.AllowUnexported(answer{})); d != "" {
		t.Error(d)
	}
}

// BenchmarkDeliver measures a batch of a hundred through the host, the plugin and the stand-in.
func BenchmarkDeliver(b *testing.B) {
	s := serve(b, false)
	s.discard(b)
	p, _ := open(b, s.hooks(), nil)
	var batch []providers.Message
	for i := range 100 {
		batch = append(batch, message(fmt.Sprintf("id-%d", i), "200"))
	}
	for b.Loop() {
		if got, err := deliver(b, p, waiting, batch...); err != nil || len(got) != 100 {
			b.Fatal(len(got), err)
		}
	}
	b.ReportMetric(float64(b.N)*100/b.Elapsed().Seconds(), "msgs/s")
}
