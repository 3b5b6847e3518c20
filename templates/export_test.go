package templates

// Filters are the names of the filters that are offered.
func Filters() []string { return sorted(filters) }
