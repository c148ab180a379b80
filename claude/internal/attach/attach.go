// Package attach lets a call that says the same as one under way share its answer: an
// SDK's retry, whose first try may still be running, or a twin where that is wanted.
// It knows nothing of HTTP. Only the Claude plane may import it.
package attach

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

// ErrLeft is why a flight was cancelled: all who waited for it have left.
var ErrLeft = errors.New("the client has left, and no retry came")

// A Board holds the flights under way. Its methods may be called from many
// goroutines.
type Board[A any] struct {
	seed maphash.Seed

	mu sync.Mutex
	of map[uint64][]*Flight[A]
}

// NewBoard returns an empty board.
func NewBoard[A any]() *Board[A] {
	return &Board[A]{seed: maphash.MakeSeed(), of: map[uint64][]*Flight[A]{}}
}

// A Flight is a call under way that others may wait for.
type Flight[A any] struct {
	board  *Board[A]
	hash   uint64
	who    string // who asks, and all else that shapes the answer
	body   []byte
	grace  time.Duration
	ctx    context.Context
	cancel context.CancelCauseFunc
	landed chan struct{}

	// Guarded by the board's lock.
	riders int
	timer  *time.Timer // until it is given up; nil: somebody waits
	answer *A
}

// Join finds the flight of a call: the same body, to the byte, of the same who. Nil:
// there is none. Who joins must Leave.
func (b *Board[A]) Join(who string, body []byte) *Flight[A] {
	hash := maphash.Bytes(b.seed, body)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.of[hash] {
		if f.who == who && bytes.Equal(f.body, body) && !f.over() {
			f.riders++
			if f.timer != nil {
				f.timer.Stop()
				f.timer = nil
			}
			return f
		}
	}
	return nil
}

// Begin makes a flight with one who waits for it, who must Land it and Leave. body
// must stay as it is until then. When all have left, the flight is kept for grace and
// then cancelled.
func (b *Board[A]) Begin(parent context.Context, who string, body []byte, grace time.Duration) *Flight[A] {
	f := &Flight[A]{board: b, hash: maphash.Bytes(b.seed, body), who: who, body: body, grace: grace, landed: make(chan struct{}), riders: 1}
	f.ctx, f.cancel = context.WithCancelCause(parent)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.of[f.hash] = append(b.of[f.hash], f)
	return f
}

// over reports whether the flight was given up before it landed.
func (f *Flight[A]) over() bool { return f.answer == nil && f.ctx.Err() != nil }

// End frees what the flight holds, when its leader has done with its context.
func (f *Flight[A]) End() { f.cancel(nil) }

// Context ends when the flight is given up.
func (f *Flight[A]) Context() context.Context { return f.ctx }

// Leave says that one who waited does so no more.
func (f *Flight[A]) Leave() {
	f.board.mu.Lock()
	defer f.board.mu.Unlock()
	if f.riders--; f.riders > 0 || f.timer != nil {
		return
	}
	f.timer = time.AfterFunc(f.grace, f.giveUp)
}

func (f *Flight[A]) giveUp() {
	f.board.mu.Lock()
	defer f.board.mu.Unlock()
	if f.riders == 0 {
		f.remove()
		f.cancel(ErrLeft)
	}
}

// remove needs the board's lock.
func (f *Flight[A]) remove() {
	b := f.board
	b.of[f.hash] = slices.DeleteFunc(b.of[f.hash], func(g *Flight[A]) bool { return g == f })
	if len(b.of[f.hash]) == 0 {
		delete(b.of, f.hash)
	}
}

// Land ends the flight with its answer; nil: it has none. A good answer that nobody
// waits for is kept for the rest of the grace. Land again does nothing.
func (f *Flight[A]) Land(answer *A) {
	f.board.mu.Lock()
	defer f.board.mu.Unlock()
	select {
	case <-f.landed:
		return
	default:
	}
	f.answer = answer
	close(f.landed)
	if f.riders == 0 && answer != nil && f.ctx.Err() == nil {
		f.body = bytes.Clone(f.body) // its owner is about to go
		return
	}
	f.remove()
}

// Landed is closed when the flight has landed; Answer may be called from then on.
func (f *Flight[A]) Landed() <-chan struct{} { return f.landed }

// Answer is what the flight landed with; nil: nothing.
func (f *Flight[A]) Answer() *A { return f.answer }

// Len is how many flights there are.
func (b *Board[A]) Len() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, fs := range b.of {
		n += len(fs)
	}
	return n
}
