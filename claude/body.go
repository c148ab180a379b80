package claude

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// A body is a request body on its way upstream: kept, so that every attempt can
// send it, or streaming, for one attempt only.
type body struct {
	kept   []byte                        // the first part of room
	room   []byte                        // from a pool; nil: not
	open   func() (io.ReadCloser, error) // instead of kept: gives it anew for each attempt
	stream io.Reader                     // the rest; nil: kept is all
	owner  io.Closer                     // of the stream; nil: somebody else closes it
	size   int64                         // -1: not known
	memory *reserve
	held   int64        // of memory
	users  atomic.Int64 // who may still read kept: the call, and every attempt until it closes its reader
	err    error        // what broke while reading from the client; set before the attempt ends
	failed atomic.Bool
}

func newBody(size int64, memory *reserve) *body {
	b := &body{size: size, memory: memory}
	b.users.Add(1)
	return b
}

// replayable reports whether another attempt can send the body too.
func (b *body) replayable() bool { return b.stream == nil }

// replace makes text the whole body.
func (b *body) replace(text []byte) { b.kept, b.open, b.size = text, nil, int64(len(text)) }

// release says that no attempt will follow; it may be called once.
func (b *body) release() {
	if b.owner != nil {
		_ = b.owner.Close()
	}
	b.drop()
}

// errReleased says that a body was asked for after its call had ended.
var errReleased = errors.New("the request body has been released")

// use adds a user, unless all have gone: the memory may be another call's by then.
func (b *body) use() error {
	for n := b.users.Load(); n > 0; n = b.users.Load() {
		if b.users.CompareAndSwap(n, n+1) {
			return nil
		}
	}
	return errReleased
}

// drop is called by each user once. net/http may read a body for a while after the
// answer has come, so that the memory is free only when the last user has gone.
func (b *body) drop() {
	if b.users.Add(-1) == 0 {
		b.memory.give(b.held)
		if b.stream == nil { // a streaming body may still be read by whoever was closed in the middle of it
			recycle(b.room)
		}
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
		if err = b.use(); err == nil {
			req.Body = &sending{of: b, r: io.MultiReader(bytes.NewReader(b.kept), b), progress: progress}
		}
	}
	return err
}

// again gives the body from its start.
func (b *body) again(progress func()) (io.ReadCloser, error) {
	if b.open == nil && b.size <= small && b.users.Load() > 0 {
		return io.NopCloser(bytes.NewReader(b.kept)), nil
	}
	if err := b.use(); err != nil {
		return nil, err
	}
	if b.open == nil {
		return &sending{of: b, r: bytes.NewReader(b.kept), progress: progress}, nil
	}
	r, err := b.open()
	if err != nil {
		b.drop()
		return nil, err
	}
	return &sending{of: b, r: r, progress: progress}, nil
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

// sending is what one attempt reads. It may be closed while it is being read.
type sending struct {
	of       *body
	r        io.Reader
	progress func()

	mu     sync.Mutex // guards kept memory against being given back in the middle of a read
	closed bool
}

func (s *sending) Read(p []byte) (n int, err error) {
	if s.of.replayable() && s.of.open == nil {
		n, err = s.copy(p)
	} else {
		n, err = s.r.Read(p) // may wait for the client: nothing may be locked
	}
	if n > 0 {
		s.progress()
	}
	return n, err
}

func (s *sending) copy(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return s.r.Read(p)
}

// Close may be called again.
func (s *sending) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	defer s.of.drop()
	if c, ok := s.r.(io.Closer); ok {
		return c.Close()
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
	b := newBody(in.size, in.memory)
	if in.size == 0 {
		return b, nil
	}
	if in.size > in.keep || !b.grow(in, min(max(in.size, 512), firstBuffer)) {
		b.stream = src
		return b, nil
	}
	for {
		n, err := src.Read(b.room[len(b.kept):b.held])
		b.kept = b.room[:len(b.kept)+n]
		switch {
		case errors.Is(err, io.EOF):
			b.size = int64(len(b.kept))
			return b, nil
		case err != nil:
			b.release()
			return nil, err
		}
		if int64(len(b.kept)) == b.held && !b.grow(in, b.held) {
			b.stream = src
			return b, nil
		}
	}
}

// grow makes room for n more bytes, for less when all that was announced then fits;
// false means that the body may not be kept.
func (b *body) grow(in intake, n int64) bool {
	if in.size >= 0 {
		n = min(n, max(in.size-b.held, 1))
	}
	n = min(n, in.keep+1-b.held) // one more, to see the end of a body that is just as long as allowed
	if n <= 0 || !in.memory.take(n, in.most) {
		return false
	}
	b.held += n
	if b.held > int64(len(b.room)) {
		room := allocate(b.held + edit)
		copy(room, b.kept)
		recycle(b.room)
		b.room, b.kept = room, room[:len(b.kept)]
	}
	return true
}

// small is the size of a body up to which its memory is no pool's: whoever still reads
// it after its call has ended does no harm, and so it is sent as a reader that net/http
// knows, which it puts into one write with the head.
const small = smallestRoom/4 - edit - 1

// edit is how much longer a body may become, so that asking for a stream instead needs
// no second copy.
const edit = 16

// rooms are pools of memory for bodies, each of four times the size of the one
// before it. Larger bodies are rare enough to have memory of their own, and smaller
// ones cost too little to be worth it.
var rooms [4]sync.Pool

const smallestRoom = 64 << 10

// allocate returns memory of at least n bytes.
func allocate(n int64) []byte {
	size := int64(smallestRoom)
	for i := range rooms {
		if n < size/4 {
			break
		}
		if n <= size {
			if p, ok := rooms[i].Get().(*[]byte); ok {
				return *p
			}
			return make([]byte, size)
		}
		size *= 4
	}
	return make([]byte, n)
}

// recycle takes back what allocate gave.
func recycle(room []byte) {
	size := smallestRoom
	for i := range rooms {
		if len(room) == size {
			rooms[i].Put(&room)
			return
		}
		size *= 4
	}
}
