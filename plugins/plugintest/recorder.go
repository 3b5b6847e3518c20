package plugintest

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// record is how one part of an exam went.
type record struct {
	name            string // "in_process/batch"
	failed, skipped bool
	lines           []string
}

// recording runs the parts of an exam outside of go test, and hands each record on as it ends.
func recording(prefix string, hand func(record)) runner {
	return func(name string, f func(testing.TB, runner)) {
		if prefix != "" {
			name = prefix + "/" + name
		}
		r := &recorder{record: record{name: name}}
		r.ctx, r.cancel = context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { // FailNow and SkipNow end the goroutine
			defer close(done)
			defer r.end()
			f(r, recording(name, hand))
		}()
		<-done
		hand(r.record)
	}
}

// recorder stands in for testing.T. Only what is implemented here may be called.
type recorder struct {
	testing.TB // nil; it makes recorder a testing.TB at all
	ctx        context.Context
	cancel     context.CancelFunc

	mu sync.Mutex
	record
	cleanups []func()
}

// end runs the cleanups; a panic of the test's is a failure.
func (r *recorder) end() {
	if v := recover(); v != nil {
		r.Errorf("panic: %v", v)
	}
	r.cancel()
	for {
		r.mu.Lock()
		n := len(r.cleanups)
		if n == 0 {
			r.mu.Unlock()
			return
		}
		f := r.cleanups[n-1]
		r.cleanups = r.cleanups[:n-1]
		r.mu.Unlock()
		ended := make(chan struct{})
		go func() { // a cleanup may call FailNow too
			defer close(ended)
			defer func() {
				if v := recover(); v != nil {
					r.Errorf("panic: %v", v)
				}
			}()
			f()
		}()
		<-ended
	}
}

func (r *recorder) log(fail bool, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = r.failed || fail
	r.lines = append(r.lines, strings.TrimRight(text, "\n"))
}

func (r *recorder) Helper()                  {}
func (r *recorder) Name() string             { return r.name }
func (r *recorder) Context() context.Context { return r.ctx }

func (r *recorder) Log(args ...any)                 { r.log(false, fmt.Sprintln(args...)) }
func (r *recorder) Logf(format string, args ...any) { r.log(false, fmt.Sprintf(format, args...)) }
func (r *recorder) Error(args ...any)               { r.log(true, fmt.Sprintln(args...)) }
func (r *recorder) Errorf(f string, args ...any)    { r.log(true, fmt.Sprintf(f, args...)) }

func (r *recorder) Fatal(args ...any) {
	r.Error(args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *recorder) FailNow() {
	r.Fail()
	runtime.Goexit()
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Skip(args ...any) {
	r.Log(args...)
	r.SkipNow()
}

func (r *recorder) Skipf(format string, args ...any) {
	r.Logf(format, args...)
	r.SkipNow()
}

func (r *recorder) SkipNow() {
	r.mu.Lock()
	r.skipped = true
	r.mu.Unlock()
	runtime.Goexit()
}

func (r *recorder) Skipped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.skipped
}

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

func (r *recorder) TempDir() string {
	dir, err := os.MkdirTemp("", "plugintest-")
	if err != nil {
		r.Fatalf("make a directory: %v", err)
	}
	r.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
