package host_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
)

// play is the main of a plugin.
func play(part string, args []string) {
	switch part {
	case "obedient":
		sdk.Serve(obedientKind())
	case "chatty": // prints before and while it shakes hands
		fmt.Println("Loading model weights ... 100 %")
		fmt.Print("no newline at the end of this one")
		_, _ = syscall.Write(1, []byte("\n"+strings.Repeat("x", 300_000)+"\n"))
		sdk.Serve(obedientKind())
	case "exit":
		fmt.Fprintln(os.Stderr, "ModuleNotFoundError: No module named 'grpc'")
		os.Exit(7)
	case "exit-without": // until a file is there
		if _, err := os.Stat(args[0]); err != nil {
			os.Exit(7)
		}
		sdk.Serve(obedientKind())
	case "mute": // never shakes hands
		select {}
	case "glutton": // takes memory before anything else
		leak(context.Background())
	case "sleeper":
		select {}
	case "eater":
		held := bytes.Repeat([]byte("y"), 500<<20)
		for range time.Tick(time.Hour) {
			_ = held[0]
		}
	case "environment": // leaves what it sees in a file
		environment(args[0])
		sdk.Serve(obedientKind())
	case "shape-shifter": // is of another kind once a file is there
		kind := obedientKind()
		if _, err := os.Stat(args[0]); err == nil {
			kind.Name = "other"
		}
		sdk.Serve(kind)
	case "receiver":
		sdk.Serve(receiverKind(args[0]))
	case "server":
		sdk.Serve(serverKind())
	case "apns":
		serveAPNs()
	case "sandbox":
		serveSandbox(args[0])
	case "host":
		playHost(args[0])
	default:
		if !playRaw(part, args) {
			fmt.Fprintln(os.Stderr, "there is no such part:", part)
			os.Exit(2)
		}
	}
}

// obedientKind is a kind whose messages say in their body what is to become of them.
func obedientKind() providers.Kind {
	return providers.Kind{
		Name: "obedient", Channel: "test", MaxBatch: 100, Address: ".+",
		Settings: []providers.Setting{{Name: "greeting", Type: providers.String}, {Name: "key", Type: providers.String, Secret: true}},
		Check: func(m *providers.Message) error {
			switch m.Body {
			case "refuse":
				return fmt.Errorf("the body must not be said to %s", m.Address)
			case "deaf":
				select {}
			}
			return nil
		},
		Open: func(_ context.Context, settings []byte) (providers.Provider, error) {
			var s struct{ Greeting, Key string }
			if err := json.Unmarshal(settings, &s); err != nil {
				return nil, err
			}
			switch s.Greeting {
			case "wrong":
				return nil, fmt.Errorf("greeting: %q is not polite; neither is %s", s.Greeting, s.Key)
			case "panic":
				panic("while it was opened")
			case "exit":
				os.Exit(4)
			case "hang":
				select {}
			}
			return &obedient{key: s.Key}, nil
		},
	}
}

type obedient struct{ key string }

func (o *obedient) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	accept := func(m *providers.Message, pid int) {
		report(providers.Result{ID: m.ID, Outcome: providers.Accepted, ProviderID: strconv.Itoa(pid)})
	}
	for i := range batch {
		m := &batch[i]
		order, what, _ := strings.Cut(m.Body, ":")
		switch order {
		case "exit":
			os.Exit(3)
		case "hang":
			<-ctx.Done()
			return ctx.Err()
		case "deaf":
			select {}
		case "panic":
			panic("as told: " + m.Address)
		case "panic-apart":
			wait(ctx, what)
			go panic("in a goroutine")
			<-ctx.Done()
		case "leak":
			leak(ctx)
		case "flood":
			flood(what)
			accept(m, os.Getpid())
		case "line":
			line := bytes.Repeat([]byte("y"), 300_000)
			_, _ = syscall.Write(1, line)
			_, _ = syscall.Write(2, line)
			accept(m, os.Getpid())
		case "child", "daemon":
			accept(m, bear("sleeper", order == "daemon", os.Environ()))
		case "eater":
			accept(m, bear("eater", false, os.Environ()))
		case "eater-apart":
			accept(m, bear("eater", true, os.Environ()))
		case "eater-bare":
			accept(m, bear("eater", true, []string{"A=B"}))
		case "say":
			say := strings.NewReplacer("KEY", o.key, "ADDRESS", m.Address).Replace(what)
			report(providers.Result{ID: m.ID, Outcome: providers.Rejected, Code: say, Reason: say, ProviderID: strings.ReplaceAll(say, m.Address, "")})
		case "log":
			say := strings.NewReplacer("KEY", o.key, "ADDRESS", m.Address, "TITLE", m.Title).Replace(what)
			slog.Info(say, "plugin", "another", "quoted", say)
			fmt.Fprintln(os.Stderr, say)
			accept(m, os.Getpid())
		case "error":
			return errors.New(strings.NewReplacer("KEY", o.key, "ADDRESS", m.Address).Replace(what))
		case "gate":
			wait(ctx, what)
			accept(m, os.Getpid())
		case "slow":
			d, _ := time.ParseDuration(what)
			<-time.After(d)
			accept(m, os.Getpid())
		default:
			accept(m, os.Getpid())
		}
	}
	return nil
}

func (o *obedient) Health(context.Context) providers.Health {
	return providers.Health{Status: providers.HealthOK, Pool: providers.PoolStats{Max: 3, Open: 1}}
}

func (o *obedient) Close(context.Context) error { return nil }

// leak takes 32 MiB after the other and keeps them.
func leak(ctx context.Context) {
	var kept [][]byte
	tick := time.NewTicker(20 * time.Millisecond)
	for ctx.Err() == nil {
		b := make([]byte, 32<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
		<-tick.C
	}
	_ = kept[len(kept)-1]
}

// flood writes so many megabytes of lines: to both descriptors, and to what Go calls its standard output.
func flood(megabytes string) {
	n, _ := strconv.Atoi(megabytes)
	lines := bytes.Repeat([]byte("a line of a flood that says nothing at all, and that often\n"), 1<<20/60)
	for range n {
		_, _ = syscall.Write(1, lines)
		_, _ = syscall.Write(2, lines)
	}
	for range n {
		_, _ = os.Stdout.Write(lines)
	}
}

// bear starts a process that holds our standard output and error, in our group or in a session of its own.
func bear(part string, daemon bool, environ []string) int {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, "play", part)
	cmd.Env = environ
	cmd.Stdout, cmd.Stderr = os.NewFile(1, "stdout"), os.NewFile(2, "stderr")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: daemon}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	return cmd.Process.Pid
}

// wait waits until a file is there.
func wait(ctx context.Context, path string) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if _, err := os.Stat(path); err == nil {
			return
		}
		<-tick.C
	}
}

// sight is what a plugin sees of the world.
type sight struct {
	Environ []string
	Files   map[string]string // what its descriptors lead to
	DirMode os.FileMode       // of the directory of its socket
}

func environment(path string) {
	s := sight{Environ: os.Environ(), Files: map[string]string{}}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil {
			s.Files[fd.Name()] = to
		}
	}
	if info, err := os.Stat(os.Getenv("PLUGIN_UNIX_SOCKET_DIR")); err == nil {
		s.DirMode = info.Mode()
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
