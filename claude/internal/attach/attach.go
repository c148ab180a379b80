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
	of map[uint64]*Flight[A] // the first of those with one hash
}

// NewBoard returns an empty board.
func NewBoard[A any]() *Board[A] {
	return &Board[A]{seed: maphash.MakeSeed(), of: map[uint64]*Flight[A]{}}
}

// A Flight is a call under way that others may wait for. A is what its answer begins
// with, or all of it; what follows is told piece by piece.
type Flight[A any] struct {
	board  *Board[A]
	hash   uint64
	who    Who
	body   []byte
	grace  time.Duration
	ctx    context.Context
	cancel context.CancelCauseFunc

	// Guarded by the board's lock.
	next   *Flight[A] // with the same hash
	riders int
	timer  *time.Timer // until it is given up; nil: somebody waits
	gone   bool        // off the board
	free   func()      // when it is, and nobody waits

	mu      sync.Mutex // guards what is told; taken after the board's
	head    *A
	text    []byte // that follows it, so far: it only grows
	landed  bool
	answer  *A
	changed chan struct{} // closed at the next change; nil: nobody waits for it
}

// Who is who asks, and all else besides the body that shapes the answer. Nobody changes
// what it holds.
type Who struct {
	Path, Query string
	Whole       bool        // the answer is to come in one piece
	AsIs        bool        // it passes as it comes
	Header      [6][]string // the values of the headers that matter
}

func (w *Who) same(other *Who) bool {
	if w.Path != other.Path || w.Query != other.Query || w.Whole != other.Whole || w.AsIs != other.AsIs {
		return false
	}
	for i, values := range w.Header {
		if !slices.Equal(values, other.Header[i]) {
			return false
		}
	}
	return true
}

// JoinOrBegin joins the flight of a call, of the same body, to the byte, and the same who, or begins one as [Board.Begin] does if
// there is none: of several who come at once one leads. Who joins must Leave.
func (b *Board[A]) JoinOrBegin(parent context.Context, who Who, body []byte, grace time.Duration) (f *Flight[A], leads bool) {
	hash := maphash.Bytes(b.seed, body)
	b.mu.Lock()
	defer b.mu.Unlock()
	if f = b.join(who, body, hash); f != nil {
		return f, false
	}
	return b.begin(parent, who, body, hash, grace), true
}

// join finds the flight of a call; nil: there is none. The lock is held.
func (b *Board[A]) join(who Who, body []byte, hash uint64) *Flight[A] {
	for f := b.of[hash]; f != nil; f = f.next {
		if f.who.same(&who) && bytes.Equal(f.body, body) && !f.over() {
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
func (b *Board[A]) Begin(parent context.Context, who Who, body []byte, grace time.Duration) *Flight[A] {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.begin(parent, who, body, maphash.Bytes(b.seed, body), grace)
}

// begin is Begin while the lock is held.
func (b *Board[A]) begin(parent context.Context, who Who, body []byte, hash uint64, grace time.Duration) *Flight[A] {
	f := &Flight[A]{board: b, hash: hash, who: who, body: body, grace: grace, riders: 1}
	f.ctx, f.cancel = context.WithCancelCause(parent)
	f.next, b.of[f.hash] = b.of[f.hash], f
	return f
}

// over reports whether the flight was given up before it landed.
func (f *Flight[A]) over() bool { return !f.hasAnswer() && f.ctx.Err() != nil }

func (f *Flight[A]) hasAnswer() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answer != nil
}

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
	if f.gone { // nobody can come any more
		f.settle()
		f.cancel(ErrLeft)
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

// remove takes the flight off the board, whose lock it needs.
func (f *Flight[A]) remove() {
	b := f.board
	first := b.of[f.hash]
	at := &first
	for *at != nil && *at != f {
		at = &(*at).next
	}
	if *at == f {
		*at = f.next
	}
	if first == nil {
		delete(b.of, f.hash)
	} else {
		b.of[f.hash] = first
	}
	f.gone = true
	f.settle()
}

// settle frees what the answer takes as soon as nobody can ask for it any more. It
// needs the board's lock.
func (f *Flight[A]) settle() {
	if f.gone && f.riders <= 0 && f.free != nil {
		f.free()
		f.free = nil
	}
}

// Free has free called when nobody can ask for the answer any more; it must not use the
// flight.
func (f *Flight[A]) Free(free func()) {
	f.board.mu.Lock()
	defer f.board.mu.Unlock()
	f.free = free
	f.settle()
}

// Tell says how the answer begins, and what has come of it so far; text may only grow
// from one call to the next, and nobody changes what it holds.
func (f *Flight[A]) Tell(head *A, text []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.head, f.text = head, text
	f.wake()
}

// wake tells those who wait for a change. It needs the flight's lock.
func (f *Flight[A]) wake() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// Close lets nobody join any more: the answer will not be kept.
func (f *Flight[A]) Close() {
	f.board.mu.Lock()
	defer f.board.mu.Unlock()
	f.remove()
}

// Land ends the flight with its answer; nil: it has none. An answer that may be kept and
// that nobody waits for is, for the rest of the grace. Land again does nothing.
func (f *Flight[A]) Land(answer *A, keep bool) {
	f.board.mu.Lock()
	defer f.board.mu.Unlock()
	f.mu.Lock()
	again := f.landed
	if !again {
		f.landed, f.answer = true, answer
		f.wake()
	}
	f.mu.Unlock()
	switch {
	case again:
	case f.riders == 0 && answer != nil && keep && !f.gone && f.ctx.Err() == nil:
		f.body = bytes.Clone(f.body) // its owner is about to go
	default:
		f.remove()
	}
}

// A Progress is how a flight stands.
type Progress[A any] struct {
	Head    *A     // nil: the answer has not begun
	Text    []byte // of it, so far
	Landed  bool
	Answer  *A              // what it landed with; nil: nothing
	Changed <-chan struct{} // closed when any of it changes; nil: it will not
}

// Progress returns how the flight stands.
func (f *Flight[A]) Progress() Progress[A] {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := Progress[A]{Head: f.head, Text: f.text, Landed: f.landed, Answer: f.answer}
	if !f.landed {
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		p.Changed = f.changed
	}
	return p
}

// Len is how many flights there are.
func (b *Board[A]) Len() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.of {
		for ; f != nil; f = f.next {
			n++
		}
	}
	return n
}
