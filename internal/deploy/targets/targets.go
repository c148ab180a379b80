// Package targets lets the edge send requests to copies of the app that somebody
// else runs: a copy is a list of addresses, which Mainstay probes, and never starts
// or stops. What is told to end is merely used no longer.
//
// Only app imports it.
package targets

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
)

// Driver is a deploy.Driver. Its methods may be called from several goroutines at
// once.
type Driver struct {
	mu   sync.Mutex
	used map[string]string // address to the copy that it belongs to
}

var _ deploy.Driver = (*Driver)(nil)

// New makes a driver that uses nothing yet.
func New() *Driver { return &Driver{used: map[string]string{}} }

// Start takes up the addresses of s. One that belongs to another copy is refused:
// one server cannot be both colors.
func (d *Driver) Start(ctx context.Context, s deploy.Spec) (deploy.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return d.take(s.ID, s.Targets)
}

// Adopt takes the addresses up again. Whether anybody answers there is for probes
// to find out, so it never returns deploy.ErrGone.
func (d *Driver) Adopt(_ context.Context, s deploy.Spec, h deploy.Handle) (deploy.Instance, error) {
	return d.take(s.ID, append([]string{h.Address}, h.Also...))
}

func (d *Driver) take(id string, addresses []string) (*instance, error) {
	if len(addresses) == 0 {
		return nil, fmt.Errorf("take up %s: it has no address; give one as HOST:PORT", id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range addresses {
		if other := d.used[a]; other != "" {
			return nil, fmt.Errorf("take up %s: %s belongs to %s, which is in use; name addresses where the next release runs: mainstay deploy --targets HOST:PORT", id, a, other)
		}
	}
	for _, a := range addresses {
		d.used[a] = id
	}
	return &instance{d: d, addresses: addresses, exited: make(chan struct{})}, nil
}

// An instance is one list of addresses in use.
type instance struct {
	d         *Driver
	addresses []string
	once      sync.Once
	exited    chan struct{}
}

func (i *instance) Handle() deploy.Handle {
	return deploy.Handle{Address: i.addresses[0], Also: i.addresses[1:]}
}

// Exited is closed by Stop alone: nobody tells us how those fare who run the copy.
func (i *instance) Exited() <-chan struct{} { return i.exited }

func (i *instance) Exit() deploy.Exit { return deploy.Exit{} }

// Stop gives the addresses back; the servers behind them run on.
func (i *instance) Stop(context.Context, time.Duration) error {
	i.once.Do(func() {
		i.d.mu.Lock()
		defer i.d.mu.Unlock()
		for _, a := range i.addresses {
			delete(i.d.used, a)
		}
		close(i.exited)
	})
	return nil
}

// Listening knows nothing: the servers may be on another machine.
func (i *instance) Listening() ([]netip.AddrPort, error) {
	return nil, errors.New("somebody else runs it")
}

// LastLines is nil: whoever runs the copy has its output.
func (i *instance) LastLines() []string { return nil }
