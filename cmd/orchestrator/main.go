// The orchestrator accepts notifications over REST and, unless workers is false, delivers them too.
// Without any configuration it starts everything embedded.
package main

import (
	"os"

	"github.com/carillon-notify/carillon/core/app"
)

func main() { os.Exit(app.Main(app.Orchestrator, os.Args[1:])) }
