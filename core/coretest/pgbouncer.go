package coretest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PgBouncer starts a PgBouncer before a server, in a pool_mode (session, transaction, statement) and with more lines for
// its settings, and returns the DSN of the server's one database through it. Where none is installed the test is skipped, or fails if CARILLON_REQUIRE_SERVERS is 1. It
// stops when the test ends.
func PgBouncer(t testing.TB, server *PostgresServer, mode string, more ...string) string {
	t.Helper()
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		if bin = "/usr/sbin/pgbouncer"; !exists(bin) { // not on everybody's path
			if os.Getenv(RequireServers) == "1" {
				t.Fatal("pgbouncer is not installed, and " + RequireServers + " is 1")
			}
			t.Skip("pgbouncer is not installed")
		}
	}
	dir, err := os.MkdirTemp("", pgDirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	conf := filepath.Join(dir, "pgbouncer.ini")
	text := fmt.Sprintf("[databases]\n* = host=%s user=postgres\n[pgbouncer]\nlisten_addr =\nunix_socket_dir = %s\nauth_type = any\npool_mode = %s\n%s\n", server.dir, dir, mode, strings.Join(more, "\n"))
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil { //nolint:gosec // it runs as another user, and there is no secret in it
		t.Fatal(err)
	}
	if server.cred != nil {
		if err := os.Chown(dir, int(server.cred.Uid), int(server.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(bin, conf)
	var log bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: server.cred}
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !listens(ctx, filepath.Join(dir, ".s.PGSQL.6432")) { // the file is there before it is listened on
		select {
		case <-gone:
			t.Fatalf("pgbouncer ended: %s", log.String())
		case <-ctx.Done():
			t.Fatal("pgbouncer did not listen within a minute")
		case <-tick.C:
		}
	}
	return "postgres://postgres@/postgres?host=" + dir + "&port=6432&sslmode=disable"
}

func listens(ctx context.Context, socket string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
