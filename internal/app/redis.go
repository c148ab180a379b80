package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/redisstore"
)

// How long one try to reach Redis may take, and how often it is tried.
const (
	redisDial  = time.Second
	redisRetry = time.Second
)

// redisLink owns the one Redis client. A Redis that is not there when Mainstay
// starts is tried again and again: nothing that needs it waits for it.
type redisLink struct {
	option rueidis.ClientOption
	prefix string // of all keys
	log    *slog.Logger
	joined atomic.Pointer[joined]
}

// joined is what there is once Redis has answered.
type joined struct {
	client   rueidis.Client
	limits   *redisstore.Store
	presence *redisstore.Presence
}

// redisOption reads the address. Its errors do not show it: it may hold a password.
func redisOption(address setting.Secret) (rueidis.ClientOption, error) {
	const mend = "try redis://127.0.0.1:6379, rediss:// for TLS, ?addr= for further nodes, ?master_set= for Sentinel"
	if _, err := url.Parse(address.Reveal()); err != nil {
		return rueidis.ClientOption{}, setting.Problem{Path: "redis", What: "is no address", Mend: mend}
	}
	o, err := rueidis.ParseURL(address.Reveal())
	if err != nil {
		return o, setting.Problem{Path: "redis", What: "is no address of a Redis", Mend: mend}
	}
	// What was decided must not be decided again, and nobody reads the same key twice.
	o.DisableRetry, o.DisableCache = true, true
	if o.Dialer.Timeout == 0 {
		o.Dialer.Timeout = redisDial
	}
	if o.ConnWriteTimeout == 0 {
		o.ConnWriteTimeout = 2 * time.Second
	}
	return o, nil
}

func newRedisLink(res *Resolved, log *slog.Logger) (*redisLink, error) {
	o, err := redisOption(res.Redis)
	if err != nil {
		return nil, err
	}
	l := &redisLink{option: o, prefix: "mainstay:" + res.Service + ":" + res.Environment + ":", log: log}
	if err := l.join(); err != nil {
		log.Warn("Redis does not answer; going on without it, and trying again", "err", err)
	}
	return l, nil
}

// join connects, once.
func (l *redisLink) join() error {
	client, err := rueidis.NewClient(l.option)
	if err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	store, err := redisstore.New(client, l.prefix+"limits:")
	if err != nil {
		client.Close()
		return err
	}
	l.joined.Store(&joined{client, store, redisstore.NewPresence(client, l.prefix)})
	return nil
}

// Run tries until Redis answers, and then tells the other nodes that this one
// lives, until ctx ends.
func (l *redisLink) Run(ctx context.Context) error {
	tick := time.NewTicker(redisRetry)
	defer tick.Stop()
	for l.joined.Load() == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if l.join() == nil {
			l.log.Info("connected to Redis")
		}
	}
	return l.joined.Load().presence.Run(ctx)
}

// Close ends the connections.
func (l *redisLink) Close() error {
	if j := l.joined.Load(); j != nil {
		j.client.Close()
	}
	return nil
}

// nodes is how many nodes share the limits, this one included.
func (l *redisLink) nodes() int {
	if j := l.joined.Load(); j != nil {
		return j.presence.Nodes()
	}
	return 1
}

// limitStore is the link's counters; they fail until Redis has answered once.
type limitStore struct{ link *redisLink }

var errNotJoined = errors.New("the redis of the file has not answered yet")

func (s limitStore) Take(ctx context.Context, checks []ratelimit.Check, results []ratelimit.Result) (ratelimit.Decision, error) {
	if j := s.link.joined.Load(); j != nil {
		return j.limits.Take(ctx, checks, results)
	}
	return ratelimit.Decision{}, errNotJoined
}

func (s limitStore) Refund(ctx context.Context, d ratelimit.Decision, checks []ratelimit.Check) error {
	return s.tell(func(r *redisstore.Store) error { return r.Refund(ctx, d, checks) })
}

