package redisstore

import (
	"context"
	"crypto/rand"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// Presence counts the live nodes that share the limits, for
// [mainstay.dev/mainstay/ratelimit.ShieldOptions].Nodes. Each node notes itself in
// Redis every second; one that was not heard of for five is no longer counted.
type Presence struct {
	client rueidis.Client
	key    string
	id     string
	nodes  atomic.Int64
}

// How often a node notes itself, and how long it counts after its last note.
const (
	noteEvery = time.Second
	liveFor   = 5 * time.Second
)

// NewPresence returns a Presence under keys that begin with prefix. Until Run has
// heard from Redis it counts one node.
func NewPresence(client rueidis.Client, prefix string) *Presence {
	p := &Presence{client: client, key: prefix + "nodes", id: rand.Text()}
	p.nodes.Store(1)
	return p
}

// Nodes returns how many nodes were live when Redis was last heard of; at least 1.
func (p *Presence) Nodes() int { return int(p.nodes.Load()) }

// Run notes this node until ctx ends, and then takes it out. While Redis does not
// answer, the last number stands.
func (p *Presence) Run(ctx context.Context) error {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for {
		p.note(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteEvery)
			defer cancel()
			// Whether or not it is heard, the note ends by itself.
			_ = p.client.Do(last, p.client.B().Zrem().Key(p.key).Member(p.id).Build()).Error()
			return nil
		}
	}
}

var noteScript = rueidis.NewLuaScript(`
local now = redis.call('TIME')[1] * 1
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('EXPIRE', KEYS[1], ARGV[2] * 2)
return redis.call('ZCARD', KEYS[1])`)

func (p *Presence) note(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, noteEvery)
	defer cancel()
	live := strconv.Itoa(int(liveFor / time.Second))
	n, err := noteScript.Exec(ctx, p.client, []string{p.key}, []string{p.id, live}).AsInt64()
	if err == nil && n > 0 {
		p.nodes.Store(n)
	}
}
