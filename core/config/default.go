package config

import _ "embed"

// Documented is the whole default configuration as a commented YAML file, as `orchestrator config`
// prints it.
//
//go:embed default.yaml
var Documented string
