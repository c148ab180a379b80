package pace

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

// A bucket is one limit: what is left of it grows back steadily, as on the API's side.
type bucket struct {
	limit float64 // a minute; 0: not known
	level float64 // what is left
	most  float64 // what may be saved up
	at    time.Time
	spent float64 // in all
	tight time.Time
}

func (b *bucket) known() bool { return b.limit > 0 }

// rate is how much of it comes back a second.
func (b *bucket) rate(r *rules) float64 { return b.limit * r.share / 60 }

func (b *bucket) fill(now time.Time, r *rules) {
	if b.known() {
		b.level = min(b.level+b.rate(r)*now.Sub(b.at).Seconds(), b.most)
		b.at = now
	}
}

// wait returns how long it takes until there is enough for need; what is more than can
// ever be saved up has to wait until all is there.
func (b *bucket) wait(now time.Time, need float64, r *rules) time.Duration {
	b.fill(now, r)
	if need > b.most && !now.Before(b.tight) {
		b.most = min(need, b.limit) // so much has not been seen yet, but it may be
	}
	lacks := min(need, b.most) - b.level
	if lacks <= 1e-9*b.most {
		return 0
	}
	return time.Duration(math.Ceil(lacks / b.rate(r) * float64(time.Second)))
}

func (b *bucket) take(n float64) { b.spent, b.level = b.spent+n, b.level-n }

func (b *bucket) give(n float64) {
	b.spent -= n
	b.level = min(b.level+n, b.most)
}

// A sample is what an answer tells of a limit.
type sample struct {
	now, sent   time.Time
	limit, left float64
	after       float64 // spent by calls that were sent after this one
}

// tightFor is how long a limit that was found to be kept for less than a minute at a
// time is taken to be one.
const tightFor = 10 * time.Minute

// learn takes in a sample. It may have been taken when the call came or when it was
// answered; the level becomes what is possible under both.
func (b *bucket) learn(s sample, r *rules) {
	first := !b.known()
	b.fill(s.now, r)
	b.limit = s.limit
	rate := b.rate(r)
	if b.most = max(b.most, s.left, rate, 1); s.now.Before(b.tight) {
		b.most = max(rate, 1)
	}
	b.most = min(b.most, max(s.limit, 1))
	if first {
		b.at, b.level = s.now, min(s.left-s.after, b.most)
		return
	}
	then := min(s.left+rate*s.now.Sub(s.sent).Seconds()-s.after, b.most)
	b.level = min(max(b.level, min(then, s.left)), max(then, s.left), b.most)
}

// tighten lets no more be saved up than what a second brings.
func (b *bucket) tighten(now time.Time, r *rules) {
	if b.known() {
		b.tight = now.Add(tightFor)
		b.most = max(b.rate(r), 1)
		b.level = min(b.level, 0)
	}
}

// heads are the names of the headers that tell of a limit.
type heads struct {
	limit, left string
	tokens      bool // the API rounds what is left of it to thousands
}

// named are the headers of a limit of a kind, as they stand in an [http.Header].
func named(kind, limit string, tokens bool) heads {
	name := http.CanonicalHeaderKey(kind + limit)
	return heads{name + "-Limit", name + "-Remaining", tokens}
}

// The headers of the limits: of all calls, of those in fast mode, and of the Priority Tier.
var (
	standard = [dims]heads{
		named("anthropic-ratelimit-", names[requests], false), named("anthropic-ratelimit-", names[input], true), named("anthropic-ratelimit-", names[output], true),
	}
	fast = [dims]heads{
		named("anthropic-fast-", names[requests], false), named("anthropic-fast-", names[input], true), named("anthropic-fast-", names[output], true),
	}
	prior = [len(priorNames)]heads{named("anthropic-", priorNames[0], true), named("anthropic-", priorNames[1], true)}
)

// read reads one limit of an answer; of what is rounded half a thousand is kept back.
func read(h http.Header, of heads) (limit, left float64, ok bool) {
	const thousand = 1000
	limit, err := strconv.ParseFloat(first(h[of.limit]), 64)
	if err != nil || !(limit > 0) || limit > 1e12 {
		return 0, 0, false
	}
	left, err = strconv.ParseFloat(first(h[of.left]), 64)
	if err != nil || !(left >= 0) {
		return 0, 0, false
	}
	if of.tokens && left >= thousand && limit >= 20*thousand {
		left -= thousand / 2
	}
	return limit, min(left, limit), true
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
