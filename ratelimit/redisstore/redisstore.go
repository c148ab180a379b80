// Package redisstore shares the counters of ratelimit through Redis: one script
// call and one round trip for all limits of a request, on the server's clock, all
// or none.
//
// It is tested on Redis 7, alone, with Sentinel and as a Cluster, with TLS and ACL
// users; other versions and Valkey are untested. Stand a [ratelimit.Shield] before
// it: the store itself waits as long as its caller's context and fails as Redis
// does.
//
// In a Cluster the limits of one call must share a slot to be decided together:
// put what they have in common in braces ("{ws7}:user:3", "{ws7}"). Limits of other
// slots are asked one group after the other, in the order of the checks, and what
// was taken is given back if a later group refuses: each further group costs a
// round trip, a refusal another one for each group before it, and between the two
// others may be refused units that come back.
//
// What Redis loses the counters lose: a failover to a replica forgets what was not
// replicated yet, a flushed database everything. A step of the server's clock
// forwards frees units early by as much; a step back keeps them at most a window.
package redisstore

import (
	"context"
	_ "embed" // decide.lua
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"mainstay.dev/mainstay/ratelimit"
)

//go:embed decide.lua
var source string

// Store is a [ratelimit.Store] in Redis. Its methods may be called from several
// goroutines.
type Store struct {
	client  rueidis.Client
	script  *rueidis.Lua
	prefix  string
	cluster bool
	now     func() int64 // tests turn the clock by hand; nil: the server's
}

var _ ratelimit.Store = (*Store)(nil)

// New returns a store that keeps its counters under keys that begin with prefix.
// The client stays the caller's; it should be made with DisableCache and
// DisableRetry, since a decision that may have been made must not be made again.
func New(client rueidis.Client, prefix string) (*Store, error) {
	if strings.ContainsAny(prefix, "{}") {
		return nil, fmt.Errorf("redis key prefix %q: braces would put all counters in one slot; leave them out", prefix)
	}
	return &Store{
		client:  client,
		script:  rueidis.NewLuaScript(source),
		prefix:  prefix,
		cluster: client.Mode() == rueidis.ClientModeCluster,
	}, nil
}

// Take implements [ratelimit.Store].
func (s *Store) Take(ctx context.Context, checks []ratelimit.Check, results []ratelimit.Result) (ratelimit.Decision, error) {
	if err := ratelimit.Validate(checks, results); err != nil || len(checks) == 0 {
		return ratelimit.Decision{Allowed: err == nil}, err
	}
	lease := uint64(0)
	for i := range checks {
		if checks[i].Limit.Algorithm == ratelimit.Concurrency {
			lease = rand.Uint64N(1<<53-1) + 1 // what a double holds
			break
		}
	}
	if end := s.together(checks, 0); end < len(checks) {
		return s.takeGroups(ctx, checks, results, lease)
	}
	return s.take(ctx, checks, results, lease)
}

// together returns the end of the group of checks that begins at from and is
// decided in one call.
func (s *Store) together(checks []ratelimit.Check, from int) int {
	if !s.cluster {
		return len(checks)
	}
	tag := Tag(checks[from].Key)
	for i := from + 1; i < len(checks); i++ {
		if Tag(checks[i].Key) != tag {
			return i
		}
	}
	return len(checks)
}

// Tag returns the part of a key that decides on its Cluster slot: what stands
// between the first braces, else the whole key.
func Tag(key string) string {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			return tag
		}
	}
	return key
}

// takeGroups asks one group after the other and gives back if one refuses.
func (s *Store) takeGroups(ctx context.Context, checks []ratelimit.Check, results []ratelimit.Result, lease uint64) (ratelimit.Decision, error) {
	all := ratelimit.Decision{Allowed: true, Lease: lease}
	if results == nil {
		results = make([]ratelimit.Result, len(checks))
	}
	for from := 0; from < len(checks); {
		end := s.together(checks, from)
		d, err := s.take(ctx, checks[from:end], results[from:end], lease)
		if err == nil && d.Allowed {
			all.At, from = max(all.At, d.At), end
			continue
		}
		if from > 0 {
			err = errors.Join(err, s.Refund(ctx, all, taken(checks[:from], results)))
			for i := range checks[:from] {
				results[i].Remaining += checks[i].Cost
			}
		}
		for i := end; i < len(checks); i++ { // nobody asked them
			results[i] = ratelimit.Result{Allowed: true}
		}
		return ratelimit.Decision{Retry: d.Retry, At: d.At}, err
	}
	return all, nil
}

