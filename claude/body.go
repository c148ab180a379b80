package claude

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// A body is a request body on its way upstream: kept, so that every attempt can
// send it, or streaming, for one attempt only.
type body struct {
	kept   []byte
	open   func() (io.ReadCloser, error) // instead of kept: gives it anew for each attempt
	stream io.Reader                     // the rest; nil: kept is all
	owner  io.Closer                     // of the stream; nil: somebody else closes it
	size   int64                         // -1: not known
	memory *reserve
	held   int64 // of memory
	err    error // what broke while reading from the client; set before the attempt ends
	failed atomic.Bool
}

// replayable reports whether another attempt can send the body too.
func (b *body) replayable() bool { return b.stream == nil }

// release gives the memory back; it may be called once, when no attempt will follow.
func (b *body) release() {
	b.memory.give(b.held)
	if b.owner != nil {
		_ = b.owner.Close()
	}
}

// attach gives req the body; progress is called whenever some of it has been taken.
func (b *body) attach(req *http.Request, progress func()) (err error) {
	req.ContentLength, req.GetBody = b.size, nil
	switch {
	case b.size == 0:
		req.Body = http.NoBody
	case b.replayable():
		// GetBody lets net/http itself go over to a fresh connection when an idle one
		// has died before anything was written to it.
		req.GetBody = func() (io.ReadCloser, error) { return b.again(progress) }
		req.Body, err = req.GetBody()
	default:
		req.Body = &sending{r: io.MultiReader(bytes.NewReader(b.kept), b), progress: progress}
	}
	return err
}

// again gives the body from its start.
func (b *body) again(progress func()) (io.ReadCloser, error) {
	if b.open == nil {
		return &sending{r: bytes.NewReader(b.kept), progress: progress}, nil
	}
	r, err := b.open()
	if err != nil {
		return nil, err
	}
	return &sending{r: r, c: r, progress: progress}, nil
}

// Read reads the part that streams through.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.stream.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !b.failed.Load() {
		b.err = err
		b.failed.Store(true)
	}
	return n, err
}

// broken returns what broke while the client's body streamed through.
func (b *body) broken() error {
	if b.failed.Load() {
		return b.err
	}
	return nil
}

// sending is what one attempt reads.
type sending struct {
	r        io.Reader
	c        io.Closer // nil: what is sent belongs to the call
	progress func()
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if n > 0 {
		s.progress()
	}
	return n, err
}

func (s *sending) Close() error {
	if s.c != nil {
		return s.c.Close()
	}
	return nil
}

// reserve counts the memory that kept bodies take.
type reserve struct{ used atomic.Int64 }

// take reserves n more bytes unless that would exceed limit.
func (r *reserve) take(n, limit int64) bool {
	if r.used.Add(n) > limit {
		r.used.Add(-n)
		return false
	}
	return true
}

func (r *reserve) give(n int64) { r.used.Add(-n) }

// intake says how a request body is to be taken in.
type intake struct {
	memory *reserve
	most   int64 // all kept bodies together
	keep   int64 // one kept body
	size   int64 // as announced; -1: not
}

// firstBuffer is how much is set aside for a body before any of it has come, so
// that a client can't take memory by announcing.
const firstBuffer = 256 << 10

// takeIn reads src into memory if it may be kept there, and otherwise leaves the
// rest of it to stream through.
func takeIn(src io.Reader, in intake) (*body, error) {
	b := &body{size: in.size, memory: in.memory}
	if in.size == 0 {
		return b, nil
	}
	if in.size > in.keep || !b.grow(in, min(max(in.size, 512), firstBuffer)) {
		b.stream = src
		return b, nil
	}
	for {
		n, err := src.Read(b.kept[len(b.kept):cap(b.kept)])
		b.kept = b.kept[:len(b.kept)+n]
		switch {
		case errors.Is(err, io.EOF):
			b.size = int64(len(b.kept))
			return b, nil
		case err != nil:
			b.release()
			return nil, err
		}
		if len(b.kept) == cap(b.kept) && !b.grow(in, int64(cap(b.kept))) {
			b.stream = src
			return b, nil
		}
	}
}

// grow makes room for n more bytes, for less when all that was announced then fits;
// false means that the body may not be kept.
func (b *body) grow(in intake, n int64) bool {
	room := int64(cap(b.kept))
	if in.size >= 0 {
		n = min(n, max(in.size-room, 1))
	}
	if room+n > in.keep+1 { // one more, to see the end of a body that is just as long as allowed
		n = in.keep + 1 - room
	}
	if n <= 0 || !in.memory.take(n, in.most) {
		return false
	}
	b.held += n
	kept := make([]byte, len(b.kept), room+n)
	copy(kept, b.kept)
	b.kept = kept
	return true
}
