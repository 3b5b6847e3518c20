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

// drainAfter is how long the output of a process that ended is still read: what is left in its pipes, and
// what a grandchild that holds them writes. Then they are closed.
const drainAfter = 200 * time.Millisecond

// settleAfter is how long to wait for a process whose connection broke to be seen to have ended.
const settleAfter = time.Second

// child is a process, its pipes, its process group and its private directory. It implements go-plugin's
// runner.Runner, which reads nothing of it but the one line of the handshake.
type child struct {
	spec *Spec
	dir  *privateDir
	cmd  *exec.Cmd
	file *os.File // the executable that was digested, if it is run by its descriptor
	log  *output

	handshake *io.PipeReader
	greeting  *io.PipeWriter
	silence   *io.PipeReader // go-plugin's view of the standard error: nothing
	nothing   *io.PipeWriter

	mu      sync.Mutex
	started bool
	doomed  bool          // killed, perhaps before it was started
	excess  string        // why it was killed for its memory
	exited  chan struct{} // closed when the process has been waited for
	// How it ended, set before exited is closed: murdered says that it was killed, and not for its memory.
	state    error
	murdered bool
	done     chan struct{} // closed when its output is read as well
}

// newChild checks the executable and makes the private directory. It starts nothing.
func newChild(spec *Spec, log *output) (*child, error) {
	path, file, err := executable(spec)
	if err != nil {
		return nil, err
	}
	dir, err := newPrivateDir(spec.Dir)
	if err != nil {
		return nil, errors.Join(err, closeFile(file))
	}
	c := &child{spec: spec, dir: dir, file: file, log: log, exited: make(chan struct{}), done: make(chan struct{})}
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

// launcher runs functions on one thread that never ends. The kernel sends a child its parent-death signal
// when the thread that started it ends, which an ordinary goroutine's may at any time.
var launcher = sync.OnceValue(func() chan<- func() {
	keepFiles()
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
	c.cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + c.dir.path, "TMPDIR=" + c.dir.path}
	for _, v := range cmd.Env {
		// go-plugin would have a directory in the directory, and the path of a socket is short.
		if !strings.HasPrefix(v, plugin.EnvUnixSocketDir+"=") {
			c.cmd.Env = append(c.cmd.Env, v)
		}
	}
	c.cmd.Env = append(c.cmd.Env, c.mark())
	if m := c.spec.Memory; m > 0 {
		// A Go plugin collects harder before it is killed.
		c.cmd.Env = append(c.cmd.Env, "GOMEMLIMIT="+strconv.FormatInt(m/10*9, 10))
	}
	return c, nil
}

// mark is the variable that tells this process and whatever it starts from all others.
func (c *child) mark() string { return plugin.EnvUnixSocketDir + "=" + c.dir.path }

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
	err = c.exec()
	_, _, _ = outW.Close(), errW.Close(), closeFile(c.file)
	if err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", c.spec.Command, err), outR.Close(), errR.Close())
	}
	theReaper().watch(c.cmd.Process.Pid, c.mark())
	offerToKernel(c.cmd.Process.Pid)
	var reading sync.WaitGroup
	reading.Go(func() { c.readStdout(outR) })
	reading.Go(func() { c.log.drain(bufio.NewReaderSize(errR, readSize), "stderr") })
	go c.wait(&reading, outR, errR)
	if c.spec.Memory > 0 {
		go c.watchMemory()
	}
	return nil
}

// exec starts the process, unless it was killed before.
func (c *child) exec() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.doomed {
		return context.Canceled
	}
	started := make(chan error)
	launcher() <- func() { started <- c.cmd.Start() }
	err := <-started
	c.started = err == nil
	return err
}

