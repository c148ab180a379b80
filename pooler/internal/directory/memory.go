package directory

import (
	"context"
	"sync"
	"time"
)

// A memory keeps answers by their question. Its zero value is empty.
type memory[T any] struct {
	mu    sync.Mutex
	known map[string]*entry[T]
}

type entry[T any] struct {
	ready  chan struct{} // closed when the rest is there
	asked  time.Time
	answer T
	err    error
}

// maxKnown bounds the answers of a memory.
const maxKnown = 10_000

// get returns the answer that is not older than fresh, or asks for it, once at a time.
// Errors are not kept.
func (m *memory[T]) get(ctx context.Context, question string, fresh time.Duration, ask func() (T, error)) (answer T, err error) {
	m.mu.Lock()
	e := m.known[question]
	if e == nil || !e.asked.IsZero() && time.Since(e.asked) >= fresh {
		e = &entry[T]{ready: make(chan struct{})}
		if m.known == nil || len(m.known) >= maxKnown {
			m.known = map[string]*entry[T]{}
		}
		m.known[question] = e
		m.mu.Unlock()
		e.answer, e.err = ask()
		m.mu.Lock()
		e.asked = time.Now()
		if e.err != nil && m.known[question] == e {
			delete(m.known, question)
		}
		close(e.ready)
	}
	m.mu.Unlock()
	select {
	case <-e.ready:
		return e.answer, e.err
	case <-ctx.Done():
		return answer, context.Cause(ctx)
	}
}

func (m *memory[T]) forget(question string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, question)
}
