package ratelimit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"time"
)

// snapshotMark begins what Save writes; its last byte is the version.
const snapshotMark = "ratelim\x01"

// A record is one counter as Save writes it, followed by the key and the stamps.
// Times are microseconds from the moment it is written.
type record struct {
	Kind  uint64
	Level int64 // GCRA: the theoretical arrival time
	Key   uint16
	N     uint16 // stamps
}

type savedStamp struct{ At, N int64 }

// Save writes all counters but leases, whose holders a restart ends, so that a
// restart gives nobody a second helping. It locks each part of the store for a
// moment; decisions go on meanwhile.
func (m *Memory) Save(w io.Writer) error {
	out := bufio.NewWriter(w)
	if _, err := out.WriteString(snapshotMark); err != nil {
		return fmt.Errorf("save limits: %w", err)
	}
	for i := range m.shards {
		if err := m.saveShard(&m.shards[i], out); err != nil {
			return fmt.Errorf("save limits: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("save limits: %w", err)
	}
	return nil
}

func (m *Memory) saveShard(t *table[counter], out io.Writer) error {
	var all []byte
	t.Lock()
	now := m.now()
	for _, c := range t.ring {
		if c.until <= now || familyOf(c.kind) == Concurrency {
			continue
		}
		v := &c.value
		r := record{Kind: c.kind, Level: v.level - now, Key: uint16(len(c.key)), N: uint16(v.n)}
		all, _ = binary.Append(all, binary.BigEndian, r) // a struct of fixed size cannot fail
		all = append(all, c.key...)
		for k := range v.n {
			s := v.stamps[(v.head+k)&int32(len(v.stamps)-1)]
			all, _ = binary.Append(all, binary.BigEndian, savedStamp{s.at - now, s.n})
		}
	}
	t.Unlock()
	_, err := out.Write(all)
	return err
}

func familyOf(kind uint64) Algorithm { return Algorithm(kind & 7) }
func windowOf(kind uint64) int64     { return int64(kind >> 3) }
func soundWindow(microseconds int64) bool {
	return microseconds >= MinWindow.Microseconds() && microseconds <= MaxWindow.Microseconds()
}

var errSnapshot = errors.New("what was saved is damaged")

// Load reads what Save has written, into a store that is empty; away is the time
// since. What is damaged ends it with an error; what came before that is kept.
func (m *Memory) Load(r io.Reader, away time.Duration) error {
	in := bufio.NewReader(r)
	mark := make([]byte, len(snapshotMark))
	if _, err := io.ReadFull(in, mark); err != nil || string(mark) != snapshotMark {
		return fmt.Errorf("load limits: %w", errSnapshot)
	}
	now := m.now()
	base := now - min(max(away, 0), MaxWindow).Microseconds()
	for {
		err := m.loadOne(in, base, now)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("load limits: %w", err)
		}
	}
}

// loadOne reads one counter. io.EOF: there is none left.
func (m *Memory) loadOne(in io.Reader, base, now int64) error {
	var r record
	switch err := binary.Read(in, binary.BigEndian, &r); {
	case errors.Is(err, io.EOF):
		return io.EOF
	case err != nil:
		return errSnapshot
	}
	window := windowOf(r.Kind)
	family := familyOf(r.Kind)
	if family != Window && family != GCRA || !soundWindow(window) || r.Key == 0 || r.Key > MaxKey || r.N > MaxExact {
		return errSnapshot
	}
	key, stamps := make([]byte, r.Key), make([]savedStamp, r.N)
	if _, err := io.ReadFull(in, key); err != nil {
		return errSnapshot
	}
	if r.N > 0 {
		if err := binary.Read(in, binary.BigEndian, stamps); err != nil {
			return errSnapshot
		}
	}
	var c counter
	var until int64
	if family == GCRA {
		if r.N != 0 || r.Level > maxTolerance || r.Level < -window {
			return errSnapshot
		}
		c.level = base + r.Level
		until = c.level
	}
	last := int64(-1 << 62)
	for _, s := range stamps {
		if family != Window || s.N < 1 || s.N > MaxUnits || s.At < last || s.At < -window || s.At > window {
			return errSnapshot
		}
		last = s.At
		if at := base + s.At; at+window > now {
			c.stamp(at, s.N)
			until = at + window
		}
	}
	if until > now {
		m.put(string(key), r.Kind, c, until, now)
	}
	return nil
}

func (m *Memory) put(key string, kind uint64, c counter, until, now int64) {
	h := maphash.String(m.seed, key) ^ kind*0x9E3779B97F4A7C15
	t := &m.shards[h%shards]
	t.Lock()
	defer t.Unlock()
	if t.find(h, key, kind) != nil {
		return
	}
	cell := t.insert(h, key, kind, now)
	cell.value, cell.until = c, until
	t.grow(cell, int64(cap(c.stamps))*stampSize, now)
	cell.held = false
}
