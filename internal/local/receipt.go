package local

import (
	"crypto/rand"
	"sync"
	"time"

	"mainstay.dev/mainstay/internal/limits"
)

// Receipts are kept for a while, and the latest ones only: what nobody settles
// stays charged, and its lease ends by itself.
const (
	maxReceipts = 8192
	receiptLife = 10 * time.Minute
)

// receipts remember what was allowed, each to be settled once at most: a client
// that repeats a refund gets nothing twice.
type receipts struct {
	mu    sync.Mutex
	given map[string]receipt
	ring  [maxReceipts]string // in the order they were given
	next  int
}

type receipt struct {
	verdict limits.Verdict
	until   time.Time
}

func (r *receipts) give(v limits.Verdict) string {
	id := rand.Text()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.given == nil {
		r.given = map[string]receipt{}
	}
	delete(r.given, r.ring[r.next])
	r.ring[r.next] = id
	r.next = (r.next + 1) % maxReceipts
	r.given[id] = receipt{v, time.Now().Add(receiptLife)}
	return id
}

func (r *receipts) take(id string) (limits.Verdict, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept, ok := r.given[id]
	delete(r.given, id)
	return kept.verdict, ok && time.Now().Before(kept.until)
}
