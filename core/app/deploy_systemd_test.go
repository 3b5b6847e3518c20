package app_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/coretest"
)

// machine is a container in which systemd itself is the first process. Its root is this machine's, as it is read;
// what it writes is gone with it. The network is this machine's.
type machine struct {
	t   *testing.T
	pid string // of its systemd
}

// bootScript makes the root, $1, and starts systemd in it: in a mount namespace of its own, so that nothing is left.
const bootScript = `set -e
mount -t tmpfs -o size=256m tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
rm -f "$1"/root/etc/systemd/system/*.wants/* "$1/root/etc/hostname"
: >"$1/root/etc/machine-id"
cp -r "$2/." "$1/root/"
root=$1
shift 2
exec systemd-nspawn --quiet --register=no --keep-unit --console=pipe --directory="$root/root" "$@" --boot systemd.unit=basic.target`

// bootMachine boots a container whose root has the files of a directory besides, and the further ones of binds
// ("here:there"). It takes root, and is left out where the machine allows no such container.
func bootMachine(t *testing.T, files string, binds ...string) *machine {
	t.Helper()
	installed(t, "systemd-nspawn")
	if os.Geteuid() != 0 {
		t.Skip("a container in which systemd is the first process takes root")
	}
	root := t.TempDir()
	args := []string{"--mount", "--propagation", "private", "sh", "-c", bootScript, "boot", root, files}
	for _, b := range binds {
		args = append(args, "--bind-ro="+b)
	}
	cmd := exec.Command("unshare", args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := coretest.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	m := &machine{t: t}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // systemd-nspawn tells it to shut down
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("the container said:\n%s", log.Bytes())
		}
	})
	eventually(t, time.Minute, "systemd is up", func() bool {
		select {
		case <-ended:
			// A container around us may allow no such mounts or control groups; whatever else it is, is to be mended.
			if said := log.String(); strings.Contains(said, "not permitted") || strings.Contains(said, "ermission denied") || strings.Contains(said, "Read-only") {
				t.Skipf("this machine runs no container in which systemd is the first process: %s", said)
			}
			t.Fatalf("the container ended: %s", log.Bytes())
		default:
		}
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		for _, pid := range strings.Fields(string(children)) {
			m.pid = pid
		}
		if m.pid == "" {
			return false
		}
		state, _ := m.try("systemctl", "is-active", "basic.target")
		return strings.TrimSpace(state) == "active"
	})
	return m
}

// try runs a command in the container.
func (m *machine) try(args ...string) (string, error) {
	out, err := exec.CommandContext(m.t.Context(), "nsenter", append([]string{"--target", m.pid, "--all", "--"}, args...)...).CombinedOutput()
	return string(out), err
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		log, _ := m.try("journalctl", "--no-pager", "-n", "40", "-o", "cat")
		m.t.Fatalf("%s: %v: %s\n%s", args, err, out, log)
	}
	return strings.TrimSpace(out)
}

// property is one of a unit's.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property", name, unit)
}

// inside says whether a command line has a process in a unit's group.
func (m *machine) inside(unit, line string) bool {
	status, _ := m.try("systemctl", "status", "--no-pager", "--full", "--lines=0", unit) // fails for a unit that is not up
	return strings.Contains(status, line)
}

