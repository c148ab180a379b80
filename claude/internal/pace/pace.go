// Package pace keeps calls within the rate limits that the Claude API tells of in its
// answers, so that it never has to refuse one: a [Lane] for each key and class of
// models holds what is left of the requests, input tokens and output tokens a minute,
// and calls for which nothing is left wait in a fair line instead of being sent away.
//
// Only the Claude plane may import it.
package pace

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"
)

// The limits of a lane (https://docs.claude.com/en/api/rate-limits).
const (
	requests = iota
	input    // tokens, but for those read from the prompt cache
	output   // tokens
	dims
)

var names = [dims]string{"requests", "input-tokens", "output-tokens"}

// priorNames are the limits of the Priority Tier
// (https://platform.claude.com/docs/en/api/service-tiers). What is beyond them is
// answered at the standard tier, and what is within them counts to the standard limits
// as well: they are shown, and keep no call waiting.
var priorNames = [...]string{"priority-input-tokens", "priority-output-tokens"}

// A Lane is one key's share of one class of models, or its organisation's. Its methods
// may be called from many goroutines.
type Lane struct {
	Key, Class string

	rules *rules

	mu      sync.Mutex
	owner   string // whose lane it is, as far as the answers have told; guards Key too
	limits  [dims]bucket
	prior   [len(priorNames)]bucket // only limit and level
	silent  bool                    // the API tells of no limits
	window  float64                 // calls at a time while no limit is known; 0: any number
	flying  int                     // calls under way
	blocked time.Time               // until then the API wants to see nothing
	line    line

	ratio   float64 // uncached input tokens for each one that the size of a request suggests
	answers float64 // output tokens of an answer; 0: not known yet
	waited  int64   // calls that had to wait
	used    time.Time
}

type rules struct {
	share float64 // of a limit that is used
	most  int     // calls that may wait
}

// coldStart is how many calls are under way at once before the first answer has told
// of the limits: fewer than the smallest limit lets through in a minute.
const coldStart = 32

// An Ask is what a call would take.
type Ask struct {
	Bytes     int64  // of the request
	MaxTokens int64  // that it asks for at most; 0: not known
	Flow      string // who asks: flows share a lane fairly
	Weight    float64
	Deadline  time.Time
}

// ErrFull is returned when too many calls wait already.
var ErrFull = errors.New("too many calls wait for the rate limit already")

// A Ticket is the right to send one call. It is used by one goroutine. The nil Ticket
// is one of a lane that does not exist.
type Ticket struct {
	lane  *Lane
	size  int64
	took  [dims]float64 // of the limits
	spent [dims]float64 // of them by all calls up to this one
	sent  time.Time
}

