package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
)

// dirPrefix begins the name of a plugin's private directory; the host's process id follows.
const dirPrefix = "carillon-plugin-"

// maxLine is how much of one line of output is kept.
const maxLine = 8 << 10

// drainAfter is how long the output of a process that ended is still read: what is left in its pipes, and
// what a grandchild that holds them writes. Then they are closed.
const drainAfter = 200 * time.Millisecond

// child is a process, its pipes, its process group and its private directory. It implements go-plugin's
// runner.Runner, which reads nothing of it but the one line of the handshake.
type child struct {
	spec *Spec
	dir  string // private; removed with the process
	cmd  *exec.Cmd
	file *os.File // the executable that was digested, if it is run by its descriptor
	log  *output

	handshake *io.PipeReader
	greeting  *io.PipeWriter
	silence   *io.PipeReader // go-plugin's view of the standard error: nothing
	nothing   *io.PipeWriter

	killing sync.Once
	exited  chan struct{} // closed when the process has been waited for
	state   error         // how it ended; set before exited is closed
	done    chan struct{} // closed when its output is read as well
}

// newChild checks the executable and makes the private directory. It starts nothing.
func newChild(spec *Spec) (*child, error) {
	sweepDirs(spec.Dir)
	path, file, err := executable(spec)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(spec.Dir, dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a private directory: %w", err), closeFile(file))
	}
	c := &child{spec: spec, dir: dir, file: file, log: newOutput(spec.Logger), exited: make(chan struct{}), done: make(chan struct{})}
	c.handshake, c.greeting = io.Pipe()
	c.silence, c.nothing = io.Pipe()
	c.cmd = &exec.Cmd{Path: path, Args: append([]string{spec.Command}, spec.Args...), SysProcAttr: childAttr()}
	if file != nil {
		c.cmd.ExtraFiles = []*os.File{file}
	}
	return c, nil
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// sweepDirs removes the private directories of hosts that were killed.
func sweepDirs(base string) {
	if base == "" {
		base = os.TempDir()
	}
	left, _ := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	for _, dir := range left {
		id, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		pid, err := strconv.Atoi(id)
		if err == nil && pid > 0 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir) // another user's stays
		}
	}
}

// launcher runs functions on one thread that never ends. The kernel sends a child its parent-death signal
// when the thread that started it ends, which an ordinary goroutine's may at any time.
var launcher = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

// prepare takes over the environment that go-plugin made.
func (c *child) prepare(cmd *exec.Cmd) (runner.Runner, error) {
	// Nothing of the host's: a plugin sees its own settings alone, and those come by Open.
	c.cmd.Env = append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + c.dir, "TMPDIR=" + c.dir}, cmd.Env...)
	if m := c.spec.Memory; m > 0 {
		// A Go plugin collects harder before it is killed.
		c.cmd.Env = append(c.cmd.Env, "GOMEMLIMIT="+strconv.FormatInt(m/10*9, 10))
	}
	return c, nil
}

// Start implements runner.Runner.
func (c *child) Start(context.Context) error {
	outR, outW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return errors.Join(fmt.Errorf("make a pipe: %w", err), outR.Close(), outW.Close())
	}
	c.cmd.Stdout, c.cmd.Stderr = outW, errW
	started := make(chan error)
	launcher() <- func() { started <- c.cmd.Start() }
	err = <-started
	_, _, _ = outW.Close(), errW.Close(), closeFile(c.file)
	if err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", c.spec.Command, err), outR.Close(), errR.Close())
	}
	watched(c.cmd.Process.Pid)
	offerToKernel(c.cmd.Process.Pid)
	var reading sync.WaitGroup
	reading.Go(func() { c.readStdout(outR) })
	reading.Go(func() { c.log.drain(errR, "stderr") })
	go c.wait(&reading, outR, errR)
	return nil
}

// wait sees the process to its end.
func (c *child) wait(reading *sync.WaitGroup, pipes ...*os.File) {
	c.state = c.cmd.Wait()
	c.killGroup() // what it left behind
	unwatched(c.cmd.Process.Pid)
	close(c.exited)
	drained := make(chan struct{})
	go func() {
		reading.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(drainAfter):
	}
	for _, p := range pipes {
		_ = p.Close()
	}
	<-drained
	c.log.flush()
	_ = c.greeting.Close()
	_ = c.nothing.Close()
	close(c.done)
}

// greetingPattern is go-plugin's handshake: core protocol, version, network, address, "grpc", certificate.
var greetingPattern = regexp.MustCompile(`^\d+\|\d+\|[a-z]+\|[^|]+\|grpc(\||$)`)

// readStdout passes the handshake on. Whatever comes before or after it goes to the log: a plugin that
// prints something is no reason not to start it.
func (c *child) readStdout(r io.Reader) {
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := readLine(lines)
		if greetingPattern.Match(line) {
			// The pipe is read until the end by go-plugin.
			_, _ = c.greeting.Write(append(line, '\n'))
			break
		}
		if len(line) > 0 {
			c.log.line("stdout", line)
		}
		if err != nil {
			return
		}
	}
	c.log.drain(lines, "stdout")
}

// Kill implements runner.Runner: it kills the whole group.
func (c *child) Kill(context.Context) error {
	c.kill()
	return nil
}

// kill ends the process and all of its group at once, be it stopped or not.
func (c *child) kill() {
	c.killing.Do(func() {
		if c.cmd.Process == nil {
			return
		}
		select {
		case <-c.exited: // its id may be somebody else's by now
		default:
			c.killGroup()
		}
	})
}

func (c *child) killGroup() { _ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) }

// Wait implements runner.Runner.
func (c *child) Wait(context.Context) error {
	<-c.exited
	return nil // told by whoever supervises
}

// remove takes the private directory away, once go-plugin is through with it.
func (c *child) remove() { _ = os.RemoveAll(c.dir) }

// Stdout implements runner.Runner.
func (c *child) Stdout() io.ReadCloser { return c.handshake }

// Stderr implements runner.Runner.
func (c *child) Stderr() io.ReadCloser { return c.silence }

// Name implements runner.Runner.
func (c *child) Name() string { return c.spec.Name }

// ID implements runner.Runner.
func (c *child) ID() string {
	if c.cmd.Process == nil {
		return ""
	}
	return strconv.Itoa(c.cmd.Process.Pid)
}

// Diagnose implements runner.Runner.
func (c *child) Diagnose(context.Context) string { return "" }

// PluginToHost implements runner.Runner: a plugin listens in its private directory, and nowhere else.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || !strings.HasPrefix(filepath.Clean(address), c.dir+string(filepath.Separator)) {
		return "", "", fmt.Errorf("it listens on %s %.200q; it must listen on a unix socket in the directory that %s names", network, address, plugin.EnvUnixSocketDir)
	}
	return network, address, nil
}

// HostToPlugin implements runner.Runner.
func (c *child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// ending says how the process ended.
func (c *child) ending() string {
	var exit *exec.ExitError
	if !errors.As(c.state, &exit) {
		if c.state != nil {
			return c.state.Error()
		}
		return "exit code 0"
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return fmt.Sprintf("killed by signal %d, %s", s.Signal(), s.Signal())
	}
	return fmt.Sprintf("exit code %d", exit.ExitCode())
}