// installedFiles are those that the README says to install, with settings whose services are the test's own.
func installedFiles(t *testing.T, settings, environment string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"carillon-orchestrator.service", "carillon-worker.service"} {
		text, err := os.ReadFile(filepath.Join(deployDir, "systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		write("etc/systemd/system/"+name, string(text), 0o644)
	}
	write("etc/carillon/carillon.yaml", settings, 0o644)
	write("etc/carillon/carillon.env", environment, 0o600)
	return dir
}

// TestDeploySystemdRuns has systemd itself run both units in a container, confined as they say, on a real PostgreSQL
// and Redis of which one is away at first: they come up when it does, isolated providers and plugins start and
// deliver, what is killed is started again with nothing left of it, a reload takes, and a stop ends in order.
func TestDeploySystemdRuns(t *testing.T) {
	t.Parallel()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	webhook, err := webhookPlugin()
	if err != nil {
		t.Fatal(err)
	}
	pg, redis := coretest.StartPostgres(t, ""), coretest.StartRedis(t)
	link, api := coretest.StartProxy(t, "unix:"+pg.Socket()), coretest.FreeAddr(t)
	link.Cut()
	const settings = `drain_delay: 500ms
workers: false
routes:
  websocket: {kind: websocket, isolation: none, settings: {secret: 0123456789abcdef0123456789abcdef}}
  email: {kind: email, isolation: process, memory: 256MiB, settings: {addr: "127.0.0.1:9", tls: none, from: a@example.com}}
  hook: {command: /usr/local/bin/webhook, memory: 256MiB, settings: {secrets: ["whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="]}}
`
	environment := "CARILLON_STORE=" + pg.DSN(link.Addr) + "\nCARILLON_QUEUE=redis://" + redis.Addr + "/0\nCARILLON_API_KEY=" + testKey + "\nCARILLON_LISTEN=" + api + "\n"
	files := installedFiles(t, settings, environment)
	m := bootMachine(t, files, bin+"/orchestrator:/usr/local/bin/orchestrator", bin+"/worker:/usr/local/bin/worker", webhook+":/usr/local/bin/webhook")
	m.run("useradd", "--system", "--home-dir", "/var/lib/carillon", "--shell", "/usr/sbin/nologin", "carillon")
	units := []string{"carillon-orchestrator", "carillon-worker"}

	m.run("systemctl", "start", units[0], units[1])
	eventually(t, time.Minute, "a start without PostgreSQL is tried again", func() bool {
		return m.property(units[0], "NRestarts") > "0" && m.property(units[1], "NRestarts") > "0"
	})
	link.Heal()
	eventually(t, time.Minute, "it is ready", func() bool { return answers("http://" + api + "/readyz") })
	eventually(t, time.Minute, "the providers' processes are there", func() bool {
		return m.inside(units[1], "worker provider email") && m.inside(units[1], "/usr/local/bin/webhook")
	})
	c := newCaller(t, "http://"+api)
	var acked accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"kind":"webhook","address":"https://127.0.0.1:9/x"}],"content":{"title":"confined"}}`, &acked, http.StatusAccepted)
	eventually(t, time.Minute, "the plugin has judged the address", func() bool { return c.deliveries(acked.ID)[0].State == "failed" })

	worker := m.property(units[1], "MainPID")
	status := m.run("cat", "/proc/"+worker+"/status")
	for _, line := range []string{"CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, line) {
			t.Errorf("the worker's status has no %q:\n%s", line, status)
		}
	}
	m.run("kill", "-KILL", worker)
	eventually(t, time.Minute, "the worker is started again with its providers", func() bool {
		now := m.property(units[1], "MainPID")
		return now != "0" && now != worker && m.inside(units[1], "worker provider email") && m.inside(units[1], "/usr/local/bin/webhook")
	})

	m.run("sed", "-i", "/^  hook:/d", "/etc/carillon/carillon.yaml")
	m.run("systemctl", "reload", units[0], units[1])
	eventually(t, time.Minute, "a reload takes the plugin away", func() bool { return !m.inside(units[1], "/usr/local/bin/webhook") })
	for _, unit := range units {
		m.run("systemctl", "stop", unit)
		if result, code := m.property(unit, "Result"), m.property(unit, "ExecMainStatus"); result != "success" || code != "0" {
			t.Errorf("%s was stopped: %s, exit code %s", unit, result, code)
		}
		if pids := m.property(unit, "ControlGroup"); pids != "" {
			t.Errorf("%s has left its group %s", unit, pids)
		}
	}
	if conn, err := net.Dial("tcp", api); err == nil {
		conn.Close()
		t.Error("somebody listens still")
	}
}

// answers says whether a URL answers 200.
func answers(url string) bool {
	resp, err := http.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
