package core

import "slices"

// Route is a configured provider instance, as much of it as the domain's rules need.
type Route struct {
	Name    string
	Kind    string
	Channel string
	Apps    []string // the apps that may use it; empty: all
	Policy  Policy
}

// Serves reports whether an app may use the route.
func (r *Route) Serves(app string) bool { return len(r.Apps) == 0 || slices.Contains(r.Apps, app) }