func (s limitStore) Charge(ctx context.Context, checks []ratelimit.Check) error {
	return s.tell(func(r *redisstore.Store) error { return r.Charge(ctx, checks) })
}

func (s limitStore) Restore(ctx context.Context, checks []ratelimit.Check, debts []ratelimit.Debt) error {
	return s.tell(func(r *redisstore.Store) error { return r.Restore(ctx, checks, debts) })
}

func (s limitStore) Reset(ctx context.Context, checks []ratelimit.Check) error {
	return s.tell(func(r *redisstore.Store) error { return r.Reset(ctx, checks) })
}

func (s limitStore) tell(what func(*redisstore.Store) error) error {
	if j := s.link.joined.Load(); j != nil {
		return what(j.limits)
	}
	return errNotJoined
}

// board is where the nodes share what was granted: one hash. The field without a
// name tells that it was ever written.
type board struct{ link *redisLink }

const boardMark = ""

func (b board) Grants(ctx context.Context) (all map[string][]byte, lost bool, err error) {
	j := b.link.joined.Load()
	if j == nil {
		return nil, false, errNotJoined
	}
	fields, err := j.client.Do(ctx, j.client.B().Hgetall().Key(b.key()).Build()).AsStrMap()
	if err != nil {
		return nil, false, fmt.Errorf("read the grants from Redis: %w", err)
	}
	_, marked := fields[boardMark]
	all = map[string][]byte{}
	for key, text := range fields {
		if key != boardMark {
			all[key] = []byte(text)
		}
	}
	return all, !marked, nil
}

func (b board) PutGrant(ctx context.Context, key string, grant []byte) error {
	j := b.link.joined.Load()
	if j == nil {
		return errNotJoined
	}
	set := j.client.B().Hset().Key(b.key()).FieldValue().FieldValue(boardMark, "1")
	if grant != nil {
		set = set.FieldValue(key, string(grant))
	}
	err := j.client.Do(ctx, set.Build()).Error()
	if err == nil && grant == nil {
		err = j.client.Do(ctx, j.client.B().Hdel().Key(b.key()).Field(key).Build()).Error()
	}
	if err != nil {
		return fmt.Errorf("write a grant to Redis: %w", err)
	}
	return nil
}

func (b board) key() string { return b.link.prefix + "limits:grants" }

// topsLast is how long, in seconds, Redis keeps what nodes told if none of them lives.
const topsLast = 300

func (b board) Tops(ctx context.Context) (map[string][]byte, error) {
	j := b.link.joined.Load()
	if j == nil {
		return nil, errNotJoined
	}
	fields, err := j.client.Do(ctx, j.client.B().Hgetall().Key(b.tops()).Build()).AsStrMap()
	if err != nil {
		return nil, fmt.Errorf("read who is near a limit from Redis: %w", err)
	}
	all := make(map[string][]byte, len(fields))
	for node, text := range fields {
		all[node] = []byte(text)
	}
	return all, nil
}

func (b board) PutTop(ctx context.Context, node string, top []byte) error {
	j := b.link.joined.Load()
	if j == nil {
		return errNotJoined
	}
	if top == nil {
		if err := j.client.Do(ctx, j.client.B().Hdel().Key(b.tops()).Field(node).Build()).Error(); err != nil {
			return fmt.Errorf("take a node out of Redis: %w", err)
		}
		return nil
	}
	for _, r := range j.client.DoMulti(ctx,
		j.client.B().Hset().Key(b.tops()).FieldValue().FieldValue(node, string(top)).Build(),
		j.client.B().Expire().Key(b.tops()).Seconds(topsLast).Build()) {
		if err := r.Error(); err != nil {
			return fmt.Errorf("tell Redis who is near a limit: %w", err)
		}
	}
	return nil
}

func (b board) tops() string { return b.link.prefix + "limits:tops" }
