package otlp

import (
	"slices"
	"sync"
	"sync/atomic"
)

const (
	batchSize  = 256     // exchanges in one export
	batchBytes = 1 << 20 // of spans in one export, but for the last exchange's
	spares     = 2       // buffers that are kept for batches to come
)

// A batch is some exchanges' spans, encoded one behind the other.
type batch struct {
	spans     wire
	exchanges int
}

// A queue gathers spans into batches. Who puts them there shares a lock for the time of
// a copy, and wakes the exporter for whole batches only: to wake somebody for each
// exchange costs the event loops more than the span itself.
type queue struct {
	most, size int // exchanges that may wait; that make a batch
	waiting    atomic.Int64
	ready      chan struct{} // tells that a batch is full

	mu      sync.Mutex
	filling batch
	full    []batch // oldest first
	spare   []wire
}

func newQueue(most int) *queue {
	// Half of what may wait goes ahead while the other half comes.
	return &queue{most: most, size: min(batchSize, (most+1)/2), ready: make(chan struct{}, 1)}
}

// crowded reports whether nothing more can be put.
func (q *queue) crowded() bool { return int(q.waiting.Load()) >= q.most }

// put copies one exchange's spans; false: there is no room.
func (q *queue) put(spans wire) bool {
	q.mu.Lock()
	if q.crowded() {
		q.mu.Unlock()
		return false
	}
	q.waiting.Add(1)
	b := &q.filling
	b.spans = append(b.spans, spans...)
	b.exchanges++
	whole := b.exchanges >= q.size || len(b.spans) >= batchBytes
	if whole {
		q.full = append(q.full, *b)
		*b = batch{spans: q.buffer()}
	}
	q.mu.Unlock()
	if whole {
		select {
		case q.ready <- struct{}{}:
		default: // it knows
		}
	}
	return true
}

// buffer is an empty buffer, of the size that the last ones grew to if there is one. The
// caller holds the lock.
func (q *queue) buffer() (b wire) {
	if n := len(q.spare); n > 0 {
		b, q.spare = q.spare[n-1], q.spare[:n-1]
	}
	return b
}

// take gives out the oldest full batch, or with rest the one that is being filled if
// there is none; the caller gives it back. Empty: there is nothing.
func (q *queue) take(rest bool) (b batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case len(q.full) > 0:
		b = q.full[0]
		q.full = slices.Delete(q.full, 0, 1)
	case rest && q.filling.exchanges > 0:
		b, q.filling = q.filling, batch{spans: q.buffer()}
	}
	q.waiting.Add(-int64(b.exchanges))
	return b
}

// giveBack lets the buffer of a batch be used again.
func (q *queue) giveBack(b batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.spare) < spares && cap(b.spans) <= 2*batchBytes {
		q.spare = append(q.spare, b.spans[:0])
	}
}
