// Package ratelimittest holds the reference model of ratelimit and a walk of
// random decisions that compares a store with it, in virtual time. It is for the
// tests of stores, also of stores that others write.
package ratelimittest

import (
	"sort"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// A Model decides as the documentation of each algorithm says, by the shortest
// way, however slow: it keeps everything and looks at all of it. Times are
// microseconds. It is not safe for concurrent use.
type Model struct {
	counters map[id]*state
	lease    uint64
}

type id struct {
	key    string
	family ratelimit.Algorithm
	window time.Duration
}

type state struct {
	units []unit // Window: oldest first; Concurrency: by lease
	level int64  // GCRA: microseconds of work left at the time since
	since int64
}

type unit struct {
	at, n int64
	lease uint64
}

// NewModel returns an empty model.
func NewModel() *Model { return &Model{counters: map[id]*state{}} }

func (m *Model) at(c ratelimit.Check, now int64) *state {
	k := id{c.Key, c.Limit.Family(), c.Limit.Window}
	s := m.counters[k]
	if s == nil {
		s = &state{since: now}
		m.counters[k] = s
	}
	window := c.Limit.Window.Microseconds()
	var left []unit
	for _, u := range s.units {
		if u.at+window > now {
			left = append(left, u)
		}
	}
	s.units = left
	s.level, s.since = max(s.level-(now-s.since), 0), now
	if c.Limit.Algorithm == ratelimit.GCRA {
		s.level = min(s.level, emission(c.Limit)*c.Limit.Burst)
	}
	return s
}

func emission(l ratelimit.Limit) int64 {
	w := l.Window.Microseconds()
	e := w / l.Max
	if e*l.Max < w {
		e++
	}
	return e
}

func (s *state) sum() (n int64) {
	for _, u := range s.units {
		n += u.n
	}
	return n
}

// wait is the shortest time after which cost fits; -1: it never does.
func (s *state) wait(c ratelimit.Check, now int64) int64 {
	l := c.Limit
	if l.Algorithm == ratelimit.GCRA {
		if c.Cost > l.Burst {
			return -1
		}
		return max(s.level-emission(l)*(l.Burst-c.Cost), 0)
	}
	if c.Cost > l.Max {
		return -1
	}
	over := s.sum() + c.Cost - l.Max
	if over <= 0 || c.Cost == 0 {
		return 0
	}
	window := l.Window.Microseconds()
	units := append([]unit(nil), s.units...)
	sort.SliceStable(units, func(i, j int) bool { return units[i].at < units[j].at })
	if l.Algorithm == ratelimit.Concurrency {
		return units[0].at + window - now // one may end; more are not asked for
	}
	for _, u := range units {
		if over -= u.n; over <= 0 {
			return u.at + window - now
		}
	}
	return -1
}

func (s *state) take(c ratelimit.Check, cost, now int64, lease uint64) {
	l := c.Limit
	if l.Algorithm == ratelimit.GCRA {
		s.level += emission(l) * cost
		return
	}
	at := now
	if g := l.Grain().Microseconds(); g > 0 {
		at = (now/g + 1) * g
	}
	if l.Algorithm != ratelimit.Concurrency && len(s.units) > 0 {
		at = max(at, s.units[len(s.units)-1].at)
	}
	s.units = append(s.units, unit{at, cost, lease})
}

func (s *state) report(c ratelimit.Check, now int64, r *ratelimit.Result) {
	l, us := c.Limit, time.Microsecond
	r.Next, r.Reset = 0, 0
	if l.Algorithm == ratelimit.GCRA {
		e := emission(l)
		r.Remaining = (e*l.Burst - s.level) / e
		if s.level > 0 {
			r.Next, r.Reset = time.Duration((s.level-1)%e+1)*us, time.Duration(s.level)*us
		}
		return
	}
	r.Remaining = max(l.Max-s.sum(), 0)
	for i, u := range s.units {
		left := time.Duration(u.at-now)*us + l.Window
		if i == 0 || left < r.Next {
			r.Next = left
		}
		r.Reset = max(r.Reset, left)
	}
}

// Take is as [ratelimit.Store.Take] says.
func (m *Model) Take(now int64, checks []ratelimit.Check, results []ratelimit.Result) ratelimit.Decision {
	d := ratelimit.Decision{Allowed: true, At: now}
	for i, c := range checks {
		wait := m.at(c, now).wait(c, now)
		retry := time.Duration(wait) * time.Microsecond
		if wait < 0 {
			retry = ratelimit.Never
		}
		results[i] = ratelimit.Result{Allowed: wait == 0, Retry: retry}
		if wait != 0 && !c.Shadow {
			d.Allowed, d.Retry = false, max(d.Retry, retry)
		}
	}
	m.lease++
	for i, c := range checks {
		s := m.at(c, now)
		if d.Allowed && results[i].Allowed && c.Cost > 0 {
			s.take(c, c.Cost, now, m.lease)
		}
		s.report(c, now, &results[i])
	}
	if d.Allowed {
		d.Lease = m.lease
	}
	return d
}

// Refund is as [ratelimit.Store.Refund] says.
func (m *Model) Refund(now int64, d ratelimit.Decision, checks []ratelimit.Check) {
	for _, c := range checks {
		s, l := m.at(c, now), c.Limit
		life := l.Window.Microseconds()
		if l.Algorithm == ratelimit.GCRA {
			life = emission(l) * l.Burst
		}
		if !d.Allowed || now-d.At >= life {
			continue
		}
		var left []unit
		for cost, i := c.Cost, 0; i < len(s.units); i++ {
			u := s.units[i]
			if l.Algorithm == ratelimit.Concurrency {
				if u.lease != d.Lease {
					left = append(left, u)
				}
				continue
			}
			back := min(cost, u.n)
			if cost, u.n = cost-back, u.n-back; u.n > 0 {
				left = append(left, u)
			}
		}
		s.units = left
		s.level = max(s.level-emission(l)*min(c.Cost, max(l.Burst, 0)), 0)
	}
}

// Charge is as [ratelimit.Store.Charge] says.
func (m *Model) Charge(now int64, checks []ratelimit.Check) {
	for _, c := range checks {
		var r ratelimit.Result
		s := m.at(c, now)
		s.report(c, now, &r)
		if cost := min(c.Cost, r.Remaining); cost > 0 && c.Limit.Algorithm != ratelimit.Concurrency {
			s.take(c, cost, now, 0)
		}
	}
}

// Restore is as [ratelimit.Store.Restore] says.
func (m *Model) Restore(now int64, checks []ratelimit.Check, debts []ratelimit.Debt) {
	for i, c := range checks {
		s, d, l := m.at(c, now), debts[i], c.Limit
		reset := d.Reset.Microseconds()
		switch {
		case l.Algorithm == ratelimit.Concurrency || d.Used > 0 && reset <= 0:
		case l.Algorithm == ratelimit.GCRA && d.Used > 0:
			s.level = max(s.level, min(reset, emission(l)*l.Burst))
		case l.Algorithm != ratelimit.GCRA && min(d.Used, l.Max) > s.sum():
			at := now + reset - l.Window.Microseconds()
			if len(s.units) > 0 {
				at = max(at, s.units[len(s.units)-1].at)
			}
			s.units = append(s.units, unit{at: at, n: min(d.Used, l.Max) - s.sum()})
		}
		c.Cost = d.Add
		m.Charge(now, []ratelimit.Check{c})
	}
}

// Reset is as [ratelimit.Store.Reset] says.
func (m *Model) Reset(checks []ratelimit.Check) {
	for _, c := range checks {
		delete(m.counters, id{c.Key, c.Limit.Family(), c.Limit.Window})
	}
}