// wait sees the process to its end.
func (c *child) wait(reading *sync.WaitGroup, pipes ...*os.File) {
	state := c.cmd.Wait()
	c.mu.Lock()
	c.state, c.murdered = state, c.doomed && c.excess == ""
	c.mu.Unlock()
	// What it left behind: in its group, and what left that.
	c.killGroup()
	killMarked(c.mark())
	if c.spec.Memory > 0 {
		killCounted(c.mark())
	}
	theReaper().forget(c.cmd.Process.Pid, c.mark())
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

// watchMemory kills a process that takes more than it may.
func (c *child) watchMemory() {
	t := time.NewTicker(memoryEvery)
	defer t.Stop()
	for {
		select {
		case <-c.exited:
			return
		case <-t.C:
		}
		if n := memoryOf(c.cmd.Process.Pid, c.mark()); n > c.spec.Memory {
			c.mu.Lock()
			c.excess = fmt.Sprintf("it used %d MiB of memory, its limit is %d MiB", n>>20, c.spec.Memory>>20)
			c.mu.Unlock()
			c.kill()
			return
		}
	}
}

// greetingPattern is go-plugin's handshake: core protocol, version, network, address and, mostly, more.
var greetingPattern = regexp.MustCompile(`^\d+\|\d+\|[a-z]+\|[^|]+(\||$)`)

// readStdout passes the handshake on. Whatever comes before or after it goes to the log: a plugin that
// prints something is no reason not to start it.
func (c *child) readStdout(r io.Reader) {
	lines := bufio.NewReaderSize(r, readSize)
	for {
		line, err := readLine(lines)
		if greetingPattern.Match(line) {
			// The pipe is read until the end by go-plugin.
			_, _ = c.greeting.Write(append(line, '\n'))
			break
		}
		if len(line) > 0 && c.log.allow() {
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

// kill ends the process and all of its group at once, be it stopped or not. One that was not started yet
// will not be.
func (c *child) kill() {
	c.mu.Lock()
	c.doomed = true
	started := c.started
	c.mu.Unlock()
	if !started {
		return
	}
	select {
	case <-c.exited: // its id may be somebody else's by now
	default:
		c.killGroup()
	}
}

// settle gives a process that is ending a moment to have ended.
func (c *child) settle() {
	select {
	case <-c.exited:
	case <-time.After(settleAfter):
	}
}

// itself reports whether the process has ended by its own doing, be it that it was killed for its memory.
func (c *child) itself() bool {
	c.mu.Lock()
	excess := c.excess
	c.mu.Unlock()
	if excess != "" {
		return true
	}
	select {
	case <-c.exited:
		return !c.murdered
	default:
		return false
	}
}

func (c *child) killGroup() { _ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) }

// Wait implements runner.Runner.
func (c *child) Wait(context.Context) error {
	<-c.exited
	return nil // told by whoever supervises
}

// Stdout implements runner.Runner.
func (c *child) Stdout() io.ReadCloser { return c.handshake }

// Stderr implements runner.Runner.
func (c *child) Stderr() io.ReadCloser { return c.silence }

// Name implements runner.Runner.
func (c *child) Name() string { return c.spec.Name }

// ID implements runner.Runner.
func (c *child) ID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.started {
		return ""
	}
	return strconv.Itoa(c.cmd.Process.Pid)
}

// Diagnose implements runner.Runner.
func (c *child) Diagnose(context.Context) string { return "" }

// PluginToHost implements runner.Runner: a plugin listens in its private directory, and nowhere else.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || !strings.HasPrefix(filepath.Clean(address), c.dir.path+string(filepath.Separator)) {
		return "", "", fmt.Errorf("it listens on %s %.200q; it must listen on a unix socket in the directory that %s names", network, address, plugin.EnvUnixSocketDir)
	}
	return network, address, nil
}

// HostToPlugin implements runner.Runner.
func (c *child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// ending says how the process ended, where itself is true.
func (c *child) ending() string {
	c.mu.Lock()
	excess := c.excess
	c.mu.Unlock()
	if excess != "" {
		return excess
	}
	var exit *exec.ExitError
	if !errors.As(c.state, &exit) {
		if c.state != nil {
			return "it ended: " + c.state.Error()
		}
		return "it ended with the exit code 0"
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return fmt.Sprintf("it was killed by signal %d, %s", s.Signal(), s.Signal())
	}
	return fmt.Sprintf("it ended with the exit code %d", exit.ExitCode())
}
