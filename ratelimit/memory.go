package ratelimit

import (
	"context"
	"fmt"
	"hash/maphash"
	"math/bits"
	"sync/atomic"
	"time"
)

// shards is how many tables a store is split into, so that cores seldom meet. A
// set of shards fits a word.
const shards = 64

// DefaultMemory is the memory that a [Memory] may use if it is not told, in bytes:
// room for a good hundred thousand keys.
const DefaultMemory = 32 << 20

// Memory is a [Store] in this process. Its memory is bounded: when it is full, the
// counters that were used least go, which is a full limit for whoever comes back.
// It runs on the process's monotonic clock, so steps of the wall clock do not
// concern it. It never returns an error but [ErrInvalid].
type Memory struct {
	seed   maphash.Seed
	begin  time.Time
	leases atomic.Uint64
	shards [shards]table[counter]
}

// NewMemory returns an empty store that holds at most so many bytes; 0 or less
// means [DefaultMemory].
func NewMemory(bytes int64) *Memory {
	if bytes <= 0 {
		bytes = DefaultMemory
	}
	m := &Memory{seed: maphash.MakeSeed(), begin: time.Now()}
	for i := range m.shards {
		m.shards[i].limit = bytes / shards
	}
	return m
}

// now is never so small that a time before it would be negative.
func (m *Memory) now() int64 { return int64(time.Since(m.begin)/time.Microsecond) + epoch }

// epoch keeps all times positive.
const epoch = int64(2 * MaxWindow / time.Microsecond)

// Take implements [Store].
func (m *Memory) Take(_ context.Context, checks []Check, results []Result) (Decision, error) {
	return m.take(m.now(), checks, results)
}

func (m *Memory) take(now int64, checks []Check, results []Result) (Decision, error) {
	if err := Validate(checks, results); err != nil {
		return Decision{}, err
	}
	var batch batch
	m.lock(checks, &batch)
	d := Decision{Allowed: true, At: now}
	for i := range checks {
		c := &checks[i]
		wait := m.ask(c, &batch, i, now)
		batch.wait[i] = wait
		if wait != 0 && !c.Shadow {
			d.Allowed = false
			d.Retry = max(d.Retry, retry(wait))
		}
		if c.Limit.Algorithm == Concurrency && c.Cost > 0 && d.Lease == 0 {
			d.Lease = m.leases.Add(1)
		}
	}
	for i := range checks {
		if d.Allowed && batch.wait[i] == 0 && checks[i].Cost > 0 {
			m.charge(&checks[i], &batch, i, now, d.Lease)
		}
		if results != nil {
			batch.report(&checks[i], i, now, &results[i])
		}
	}
	if !d.Allowed {
		d.Lease = 0
	}
	m.unlock(&batch)
	return d, nil
}

// A batch is the state of one call: its shards, locked, and its cells, held.
type batch struct {
	locked uint64
	hash   [MaxChecks]uint64
	cell   [MaxChecks]*cell[counter]
	wait   [MaxChecks]int64
	n      int
}

// lock takes the locks of all shards that checks need, in one order for all.
func (m *Memory) lock(checks []Check, b *batch) {
	b.n = len(checks)
	for i := range checks {
		h := maphash.String(m.seed, checks[i].Key) ^ checks[i].kind()*0x9E3779B97F4A7C15
		b.hash[i] = h
		b.locked |= 1 << (h % shards)
	}
	for left := b.locked; left != 0; left &= left - 1 {
		m.shards[bits.TrailingZeros64(left)].Lock()
	}
}

func (m *Memory) unlock(b *batch) {
	for _, c := range b.cell[:b.n] {
		if c != nil {
			c.held = false
		}
	}
	for left := b.locked; left != 0; left &= left - 1 {
		m.shards[bits.TrailingZeros64(left)].Unlock()
	}
}

// ask finds check i's counter and returns how long its cost must wait.
func (m *Memory) ask(c *Check, b *batch, i int, now int64) int64 {
	h := b.hash[i]
	found := m.shards[h%shards].find(h, c.Key, c.kind())
	if found == nil {
		var none counter
		return none.wait(&c.Limit, c.Cost, now)
	}
	found.held = true
	b.cell[i] = found
	found.value.settle(&c.Limit, now)
	return found.value.wait(&c.Limit, c.Cost, now)
}

func retry(wait int64) time.Duration {
	if wait < 0 {
		return Never
	}
	return micros(wait)
}

