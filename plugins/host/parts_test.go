package host_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// plain is a provider that accepts all.
type plain struct{}

func (plain) Deliver(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
	for i := range batch {
		report(providers.Result{ID: batch[i].ID, Outcome: providers.Accepted, ProviderID: strconv.Itoa(os.Getpid())})
	}
	return nil
}

func (plain) Health(context.Context) providers.Health {
	return providers.Health{Status: providers.HealthOK}
}

func (plain) Close(context.Context) error { return nil }

// receiver hears of each file in its directory, and removes it when its receipt is kept.
type receiver struct {
	plain
	dir string
}

func receiverKind(dir string) providers.Kind {
	return providers.Kind{Name: "receiver", Channel: "test", MaxBatch: 100, Address: ".+",
		Settings: []providers.Setting{{Name: "key", Type: providers.String, Secret: true}},
		Open:     func(context.Context, []byte) (providers.Provider, error) { return receiver{dir: dir}, nil }}
}

// Receive implements providers.Receiver.
func (r receiver) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		files, err := os.ReadDir(r.dir)
		if err != nil {
			return err
		}
		var offering sync.WaitGroup
		for _, f := range files {
			offering.Go(func() {
				err := report(providers.Receipt{ID: f.Name(), Address: "+4915100001", Event: providers.EventDelivered, Code: "key is sesame-sesame, for +4915100001", ProviderID: strconv.Itoa(os.Getpid())})
				if err == nil {
					_ = os.Remove(filepath.Join(r.dir, f.Name()))
				}
			})
		}
		offering.Wait()
		<-tick.C
	}
	return nil
}

// server serves clients of its own.
type server struct{ plain }

func serverKind() providers.Kind {
	return providers.Kind{Name: "server", Channel: "test", MaxBatch: 100, Address: ".+",
		Open: func(context.Context, []byte) (providers.Provider, error) { return server{}, nil }}
}

// Handler implements providers.Server.
func (server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/connection/about", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Pid", strconv.Itoa(os.Getpid()))
		_ = json.NewEncoder(w).Encode(map[string]string{"host": r.Host, "for": r.Header.Get("X-Forwarded-For"), "proto": r.Header.Get("X-Forwarded-Proto"), "query": r.URL.RawQuery})
	})
	// Says each line that it is told, at once.
	mux.HandleFunc("/connection/stream", func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if err := c.EnableFullDuplex(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = c.Flush()
		b := make([]byte, 100)
		for {
			n, err := r.Body.Read(b)
			if n > 0 {
				_, _ = w.Write([]byte(strings.ToUpper(string(b[:n]))))
				_ = c.Flush()
			}
			if err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/connection/websocket", func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil) // looks at the Origin
		if err != nil {
			return
		}
		for {
			typ, b, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			if err := conn.Write(r.Context(), typ, []byte(fmt.Sprintf("%d: %s", os.Getpid(), b))); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/connection/break", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte("the beginning of a thousand bytes"))
		_ = http.NewResponseController(w).Flush()
		os.Exit(5)
	})
	return mux
}

// playHost opens a plugin that starts processes of its own, says their ids and waits to be killed.
func playHost(dir string) {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	s := host.Spec{Name: "obedient", Command: self, Args: []string{"play", "obedient"}, Dir: dir}
	kind, err := host.Describe(context.Background(), s)
	if err != nil {
		panic(err)
	}
	p, err := kind.Open(context.Background(), []byte(`{}`))
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	if err := p.Deliver(ctx, messages("self", "child", "daemon"), func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(r.ProviderID)
	}); err != nil {
		panic(err)
	}
	select {}
}

func serveAPNs() { sdk.Serve(apns.Kind()) }

// serveSandbox plays the services until the standard input ends.
func serveSandbox(dir string) {
	s, err := sandbox.Start(sandbox.Options{Dir: dir, Capacity: 100})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	raw, ok := s.Settings("apns")
	if !ok {
		panic(errors.New("the sandbox plays no apns"))
	}
	fmt.Println(string(raw))
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = s.Close()
}
