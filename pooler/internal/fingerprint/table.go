package fingerprint

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Shape is a statement without its literals. It is immutable but for its figures.
type Shape struct {
	ID   string // 16 hex digits, the same in every process; "other" for what there was no room for
	Text string
	key  uint64
	gone atomic.Bool // forgotten by the table
	figures
}

// A User is one user's figures.
type User struct {
	Name string
	figures
}

// Bounds of a table, and of the cache that finds shapes by texts without literals.
const (
	maxShapes = 1000
	maxUsers  = 200
	maxTexts  = 4096
)

// other is what is counted together because there was no room for it.
const other = "other"

// A Table keeps shapes and users. What comes after there is no room any more counts
// as other; Turn makes room for those that come now.
type Table struct {
	seed   maphash.Seed
	recent atomic.Pointer[User] // the one that was asked for last; nil: look for it

	mu     sync.RWMutex
	texts  map[uint64]*Shape
	shapes map[uint64]*Shape
	users  map[string]*User
	rest   *Shape
	crowd  *User
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{
		seed: maphash.MakeSeed(), texts: map[uint64]*Shape{}, shapes: map[uint64]*Shape{}, users: map[string]*User{},
		rest: &Shape{ID: other}, crowd: &User{Name: other},
	}
}

// Of returns the shape of a statement. It keeps nothing of sql.
func (t *Table) Of(sql []byte, how Reading) *Shape {
	raw := maphash.Bytes(t.seed, sql)
	t.mu.RLock()
	s := t.texts[raw]
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	room := rooms.Get().(*[]byte)
	text, literals := Normalise((*room)[:0], sql, how)
	defer func() {
		*room = text
		rooms.Put(room)
	}()
	id := hash(text)
	t.mu.RLock()
	s = t.shapes[id]
	t.mu.RUnlock()
	if s != nil && literals {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s = t.shapes[id]; s == nil {
		if len(t.shapes) >= maxShapes {
			return t.rest
		}
		s = &Shape{ID: hex(id), key: id, Text: strings.ToValidUTF8(string(text), "?")}
		t.shapes[id] = s
	}
	if !literals {
		if len(t.texts) >= maxTexts {
			clear(t.texts)
		}
		t.texts[raw] = s
	}
	return s
}

// rooms are buffers for shapes.
var rooms = sync.Pool{New: func() any { return new([]byte) }}

// Record counts a query in, for its shape and its user. Either may have been
// forgotten meanwhile. A query whose shape nobody knows (nil) counts as other.
func (t *Table) Record(s *Shape, user string, sample Sample) {
	switch {
	case s == nil:
		s = t.rest
	case s.gone.Load():
		t.mu.Lock()
		if now := t.shapes[s.key]; now != nil {
			s = now
		} else if len(t.shapes) < maxShapes {
			s.gone.Store(false)
			t.shapes[s.key] = s
		} else {
			s = t.rest
		}
		t.mu.Unlock()
	}
	s.Add(sample)
	t.User(user).Add(sample)
}

// hash is FNV-1a, which is the same everywhere.
func hash(text []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range text {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

func hex(id uint64) string {
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[i] = digits[id>>(60-4*i)&15]
	}
	return string(b[:])
}

// User returns the figures of a user.
func (t *Table) User(name string) *User {
	if u := t.recent.Load(); u != nil && u.Name == name {
		return u
	}
	t.mu.RLock()
	u := t.users[name]
	if u != nil {
		t.recent.Store(u) // with the lock: Turn may forget it
	}
	t.mu.RUnlock()
	if u != nil {
		return u
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if u = t.users[name]; u == nil {
		if len(t.users) >= maxUsers {
			return t.crowd
		}
		u = &User{Name: name}
		t.users[name] = u
	}
	return u
}

// A Sample is one query that has ended.
type Sample struct {
	Took, Waited, Client time.Duration // the whole, and how much of it in our queue and for the client
	Rows                 int64
	Failed               bool
}

// buckets: eight for each doubling of a microsecond.
const buckets = 256

// A window is what was counted in a while. One lock is cheaper than a counter of its own for
// each figure.
type window struct {
	mu                   sync.Mutex
	calls, failed, rows  int64
	took, waited, client time.Duration
	latency              [buckets]uint32
}

// figures are of two windows: the one that is filled and the one before.
type figures struct {
	windows [2]atomic.Pointer[window]
}

// Add counts a query in.
func (f *figures) Add(s Sample) {
	w := f.windows[0].Load()
	if w == nil {
		f.windows[0].CompareAndSwap(nil, new(window))
		w = f.windows[0].Load()
	}
	i := bucket(s.Took)
	w.mu.Lock()
	w.calls++
	if s.Failed {
		w.failed++
	}
	w.rows += s.Rows
	w.took += s.Took
	w.waited += s.Waited
	w.client += s.Client
	w.latency[i]++
	w.mu.Unlock()
}

func bucket(d time.Duration) int {
	v := uint64(max(0, d.Microseconds()))
	if v < 8 {
		return int(v)
	}
	exp := bits.Len64(v) - 4
	return min(exp*8+int(v>>exp), buckets-1)
}

// upper is the longest time that a bucket holds.
func upper(i int) time.Duration {
	if i < 16 {
		return time.Duration(i+1) * time.Microsecond
	}
	exp := i/8 - 1
	return time.Duration(uint64(i-exp*8+1)<<exp) * time.Microsecond
}

// Turn begins the next window and forgets the one before the last. Shapes and users
// that had nothing in either are forgotten too.
func (t *Table) Turn() {
	t.mu.Lock()
	defer t.mu.Unlock()
	turn := func(f *figures) (empty bool) {
		last := f.windows[0].Swap(nil)
		f.windows[1].Store(last)
		return last == nil
	}
	for id, s := range t.shapes {
		if turn(&s.figures) {
			s.gone.Store(true)
			delete(t.shapes, id)
		}
	}
	for name, u := range t.users {
		if turn(&u.figures) {
			delete(t.users, name)
		}
	}
	turn(&t.rest.figures)
	turn(&t.crowd.figures)
	clear(t.texts)
	t.recent.Store(nil)
}

// A Summary is what the windows hold of one shape or user. Times but the percentiles
// are sums; all are in nanoseconds.
type Summary struct {
	Fingerprint string        `json:"fingerprint,omitempty"`
	Text        string        `json:"text,omitempty"`
	User        string        `json:"user,omitempty"`
	Calls       int64         `json:"calls"`
	Failed      int64         `json:"failed"`
	Rows        int64         `json:"rows"`
	Took        time.Duration `json:"took"`     // the whole
	Waited      time.Duration `json:"waited"`   // of it in the pool's queue
	Postgres    time.Duration `json:"postgres"` // of it in PostgreSQL
	Client      time.Duration `json:"client"`   // of it until the client had taken the answer
	P50         time.Duration `json:"p50"`
	P95         time.Duration `json:"p95"`
	P99         time.Duration `json:"p99"`
}

func (f *figures) summary() (s Summary) {
	var latency [buckets]uint64
	for i := range f.windows {
		w := f.windows[i].Load()
		if w == nil {
			continue
		}
		w.mu.Lock()
		s.Calls += w.calls
		s.Failed += w.failed
		s.Rows += w.rows
		s.Took += w.took
		s.Waited += w.waited
		s.Client += w.client
		for j, n := range w.latency {
			latency[j] += uint64(n)
		}
		w.mu.Unlock()
	}
	s.Postgres = max(0, s.Took-s.Waited-s.Client)
	s.P50, s.P95, s.P99 = quantile(&latency, .5), quantile(&latency, .95), quantile(&latency, .99)
	return s
}

func quantile(latency *[buckets]uint64, q float64) time.Duration {
	total := uint64(0)
	for _, n := range latency {
		total += n
	}
	rank := uint64(q * float64(total))
	for i, n := range latency {
		if n > 0 && rank < n {
			return upper(i)
		}
		rank -= min(rank, n)
	}
	return 0
}

// Top lists the shapes and the users that took the most time, at most n of each;
// other is always the last.
func (t *Table) Top(n int) (queries, users []Summary) {
	t.mu.RLock()
	for _, s := range t.shapes {
		if sum := s.summary(); sum.Calls > 0 {
			sum.Fingerprint, sum.Text = s.ID, s.Text
			queries = append(queries, sum)
		}
	}
	for _, u := range t.users {
		if sum := u.summary(); sum.Calls > 0 {
			sum.User = u.Name
			users = append(users, sum)
		}
	}
	t.mu.RUnlock()
	longest := func(a, b Summary) int {
		return cmp.Or(cmp.Compare(b.Took, a.Took), cmp.Compare(a.Fingerprint+a.User, b.Fingerprint+b.User))
	}
	slices.SortFunc(queries, longest)
	slices.SortFunc(users, longest)
	rest, crowd := t.rest.summary(), t.crowd.summary()
	rest.Fingerprint, crowd.User = other, other
	return append(queries[:min(n, len(queries))], rest), append(users[:min(n, len(users))], crowd)
}