// Wait waits until a is within the limits, in the order of the line, or until ctx
// ends; it then returns the cause.
func (l *Lane) Wait(ctx context.Context, a Ask) (*Ticket, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	need := l.estimate(a)
	if l.line.n == 0 && l.may(now, need) <= 0 {
		return l.admit(now, a, need), nil
	}
	if l.line.n >= l.rules.most {
		return nil, ErrFull
	}
	w := l.line.add(a, l.cost(need), now)
	l.waited++
	defer l.wakeFirst()
	defer l.line.remove(w)
	for {
		d := time.Duration(math.MaxInt64) // a wake comes before
		if l.line.first() == w {
			now = time.Now()
			if d = l.may(now, need); d <= 0 {
				l.line.serve(w)
				return l.admit(now, a, need), nil
			}
		}
		l.mu.Unlock()
		w.await(ctx, d)
		l.mu.Lock()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// Due returns about how long a call would have to wait if it came now.
func (l *Lane) Due(a Ask) time.Duration {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	need := l.estimate(a)
	wait := max(l.may(time.Now(), need), 0)
	ahead := time.Duration(float64(l.line.n) * l.cost(need) * float64(time.Second))
	return wait + min(ahead, math.MaxInt64-wait)
}

// bytesPerToken turns the size of a request into input tokens; what a lane learns of
// real usage corrects it.
const bytesPerToken = 3.5

// shortAnswer is what an answer is taken to be while none has been seen.
const shortAnswer = 512

// estimate is what a call will take of the limits.
func (l *Lane) estimate(a Ask) [dims]float64 {
	out := l.answers
	if out == 0 {
		out = shortAnswer
	}
	if a.MaxTokens > 0 {
		out = min(out, float64(a.MaxTokens))
	}
	return [dims]float64{1, float64(a.Bytes) / bytesPerToken * l.ratio, out}
}

// cost is how long a call takes the lane for itself, in seconds.
func (l *Lane) cost(need [dims]float64) float64 {
	cost := 0.001
	for i := range l.limits {
		if b := &l.limits[i]; b.known() {
			cost = max(cost, need[i]/b.rate(l.rules))
		}
	}
	return cost
}

// may returns how long the first in the line has to wait.
func (l *Lane) may(now time.Time, need [dims]float64) time.Duration {
	wait := l.blocked.Sub(now)
	if l.window > 0 && !l.known() && l.flying >= int(l.window) {
		wait = math.MaxInt64 // until one of them has its answer
	}
	for i := range l.limits {
		if b := &l.limits[i]; b.known() {
			wait = max(wait, b.wait(now, need[i], l.rules))
		}
	}
	return wait
}

func (l *Lane) known() bool {
	for i := range l.limits {
		if l.limits[i].known() {
			return true
		}
	}
	return false
}

// admit takes what a call needs off the limits.
func (l *Lane) admit(now time.Time, a Ask, need [dims]float64) *Ticket {
	t := &Ticket{lane: l, size: a.Bytes, took: need, sent: now}
	for i := range l.limits {
		l.limits[i].take(need[i])
		t.spent[i] = l.limits[i].spent
	}
	l.flying++
	l.used = now
	return t
}

// Told reads what the head of the call's answer says of the limits. It may be called
// again.
func (t *Ticket) Told(status int, h http.Header, retryAfter time.Duration) {
	if t == nil {
		return
	}
	l, now := t.lane, time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	told, empty := false, false
	for i, of := range prior {
		if limit, left, ok := read(h, of); ok {
			l.prior[i].limit, l.prior[i].level = limit, left
		}
	}
	kind := &standard
	if strings.HasSuffix(l.Class, Fast("")) {
		kind = &fast
	}
	for i := range l.limits {
		limit, left, ok := read(h, kind[i])
		if !ok {
			continue
		}
		told = true
		empty = empty || left < t.took[i]
		l.limits[i].learn(sample{now: now, sent: t.sent, limit: limit, left: left, after: l.limits[i].spent - t.spent[i]}, l.rules)
	}
	switch {
	case status == http.StatusTooManyRequests:
		l.refused(now, retryAfter, empty)
	case told:
		l.silent = false
	case status < http.StatusMultipleChoices && !l.known():
		if l.silent = true; l.window == coldStart {
			l.window = 0
		} else if l.window > 0 {
			l.window += 1 / l.window
		}
	}
	l.wakeFirst()
}

// longestBlock bounds how long one answer can stop a lane: what is asked for beyond it
// is asked for again by the next one.
const longestBlock = time.Minute

// refused takes in a 429.
func (l *Lane) refused(now time.Time, after time.Duration, empty bool) {
	if until := now.Add(min(after, longestBlock)); until.After(l.blocked) {
		l.blocked = until
	}
	switch {
	case !l.known():
		l.window = max(1, min(l.window, float64(l.flying))/2)
		if l.window == 0 {
			l.window = max(1, float64(l.flying)/2)
		}
	case !empty: // the limit is kept for less than a minute at a time
		for i := range l.limits {
			l.limits[i].tighten(now, l.rules)
		}
	}
}

// Usage is what a call has cost. Input leaves out what was read from the cache.
type Usage struct{ Input, Output int64 }

// Settle ends the call's part in the lane: what it was taken to need and did not is
// given back. Nil: nothing is known of its usage, and what was taken stays taken.
func (t *Ticket) Settle(u *Usage) {
	if t == nil || t.lane == nil {
		return
	}
	l := t.lane
	t.lane = nil
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying--
	if u != nil {
		l.limits[input].give(t.took[input] - float64(u.Input))
		l.limits[output].give(t.took[output] - float64(u.Output))
		l.learn(t, *u)
	}
	l.wakeFirst()
}

// Return gives all of it back: the call was not sent, or was refused.
func (t *Ticket) Return(sent bool) {
	if t == nil || t.lane == nil {
		return
	}
	l := t.lane
	t.lane = nil
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying--
	for i := range l.limits {
		if i != requests || !sent {
			l.limits[i].give(t.took[i])
		}
	}
	l.wakeFirst()
}

// learn corrects the estimates by what a call really took.
func (l *Lane) learn(t *Ticket, u Usage) {
	const weight = 0.1
	if guess := float64(t.size) / bytesPerToken; guess >= 1 && u.Input > 0 {
		ratio := min(max(float64(u.Input)/guess, 0.001), 10)
		l.ratio += (ratio - l.ratio) * weight
	}
	if u.Output > 0 {
		if l.answers == 0 {
			l.answers = float64(u.Output)
		}
		l.answers += (float64(u.Output) - l.answers) * weight
	}
}

func (l *Lane) wakeFirst() {
	if w := l.line.first(); w != nil {
		select {
		case w.wake <- struct{}{}:
		default: // it has been woken already
		}
	}
}
