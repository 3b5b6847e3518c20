package intake

// Few is a map of the renderer's and the resolver's kind.
type Few struct{ f few[string, int] }

// Put keeps a value under a key, in place of what was there.
func (f *Few) Put(key string, value int) { f.f.put(key, value) }

// Get returns what is kept under a key.
func (f *Few) Get(key string) (int, bool) { return f.f.get(key) }

// Of returns it without saying whether there was any.
func (f *Few) Of(key string) int { return f.f.of(key) }
