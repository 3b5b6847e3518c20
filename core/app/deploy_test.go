package app_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/coretest"
)

const deployDir = "../../deploy"

// documents are the objects of a YAML file.
func documents(t *testing.T, file string) (out []map[string]any) {
	t.Helper()
	f, err := os.Open(filepath.Join(deployDir, file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := yaml.NewDecoder(f); ; {
		var one map[string]any
		switch err := d.Decode(&one); {
		case errors.Is(err, io.EOF):
			return out
		case err != nil:
			t.Fatalf("%s: %v", file, err)
		}
		out = append(out, one)
	}
}

// at finds a value by its path; a number is an index.
func at(v any, path ...string) any {
	for _, p := range path {
		switch x := v.(type) {
		case map[string]any:
			v = x[p]
		case []any:
			i, err := strconv.Atoi(p)
			if err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// environment makes texts of a map of variables.
func environment(v any) (out []string) {
	m, _ := v.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s=%v", name, m[name]))
	}
	return out
}

// loaded reads a deployment's settings as the program would, and refuses what the program would only warn of.
func loaded(t *testing.T, file string, environ []string) config.Config {
	t.Helper()
	c, warnings, err := config.Load(config.Source{File: filepath.Join(deployDir, file), Environ: environ})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%s with %v: %v %v", file, environ, err, warnings)
	}
	return c
}

// grace checks that a deployment gives a process the time that its settings let it take to stop.
func grace(t *testing.T, where string, given time.Duration, c config.Config) {
	t.Helper()
	if needs := c.DrainDelay + c.ShutdownTimeout; given < needs+5*time.Second {
		t.Errorf("%s gives %s to stop, but the settings take %s", where, given, needs)
	}
}

// TestDeployKubernetes holds the manifests and the program together: the settings are ones, ports and probes are
// those that the program serves, selectors find their pods, and there is time to stop in.
func TestDeployKubernetes(t *testing.T) {
	t.Parallel()
	secret := environment(at(documents(t, "kubernetes/secret.example.yaml")[0], "stringData"))
	c := loaded(t, "kubernetes/carillon.yaml", append(secret, "CARILLON_LISTEN=0.0.0.0:8080", "CARILLON_DATA=/var/lib/carillon"))
	if c.DrainDelay <= 0 || c.MetricsListen != "0.0.0.0:9090" {
		t.Errorf("drain_delay %s, metrics_listen %s", c.DrainDelay, c.MetricsListen)
	}
	for _, name := range []string{"orchestrator", "worker"} {
		var pod map[string]any
		all := documents(t, "kubernetes/"+name+".yaml")
		kinds := map[string]bool{}
		for _, d := range all {
			kind := d["kind"].(string)
			kinds[kind] = true
			if kind == "Deployment" {
				pod = at(d, "spec", "template").(map[string]any)
				if at(d, "spec", "strategy", "rollingUpdate", "maxUnavailable") != 0 {
					t.Errorf("%s: an upgrade takes a pod away before another is there", name)
				}
			}
		}
		for _, kind := range []string{"Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler"} {
			if !kinds[kind] {
				t.Errorf("%s has no %s", name, kind)
			}
		}
		labels := at(pod, "metadata", "labels").(map[string]any)
		for _, d := range all {
			selector, _ := at(d, "spec", "selector").(map[string]any)
			if m, ok := selector["matchLabels"].(map[string]any); ok {
				selector = m
			}
			for k, v := range selector {
				if labels[k] != v {
					t.Errorf("%s: the selector of its %s finds no pod", name, d["kind"])
				}
			}
			if d["kind"] == "HorizontalPodAutoscaler" && at(d, "spec", "scaleTargetRef", "name") != name {
				t.Errorf("%s: its autoscaler scales %v", name, at(d, "spec", "scaleTargetRef", "name"))
			}
		}
		seconds := at(pod, "spec", "terminationGracePeriodSeconds").(int)
		grace(t, "kubernetes/"+name, time.Duration(seconds)*time.Second, c)
		container := at(pod, "spec", "containers", "0")
		ports := map[string]int{}
		for _, p := range at(container, "ports").([]any) {
			ports[at(p, "name").(string)] = at(p, "containerPort").(int)
		}
		for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
			port, _ := at(container, probe, "httpGet", "port").(string)
			path := at(container, probe, "httpGet", "path")
			if ports[port] == 0 || path != "/livez" && path != "/readyz" {
				t.Errorf("%s: its %s asks %v at %s", name, probe, path, port)
			}
		}
		// Kubernetes takes a pod out after so long, and the drain has to last longer.
		notice := time.Duration(at(container, "readinessProbe", "periodSeconds").(int)*at(container, "readinessProbe", "failureThreshold").(int)) * time.Second
		if c.DrainDelay < 2*notice {
			t.Errorf("%s: drain_delay %s is too short for a readiness that is noticed in %s", name, c.DrainDelay, notice)
		}
		if args := at(container, "args").([]any); args[0] != name || args[2] != "/etc/carillon/carillon.yaml" {
			t.Errorf("%s is started with %v", name, args)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "kubectl", "kustomize", deployDir+"/kubernetes").CombinedOutput(); err != nil {
		if _, missing := exec.LookPath("kubectl"); missing != nil {
			t.Log("kubectl is not installed; kustomization.yaml was not built")
		} else {
			t.Errorf("kubectl kustomize: %v: %s", err, out)
		}
	}
}

// TestDeployCompose does the same for the compose file.
func TestDeployCompose(t *testing.T) {
	t.Parallel()
	values := map[string]string{}
	text, err := os.ReadFile(filepath.Join(deployDir, "compose/example.env"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[name] = value
		}
	}
	services := at(documents(t, "compose/compose.yaml")[0], "services").(map[string]any)
	for _, name := range []string{"orchestrator", "worker"} {
		s := services[name]
		var environ []string
		for _, kv := range environment(at(s, "environment")) {
			environ = append(environ, os.Expand(kv, func(ref string) string {
				variable, _, _ := strings.Cut(ref, ":?")
				if values[variable] == "" {
					t.Errorf("example.env has no %s", variable)
				}
				return values[variable]
			}))
		}
		c := loaded(t, "compose/carillon.yaml", append(environ, "CARILLON_LISTEN=0.0.0.0:8080"))
		if c.IsSQLite() || c.Queue.Reveal() == config.QueueEmbedded {
			t.Errorf("%s: store and queue are not shared", name)
		}
		given, err := time.ParseDuration(at(s, "stop_grace_period").(string))
		if err != nil {
			t.Fatal(err)
		}
		grace(t, "compose/"+name, given, c)
	}
}

// TestDeploySystemd has systemd itself read the units, with our programs where they say, and judge how exposed
// they are.
func TestDeploySystemd(t *testing.T) {
	t.Parallel()
	installed(t, "systemd-analyze")
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"orchestrator", "worker"} {
		file := "carillon-" + name + ".service"
		text, err := os.ReadFile(filepath.Join(deployDir, "systemd", file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "ExecStart=/usr/local/bin/"+name+" -config /etc/carillon/carillon.yaml\n") {
			t.Errorf("%s starts something else", file)
		}
		if head, _, _ := strings.Cut(string(text), "[Service]"); !strings.Contains(head, "\nStartLimitIntervalSec=0\n") {
			t.Errorf("systemd gives %s up when PostgreSQL or Redis is away for five starts", file)
		}
		unit := filepath.Join(dir, file)
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/", bin+"/")), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v: %s", err, out)
		}
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold=20", unit).CombinedOutput()
		if err != nil {
			t.Errorf("its exposure is above 2.0: %v: %s", err, out)
		}
		stop, ok := strings.CutPrefix(lineOf(string(text), "TimeoutStopSec="), "TimeoutStopSec=")
		seconds, err := strconv.Atoi(stop)
		if !ok || err != nil {
			t.Fatalf("%s: TimeoutStopSec is %q", file, stop)
		}
		grace(t, file, time.Duration(seconds)*time.Second, config.Config{DrainDelay: 30 * time.Second, ShutdownTimeout: config.Default().ShutdownTimeout})
	}
}

// lineOf is the line that begins with something.
func lineOf(text, begin string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, begin) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// TestDeployRuns starts both programs with the settings of the Kubernetes manifests, on a real Redis and
// PostgreSQL in place of the example's, and asks what its probes ask.
func TestDeployRuns(t *testing.T) {
	t.Parallel()
	api, metrics := coretest.FreeAddr(t), []string{coretest.FreeAddr(t), coretest.FreeAddr(t)}
	file, err := filepath.Abs(filepath.Join(deployDir, "kubernetes/carillon.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"CARILLON_STORE=" + coretest.Postgres(t), "CARILLON_QUEUE=redis://" + coretest.Redis(t), "CARILLON_API_KEY=" + testKey,
		"CARILLON_ROUTES__WEBSOCKET__SETTINGS__SECRET=0123456789abcdef0123456789abcdef", "CARILLON_LISTEN=" + api, "CARILLON_DRAIN_DELAY=0s"}
	data := func(n int) []string {
		return append(slices.Clone(env), "CARILLON_DATA="+t.TempDir(), "CARILLON_METRICS_LISTEN="+metrics[n])
	}
	startProcess(t, "orchestrator", []string{"-config", file, "-workers=false"}, data(0))
	startProcess(t, "worker", []string{"-config", file}, data(1))
	for _, url := range []string{api + "/readyz", metrics[0] + "/livez", metrics[1] + "/livez", metrics[1] + "/readyz", metrics[1] + "/metrics"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s answered %d", url, resp.StatusCode)
		}
	}
}
