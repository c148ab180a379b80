package ratelimit

import "time"

// A counter is the state behind one check. Which fields it uses depends on the
// limit's family.
//
// All times are microseconds on the store's clock, which does not go backwards.
type counter struct {
	// level is the sum of the stamps (Window), the theoretical arrival time (GCRA)
	// or a time before which no lease ends (Concurrency).
	level  int64
	stamps []stamp // a ring of a power of two (Window), or unordered leases (Concurrency)
	head   int32   // the oldest stamp
	n      int32   // how many stamps
}

// A stamp is some units with the time they count as taken at, or a lease with the
// time of its end.
type stamp struct {
	at int64
	n  int64
}

const stampSize = 16

// settle drops what is over by now.
func (c *counter) settle(l *Limit, now int64) {
	switch l.Family() {
	case Window:
		for w := l.window(); c.n > 0 && c.stamps[c.head].at+w <= now; {
			c.pop()
		}
	case Concurrency:
		c.end(func(s stamp) bool { return s.at <= now }, now)
	case GCRA:
		// A limit that has become tighter makes nobody wait longer than it says.
		c.level = min(c.level, now+l.emission()*l.Burst)
	}
}

// restore makes up for a debt. c is settled.
func (c *counter) restore(l *Limit, d Debt, now int64) {
	reset := int64(d.Reset / time.Microsecond)
	switch l.Family() {
	case Concurrency:
		return
	case GCRA:
		if d.Used > 0 && reset > 0 {
			c.level = max(c.level, now+min(reset, l.emission()*l.Burst))
		}
	default:
		if missing := min(d.Used, l.Max) - c.level; missing > 0 && reset > 0 {
			c.stamp(min(now+reset-l.window(), countsAt(l, now)), missing)
		}
	}
	if add := min(d.Add, capacity(l)-c.used(l, now)); add > 0 {
		c.charge(l, add, now, 0)
	}
}

// pop drops the oldest stamp.
func (c *counter) pop() {
	c.level -= c.stamps[c.head].n
	c.head = (c.head + 1) & int32(len(c.stamps)-1)
	c.n--
}

// end drops leases; between two ends of leases it has nothing to look at.
func (c *counter) end(over func(stamp) bool, now int64) {
	if now != always && now < c.level {
		return
	}
	kept, soonest := c.stamps[:0], int64(1<<62)
	for _, s := range c.stamps[:c.n] {
		if !over(s) {
			kept = append(kept, s)
			soonest = min(soonest, s.at)
		}
	}
	c.n, c.level = int32(len(kept)), soonest
}

const always = -1

// used is how many units are taken; GCRA counts a begun unit as taken.
func (c *counter) used(l *Limit, now int64) int64 {
	switch l.Family() {
	case GCRA:
		e := l.emission()
		return (max(c.level-now, 0) + e - 1) / e
	case Concurrency:
		return int64(c.n)
	}
	return c.level
}

// capacity is how many units there are at all.
func capacity(l *Limit) int64 {
	if l.Algorithm == GCRA {
		return l.Burst
	}
	return l.Max
}

// wait returns how long until cost fits; 0: now; -1: never. c is settled.
func (c *counter) wait(l *Limit, cost, now int64) int64 {
	if cost > capacity(l) {
		return -1
	}
	switch l.Family() {
	case GCRA:
		e := l.emission()
		return max(max(c.level, now)+e*cost-(now+e*l.Burst), 0)
	case Concurrency:
		if int64(c.n)+cost <= l.Max {
			return 0
		}
		return c.soonest() - now
	}
	over := c.level + cost - l.Max
	if over <= 0 || cost == 0 {
		return 0
	}
	for i := int32(0); ; i++ {
		s := c.stamps[(c.head+i)&int32(len(c.stamps)-1)]
		if over -= s.n; over <= 0 {
			return s.at + l.window() - now
		}
	}
}

func (c *counter) soonest() int64 {
	soonest := int64(1 << 62)
	for _, s := range c.stamps[:c.n] {
		soonest = min(soonest, s.at)
	}
	return soonest
}

// charge takes cost units, or a lease with the given id. c is settled.
func (c *counter) charge(l *Limit, cost, now int64, lease uint64) {
	switch l.Family() {
	case GCRA:
		c.level = max(c.level, now) + l.emission()*cost
	case Concurrency:
		if end := now + l.window(); c.n == 0 || end < c.level {
			c.level = end
		}
		c.stamps = append(c.stamps[:c.n], stamp{now + l.window(), int64(lease)})
		c.n++
	default:
		c.stamp(countsAt(l, now), cost)
	}
}

// countsAt is the time at which a unit of now is taken to have been taken: the end
// of its slice.
func countsAt(l *Limit, now int64) int64 {
	if g := l.grain(); g > 0 {
		return now - now%g + g
	}
	return now
}

// stamp notes units at a time that is not before the newest one's.
func (c *counter) stamp(at, units int64) {
	c.level += units
	if c.n > 0 {
		newest := &c.stamps[(c.head+c.n-1)&int32(len(c.stamps)-1)]
		if newest.at >= at {
			newest.n += units
			return
		}
	}
	if int(c.n) == len(c.stamps) {
		grown := make([]stamp, max(2*len(c.stamps), 4))
		for i := range c.n {
			grown[i] = c.stamps[(c.head+i)&int32(len(c.stamps)-1)]
		}
		c.stamps, c.head = grown, 0
	}
	c.stamps[(c.head+c.n)&int32(len(c.stamps)-1)] = stamp{at, units}
	c.n++
}

// refund gives back units, the oldest first, or the lease. c is settled.
func (c *counter) refund(l *Limit, cost int64, lease uint64) {
	switch l.Family() {
	case GCRA:
		c.level = max(c.level-l.emission()*min(cost, l.Burst), 0)
	case Concurrency:
		c.end(func(s stamp) bool { return s.n == int64(lease) }, always)
	default:
		for cost > 0 && c.n > 0 {
			oldest := &c.stamps[c.head]
			if oldest.n > cost {
				oldest.n -= cost
				c.level -= cost
				return
			}
			cost -= oldest.n
			c.pop()
		}
	}
}

// report fills in all of r but Allowed and Retry. c is settled.
func (c *counter) report(l *Limit, now int64, r *Result) {
	r.Remaining = max(capacity(l)-c.used(l, now), 0)
	r.Next, r.Reset = 0, 0
	switch l.Family() {
	case GCRA:
		if ahead := c.level - now; ahead > 0 {
			r.Next, r.Reset = micros((ahead-1)%l.emission()+1), micros(ahead)
		}
	case Concurrency:
		if c.n > 0 {
			r.Next = micros(c.soonest() - now)
			r.Reset = micros(c.over(l) - now)
		}
	default:
		if c.n > 0 {
			r.Next = micros(c.stamps[c.head].at + l.window() - now)
			r.Reset = micros(c.over(l) - now)
		}
	}
}

// over is the time from which on c is as good as none.
func (c *counter) over(l *Limit) int64 {
	switch l.Family() {
	case GCRA:
		return c.level
	case Concurrency:
		last := int64(0)
		for _, s := range c.stamps[:c.n] {
			last = max(last, s.at)
		}
		return last
	}
	if c.n == 0 {
		return 0
	}
	return c.stamps[(c.head+c.n-1)&int32(len(c.stamps)-1)].at + l.window()
}

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
