// The worker delivers what orchestrators accept, beside them, over a shared Redis and PostgreSQL.
package main

import (
	"os"

	"github.com/carillon-notify/carillon/core/app"
)

func main() { os.Exit(app.Main(app.Worker, os.Args[1:])) }