// taken returns the checks that were charged: not a shadow that did not fit.
func taken(checks []ratelimit.Check, results []ratelimit.Result) []ratelimit.Check {
	var charged []ratelimit.Check
	for i, c := range checks {
		if results[i].Allowed {
			charged = append(charged, c)
		}
	}
	return charged
}

func (s *Store) take(ctx context.Context, checks []ratelimit.Check, results []ratelimit.Result, lease uint64) (ratelimit.Decision, error) {
	reply, err := s.run(ctx, opTake, ratelimit.Decision{Lease: lease}, checks, nil).AsIntSlice()
	if err != nil {
		return ratelimit.Decision{}, fmt.Errorf("ask Redis for %d limits: %w", len(checks), err)
	}
	if len(reply) != 2+4*len(checks) {
		return ratelimit.Decision{}, fmt.Errorf("ask Redis for %d limits: the reply has %d numbers", len(checks), len(reply))
	}
	d := ratelimit.Decision{Allowed: reply[0] == 1, At: reply[1]}
	if d.Allowed {
		d.Lease = lease
	}
	for i := range checks {
		r := reply[2+4*i:]
		retry := micros(r[0])
		if r[0] < 0 {
			retry = ratelimit.Never
		}
		if !checks[i].Shadow {
			d.Retry = max(d.Retry, retry)
		}
		if results != nil {
			results[i] = ratelimit.Result{Allowed: r[0] == 0, Remaining: r[1], Retry: retry, Next: micros(r[2]), Reset: micros(r[3])}
		}
	}
	return d, nil
}

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }

// run calls the script for checks of one group.
func (s *Store) run(ctx context.Context, op byte, d ratelimit.Decision, checks []ratelimit.Check, debts []ratelimit.Debt) rueidis.RedisResult {
	keys := make([]string, len(checks))
	for i := range checks {
		keys[i] = s.name(&checks[i])
	}
	now := int64(0)
	if s.now != nil {
		now = s.now()
	}
	return s.script.Exec(ctx, s.client, keys, []string{pack(op, now, d.At, d.Lease, checks, debts)})
}

// Refund implements [ratelimit.Store].
func (s *Store) Refund(ctx context.Context, d ratelimit.Decision, checks []ratelimit.Check) error {
	if !d.Allowed {
		return nil
	}
	return s.tell(ctx, opRefund, d, checks, nil)
}

// Charge implements [ratelimit.Store].
func (s *Store) Charge(ctx context.Context, checks []ratelimit.Check) error {
	return s.tell(ctx, opCharge, ratelimit.Decision{}, checks, nil)
}

// Restore implements [ratelimit.Store].
func (s *Store) Restore(ctx context.Context, checks []ratelimit.Check, debts []ratelimit.Debt) error {
	if len(debts) != len(checks) {
		return fmt.Errorf("%w: %d debts for %d checks", ratelimit.ErrInvalid, len(debts), len(checks))
	}
	return s.tell(ctx, opRestore, ratelimit.Decision{}, checks, debts)
}

// tell runs an operation without an answer, group by group.
func (s *Store) tell(ctx context.Context, op byte, d ratelimit.Decision, checks []ratelimit.Check, debts []ratelimit.Debt) error {
	if err := ratelimit.Validate(checks, nil); err != nil {
		return err
	}
	var failed error
	for from := 0; from < len(checks); {
		end := s.together(checks, from)
		var part []ratelimit.Debt
		if debts != nil {
			part = debts[from:end]
		}
		if err := s.run(ctx, op, d, checks[from:end], part).Error(); err != nil {
			failed = errors.Join(failed, fmt.Errorf("tell Redis about %d limits: %w", end-from, err))
		}
		from = end
	}
	return failed
}

// Reset implements [ratelimit.Store].
func (s *Store) Reset(ctx context.Context, checks []ratelimit.Check) error {
	if err := ratelimit.Validate(checks, nil); err != nil {
		return err
	}
	var failed error
	for i := range checks {
		del := s.client.B().Del().Key(s.name(&checks[i])).Build()
		if err := s.client.Do(ctx, del).Error(); err != nil {
			failed = errors.Join(failed, fmt.Errorf("reset a limit in Redis: %w", err))
		}
	}
	return failed
}
