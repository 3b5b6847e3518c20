package intake

// few is a map whose first entry is kept in place: of most things a request to one address has one, and a map of one
// costs two allocations. The zero value is empty.
type few[K comparable, V any] struct {
	held  bool
	key   K
	value V
	rest  map[K]V
}

func (f *few[K, V]) get(key K) (value V, ok bool) {
	if f.held && f.key == key {
		return f.value, true
	}
	value, ok = f.rest[key]
	return value, ok
}

// of is the value of a key, the zero value where there is none.
func (f *few[K, V]) of(key K) V {
	value, _ := f.get(key)
	return value
}

func (f *few[K, V]) put(key K, value V) {
	switch {
	case !f.held || f.key == key:
		f.held, f.key, f.value = true, key, value
	case f.rest == nil:
		f.rest = map[K]V{key: value}
	default:
		f.rest[key] = value
	}
}
