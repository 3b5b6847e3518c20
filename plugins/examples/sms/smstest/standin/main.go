// Command standin runs the stand-in of the SMS service, to try the plugin with. See package smstest for
// which number gets which answer.
package main

import (
	"flag"
	"log"
	"net/http"
	"time"

	"github.com/carillon-notify/carillon/plugins/examples/sms/smstest"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9010", "where to listen")
	key := flag.String("key", "test-key", "the API key that is taken")
	secret := flag.String("callback-secret", "test-callback-secret", "what callbacks are signed with")
	delay := flag.Duration("delay", time.Second, "from taking a message to reporting what became of it")
	flag.Parse()
	service := smstest.New(smstest.Options{Key: *key, Secret: *secret, Delay: *delay, Log: log.Printf})
	log.Printf("the stand-in of the SMS service listens on http://%s", *listen)
	server := &http.Server{Addr: *listen, Handler: service, ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(server.ListenAndServe())
}
