package core

import (
	"encoding/json"
	"fmt"
	"strings"
)

// ParseRate reads a rate such as "1000/s", "500/m" or "20/h" as messages a second; "" is 0, unlimited.
func ParseRate(s string) (perSecond float64, err error) {
	if s == "" {
		return 0, nil
	}
	count, unit, _ := strings.Cut(s, "/")
	var n float64
	if err := json.Unmarshal([]byte(count), &n); err != nil || n <= 0 || n > 1e9 {
		return 0, fmt.Errorf("%q is no rate such as 1000/s, 500/m or 20/h", s)
	}
	switch unit {
	case "s":
		return n, nil
	case "m":
		return n / 60, nil
	case "h":
		return n / 3600, nil
	}
	return 0, fmt.Errorf("%q is no rate such as 1000/s, 500/m or 20/h", s)
}
