package porttest_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/carillon-notify/carillon/providers/porttest"
)

// TestFree: of many who ask at once, in two processes, nobody is given what another has, as a port or as the bus of one. A
// port that a test had is free again after it.
func TestFree(t *testing.T) {
	t.Parallel()
	const each = 1500 // of some ten thousand: two who knew nothing of each other would meet
	if os.Getenv(child) != "" {
		for range each {
			fmt.Println("port", porttest.Free(t))
		}
		fmt.Println("all")
		_, _ = os.Stdin.Read(make([]byte, 1)) // they are kept until the parent has its own
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestFree$")
	cmd.Env = append(os.Environ(), child+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs := make(chan []int)
	go func() {
		var ports []int
		for {
			var word string
			var port int
			if n, err := fmt.Fscan(out, &word); n != 1 || err != nil || word != "port" {
				break
			}
			if n, err := fmt.Fscan(out, &port); n != 1 || err != nil {
				break
			}
			ports = append(ports, port)
		}
		theirs <- ports
	}()
	var mu sync.Mutex
	given := map[int]bool{}
	note := func(port int) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range []int{port, port + porttest.BusOffset} {
			if given[p] {
				t.Errorf("port %d was given twice", p)
			}
			given[p] = true
		}
	}
	t.Run("here", func(t *testing.T) { // whose ports are kept until it ends
		var asking sync.WaitGroup
		for range 4 {
			asking.Go(func() {
				for range each / 4 {
					note(porttest.Free(t))
				}
			})
		}
		asking.Wait()
		ports := <-theirs
		if len(ports) != each {
			t.Errorf("the other process was given %d ports", len(ports))
		}
		for _, p := range ports {
			note(p)
		}
	})
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

const child = "CARILLON_PORTTEST_CHILD"

// TestAddr: nobody answers at an address until somebody listens there.
func TestAddr(t *testing.T) {
	t.Parallel()
	addr := porttest.Addr(t)
	if c, err := net.Dial("tcp", addr); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("somebody answers at %s: %v %v", addr, c, err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}