// charge takes check i's cost, making its counter if there is none.
func (m *Memory) charge(c *Check, b *batch, i int, now int64, lease uint64) {
	t := &m.shards[b.hash[i]%shards]
	if b.cell[i] == nil {
		b.cell[i] = t.insert(b.hash[i], c.Key, c.kind(), now)
	}
	v := &b.cell[i].value
	v.charge(&c.Limit, c.Cost, now, lease)
	b.cell[i].until = v.over(&c.Limit)
	t.grow(b.cell[i], int64(cap(v.stamps))*stampSize, now)
}

func (b *batch) report(c *Check, i int, now int64, r *Result) {
	r.Allowed, r.Retry = b.wait[i] == 0, retry(b.wait[i])
	if b.cell[i] != nil {
		b.cell[i].value.report(&c.Limit, now, r)
		return
	}
	r.Remaining, r.Next, r.Reset = capacity(&c.Limit), 0, 0
}

// Refund implements [Store].
func (m *Memory) Refund(_ context.Context, d Decision, checks []Check) error {
	return m.refund(m.now(), d, checks)
}

func (m *Memory) refund(now int64, d Decision, checks []Check) error {
	return m.each(checks, func(b *batch, i int) {
		c := &checks[i]
		if m.ask(c, b, i, now); b.cell[i] == nil || !d.Allowed || gone(c, d.At, now) {
			return
		}
		v := &b.cell[i].value
		v.refund(&c.Limit, c.Cost, d.Lease)
		b.cell[i].until = v.over(&c.Limit)
	})
}

// gone reports whether what was taken at a time has left the window by itself.
func gone(c *Check, at, now int64) bool {
	if c.Limit.Algorithm == GCRA {
		return now-at >= c.Limit.emission()*c.Limit.Burst
	}
	return now-at >= c.Limit.window()
}

// Charge implements [Store].
func (m *Memory) Charge(_ context.Context, checks []Check) error {
	return m.overcharge(m.now(), checks)
}

func (m *Memory) overcharge(now int64, checks []Check) error {
	return m.each(checks, func(b *batch, i int) {
		c := checks[i]
		m.ask(&c, b, i, now)
		left := capacity(&c.Limit)
		if b.cell[i] != nil {
			left = max(left-b.cell[i].value.used(&c.Limit, now), 0)
		}
		if c.Cost = min(c.Cost, left); c.Cost > 0 && c.Limit.Algorithm != Concurrency {
			m.charge(&c, b, i, now, 0)
		}
	})
}

// Restore implements [Store].
func (m *Memory) Restore(_ context.Context, checks []Check, debts []Debt) error {
	return m.restore(m.now(), checks, debts)
}

func (m *Memory) restore(now int64, checks []Check, debts []Debt) error {
	if len(debts) != len(checks) {
		return fmt.Errorf("%w: %d debts for %d checks", ErrInvalid, len(debts), len(checks))
	}
	return m.each(checks, func(b *batch, i int) {
		c, h := &checks[i], b.hash[i]
		if c.Limit.Algorithm == Concurrency || debts[i].Used <= 0 && debts[i].Add <= 0 {
			return
		}
		t := &m.shards[h%shards]
		if m.ask(c, b, i, now); b.cell[i] == nil {
			b.cell[i] = t.insert(h, c.Key, c.kind(), now)
		}
		v := &b.cell[i].value
		v.restore(&c.Limit, debts[i], now)
		b.cell[i].until = v.over(&c.Limit)
		t.grow(b.cell[i], int64(cap(v.stamps))*stampSize, now)
	})
}

// Reset implements [Store].
func (m *Memory) Reset(_ context.Context, checks []Check) error {
	return m.each(checks, func(b *batch, i int) {
		c, h := &checks[i], b.hash[i]
		if found := m.shards[h%shards].find(h, c.Key, c.kind()); found != nil {
			m.shards[h%shards].remove(found)
		}
	})
}

// each runs do for every check with its shard locked.
func (m *Memory) each(checks []Check, do func(b *batch, i int)) error {
	if err := Validate(checks, nil); err != nil {
		return err
	}
	var b batch
	m.lock(checks, &b)
	for i := range checks {
		do(&b, i)
	}
	m.unlock(&b)
	return nil
}

// MemoryStats is how full a [Memory] is.
type MemoryStats struct {
	Keys    int    // counters held
	Bytes   int64  // memory they take, as accounted
	Evicted uint64 // counters that had to go before their time, since the start
}

// Stats adds up all shards; it locks each for a moment.
func (m *Memory) Stats() MemoryStats {
	var s MemoryStats
	for i := range m.shards {
		t := &m.shards[i]
		t.Lock()
		s.Keys += len(t.ring)
		s.Bytes += t.bytes
		s.Evicted += t.evicted
		t.Unlock()
	}
	return s
}
