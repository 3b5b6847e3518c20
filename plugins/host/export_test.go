package host

import "github.com/carillon-notify/carillon/providers"

// Race plays a call that finds its process unreachable against the supervisor, which has its place taken
// by another one the moment it is told so. It reports whether the other one is what is called afterwards.
func Race() bool {
	p := newProcess(Spec{}.filled(), providers.Kind{}, nil)
	old, next := &instance{condemned: make(chan verdict, 1)}, &instance{}
	p.publish(old)
	called := make(chan struct{})
	go func() {
		defer close(called)
		p.lost(old)
	}()
	<-old.condemned
	p.publish(next)
	<-called
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now == next
}
