// Package body holds request bodies on their way upstream: kept in memory that is counted,
// so that every attempt can send them, or streaming through once. Only the Claude plane
// may import it.
package body

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"mainstay.dev/mainstay/claude/internal/peek"
)

// A Body is a request body on its way upstream: kept, so that every attempt can
// send it, or streaming, for one attempt only.
type Body struct {
	Kept   []byte                        // the first part of room
	room   []byte                        // from a pool; nil: not
	Open   func() (io.ReadCloser, error) // instead of kept: gives it anew for each attempt
	stream io.Reader                     // the rest; nil: kept is all
	Owner  io.Closer                     // of the stream; nil: somebody else closes it
	Size   int64                         // -1: not known
	memory *Reserve
	held   int64        // of memory
	users  atomic.Int64 // who may still read kept: the call, and every attempt until it closes its reader
	err    error        // what broke while reading from the client; set before the attempt ends
	failed atomic.Bool
}

// New returns an empty body of size bytes, -1 if that is not known, whose memory is
// counted by memory.
func New(size int64, memory *Reserve) *Body {
	b := &Body{Size: size, memory: memory}
	b.users.Add(1)
	return b
}

// Replayable reports whether another attempt can send the body too.
func (b *Body) Replayable() bool { return b.stream == nil }

// Replace makes text the whole body.
func (b *Body) Replace(text []byte) { b.Kept, b.Open, b.Size = text, nil, int64(len(text)) }

// Keep reads what open gives, once.
func (b *Body) Keep() error {
	r, err := b.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, Most))
	if err == nil && int64(len(text)) < Most {
		b.Kept, b.Open, b.Size = text, nil, int64(len(text))
		b.held = b.Size
		b.memory.used.Add(b.held) // there is no limit to it where bodies come with the means to have them again
	}
	return err
}

// Release says that no attempt will follow; it may be called once.
func (b *Body) Release() {
	if b.Owner != nil {
		_ = b.Owner.Close()
	}
	b.drop()
}

// errReleased says that a body was asked for after its call had ended.
var errReleased = errors.New("the request body has been released")

// use adds a user, unless all have gone: the memory may be another call's by then.
func (b *Body) use() error {
	for n := b.users.Load(); n > 0; n = b.users.Load() {
		if b.users.CompareAndSwap(n, n+1) {
			return nil
		}
	}
	return errReleased
}

// drop is called by each user once. net/http may read a body for a while after the
// answer has come, so that the memory is free only when the last user has gone.
func (b *Body) drop() {
	if b.users.Add(-1) == 0 {
		b.memory.Give(b.held)
		if b.stream == nil { // a streaming body may still be read by whoever was closed in the middle of it
			recycle(b.room)
		}
	}
}

// Attach gives req the body; progress is called whenever some of it has been taken.
func (b *Body) Attach(req *http.Request, progress func()) (err error) {
	req.ContentLength, req.GetBody = b.Size, nil
	switch {
	case b.Size == 0:
		req.Body = http.NoBody
	case b.Replayable():
		// GetBody lets net/http itself go over to a fresh connection when an idle one
		// has died before anything was written to it.
		req.GetBody = func() (io.ReadCloser, error) { return b.again(progress) }
		req.Body, err = req.GetBody()
	default:
		if err = b.use(); err == nil {
			req.Body = &sending{of: b, r: io.MultiReader(bytes.NewReader(b.Kept), b), progress: progress}
		}
	}
	return err
}

// again gives the body from its start.
func (b *Body) again(progress func()) (io.ReadCloser, error) {
	if b.Open == nil && b.Size <= small && b.users.Load() > 0 {
		return io.NopCloser(bytes.NewReader(b.Kept)), nil
	}
	if err := b.use(); err != nil {
		return nil, err
	}
	if b.Open == nil {
		return &sending{of: b, r: bytes.NewReader(b.Kept), progress: progress}, nil
	}
	r, err := b.Open()
	if err != nil {
		b.drop()
		return nil, err
	}
	return &sending{of: b, r: r, progress: progress}, nil
}

// Read reads the part that streams through.
func (b *Body) Read(p []byte) (int, error) {
	n, err := b.stream.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !b.failed.Load() {
		b.err = err
		b.failed.Store(true)
	}
	return n, err
}

// Broken returns what broke while the client's body streamed through.
func (b *Body) Broken() error {
	if b.failed.Load() {
		return b.err
	}
	return nil
}

