package identity

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Deps is what a [Desk] needs from outside.
type Deps struct {
	// Via carries the fetches of key sets; nil: the network, through the proxy that
	// HTTPS_PROXY names if there is one.
	Via http.RoundTripper
	// Secret is what the seal and the pseudonyms are made with if the Config has
	// none. Nil: a random one of this process.
	Secret []byte
	// Dir is a folder where the issuer's keys are kept over a restart; empty: they are
	// not.
	Dir string
	// Notice is told what happened, such as a key set that cannot be had: a level, a
	// name, a sentence and what belongs to it. It must not block; nil: nobody is told.
	Notice func(level slog.Level, name, text string, attrs ...slog.Attr)
}

type notice func(level slog.Level, name, text string, attrs ...slog.Attr)

// A Desk is where everyone who enters says who it is: the [Resolver] of a whole
// Config. Its methods may be called from many goroutines.
type Desk struct {
	deps   Deps
	tags   *tagger
	policy atomic.Pointer[running]

	mu      sync.Mutex
	changed chan struct{} // closed when another policy is in force

	counts counts
}

// running is a policy with what lives as long as it: what was found out under it
// holds for it alone.
type running struct {
	*policy
	seal *Seal
	keys *keySource // nil without a key set
	good *memory
	bad  *memory
}

// New checks cfg and wires the desk; it starts nothing.
func New(cfg Config, d Deps) (*Desk, error) {
	p, err := Compile(cfg)
	if err != nil {
		return nil, err
	}
	if d.Notice == nil {
		d.Notice = func(slog.Level, string, string, ...slog.Attr) {}
	}
	if d.Secret == nil {
		d.Secret = make([]byte, 32)
		_, _ = rand.Read(d.Secret) // never fails
	}
	if d.Via == nil {
		d.Via = newWire()
	}
	tags, err := newTagger()
	if err != nil {
		return nil, err
	}
	desk := &Desk{deps: d, tags: tags, changed: make(chan struct{})}
	desk.policy.Store(desk.running(p))
	return desk, nil
}

// newWire is a client's connections that bound their own time.
func newWire() *http.Transport {
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: fetchWithin, ResponseHeaderTimeout: fetchWithin, MaxResponseHeaderBytes: 64 << 10,
	}
}

// running gives p its life; the keys of the policy before it stay if they come from
// the same place.
func (d *Desk) running(p *policy) *running {
	secret := d.deps.Secret
	if own := p.cfg.Secret.Reveal(); own != "" {
		secret = []byte(own)
	}
	r := &running{policy: p, seal: NewSeal(secret), good: newMemory(goodShard), bad: newMemory(badShard)}
	if url := p.cfg.JWT.JWKS; url != "" {
		if old := d.policy.Load(); old != nil && old.keys != nil && old.keys.url == url {
			r.keys = old.keys
		} else {
			r.keys = newKeySource(url, d.deps.Via, d.deps.Dir)
		}
	}
	return r
}

// Prepare checks cfg for a reload. Nothing changes until commit is called, and
// commit cannot fail.
func (d *Desk) Prepare(cfg Config) (commit func(), err error) {
	p, err := Compile(cfg)
	if err != nil {
		return nil, err
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.policy.Store(d.running(p))
		close(d.changed)
		d.changed = make(chan struct{})
	}, nil
}

// Run keeps the issuer's keys, and what stands in files, fresh until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		d.mu.Lock()
		p, changed := d.policy.Load(), d.changed
		d.mu.Unlock()
		work, end := context.WithCancel(ctx)
		var parts sync.WaitGroup
		if p.keys != nil {
			parts.Go(func() { p.keys.run(work, p.cfg.JWT.Refresh, d.deps.Notice) })
		}
		if p.tierFile != nil {
			parts.Go(func() { p.tierFile.watch(work, d.deps.Notice) })
		}
		if p.keyFile != nil {
			parts.Go(func() { p.keyFile.watch(work, d.deps.Notice) })
		}
		if p.proxies.file != nil {
			parts.Go(func() { p.proxies.file.watch(work, d.deps.Notice) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		end()
		parts.Wait()
	}
	if w, ok := d.deps.Via.(interface{ CloseIdleConnections() }); ok {
		w.CloseIdleConnections()
	}
	return nil
}
