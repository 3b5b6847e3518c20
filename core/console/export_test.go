package console

import "time"

// Cookie makes a session's cookie that ends at a time of the test's choice.
func (c *Console) Cookie(hash [32]byte, ends time.Time) string { return c.cookie(hash, ends) }

// Since is since.
var Since = since

// MostBlock and Layout are of the contents' JSON.
const MostBlock = mostBlock

// Layout is layout.
var Layout = layout