// sending is what one attempt reads. It may be closed while it is being read.
type sending struct {
	of       *Body
	r        io.Reader
	progress func()

	mu     sync.Mutex // guards kept memory against being given back in the middle of a read
	closed bool
}

func (s *sending) Read(p []byte) (n int, err error) {
	if s.of.Replayable() && s.of.Open == nil {
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

// A Reserve counts the memory that kept bodies take.
type Reserve struct{ used atomic.Int64 }

// Used is how many bytes are taken.
func (r *Reserve) Used() int64 { return r.used.Load() }

// Take reserves n more bytes unless that would exceed limit.
func (r *Reserve) Take(n, limit int64) bool {
	if r.used.Add(n) > limit {
		r.used.Add(-n)
		return false
	}
	return true
}

// Give gives n bytes back.
func (r *Reserve) Give(n int64) { r.used.Add(-n) }

// Intake says how a request body is to be taken in.
type Intake struct {
	Memory *Reserve
	Most   int64 // all kept bodies together
	Keep   int64 // one kept body
	Size   int64 // as announced; -1: not
}

// firstBuffer is how much is set aside for a body before any of it has come, so
// that a client can't take memory by announcing.
const firstBuffer = 256 << 10

// TakeIn reads src into memory if it may be kept there, and otherwise leaves the
// rest of it to stream through.
func TakeIn(src io.Reader, in Intake) (*Body, error) {
	b := New(in.Size, in.Memory)
	if in.Size == 0 {
		return b, nil
	}
	if in.Size > in.Keep || !b.grow(in, min(max(in.Size, 512), firstBuffer)) {
		b.stream = src
		return b, nil
	}
	for {
		n, err := src.Read(b.room[len(b.Kept):b.held])
		b.Kept = b.room[:len(b.Kept)+n]
		switch {
		case errors.Is(err, io.EOF):
			b.Size = int64(len(b.Kept))
			return b, nil
		case err != nil:
			b.Release()
			return nil, err
		}
		if int64(len(b.Kept)) == b.held && !b.grow(in, b.held) {
			b.stream = src
			return b, nil
		}
	}
}

// grow makes room for n more bytes, for less when all that was announced then fits;
// false means that the body may not be kept.
func (b *Body) grow(in Intake, n int64) bool {
	if in.Size >= 0 {
		n = min(n, max(in.Size-b.held, 1))
	}
	n = min(n, in.Keep+1-b.held) // one more, to see the end of a body that is just as long as allowed
	if n <= 0 || !in.Memory.Take(n, in.Most) {
		return false
	}
	b.held += n
	if b.held > int64(len(b.room)) {
		room := allocate(b.held + edit)
		copy(room, b.Kept)
		recycle(b.room)
		b.room, b.Kept = room, room[:len(b.Kept)]
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

// MostName is the length of the longest model name that is looked at.
const MostName = 128

// Most bounds a body that is had anew to be kept; the API takes no larger message.
const Most = 34e6

// Text returns a body that is kept, or can be had again and is not large; else nil.
func (b *Body) Text() []byte {
	switch {
	case !b.Replayable() || b.Size <= 0 || b.Size > Most:
		return nil
	case b.Open == nil:
		return b.Kept
	}
	r, err := b.Open()
	if err != nil {
		return nil
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, Most))
	if err != nil {
		return nil
	}
	return text
}

// Model reads the model's name from a request; only calls that brought no answer
// with it need that.
func (b *Body) Model() (name string) {
	const most = 1 << 20 // beyond it, reading costs more than the name is worth
	if b.Size > most {
		return ""
	}
	peek.Members(b.Text(), func(key, value []byte) {
		if string(key) == "model" && len(value) <= MostName {
			name = peek.Text(value)
		}
	})
	return name
}

// Spare reserves memory for a changed body, whatever the limit; it is given back with it.
func (b *Body) Spare(n int64) {
	b.memory.used.Add(n)
	b.held += n
}

// Changed is a body of its own of the text that was made of b's; room bytes of b's memory
// have been taken for it. It gives them back.
func (b *Body) Changed(text []byte, room int64) *Body {
	c := New(int64(len(text)), b.memory)
	c.Kept, c.held = text, room
	return c
}

// Memory counts what b takes.
func (b *Body) Memory() *Reserve { return b.memory }
