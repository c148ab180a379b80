// Package pgwire is the pooler's framing of the PostgreSQL wire protocol, version
// 3 (https://www.postgresql.org/docs/current/protocol.html): it walks messages in
// a read buffer without decoding their bodies, so that they can be passed on as
// they are, and it builds the few messages that Mainstay speaks itself.
//
// Only the pooler and its own sub-packages import it. Nothing here keeps a
// goroutine; a [Reader] belongs to one goroutine at a time.
package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// HeaderSize is that of a message's type byte and length.
const HeaderSize = 5

// MaxBody bounds a message's body. PostgreSQL itself refuses more than 1 GiB; the
// bound also keeps every sum of lengths within 32 bits, whatever a peer claims.
const MaxBody = 1<<30 - 1

// ErrTooLong and ErrTooShort mean a length field that no message can have.
var (
	ErrTooLong  = errors.New("message longer than 1 GiB")
	ErrTooShort = errors.New("message length below its minimum")
)

// A Reader holds what was read from one side and not yet passed on.
//
//	buf:  …sent│ run: to be passed on │ unread │ free…
//	           start                  pos      end
type Reader struct {
	src             io.Reader
	buf             []byte
	start, pos, end int
	rest            int  // of the message that was passed or dropped, bytes that are still to come
	size            int  // of a buffer of its own
	lent            bool // buf is somebody else's
	drops           bool // what is still to come is to be dropped
}

// NewReader returns a reader with a buffer of size bytes, which must hold at least
// the messages that are looked into.
func NewReader(src io.Reader, size int) *Reader {
	r := MakeReader(src, size)
	return &r
}

// MakeReader is NewReader for one that is part of something. It must not be copied after
// its first use.
func MakeReader(src io.Reader, size int) Reader {
	return Reader{src: src, buf: buffer(size), size: size}
}

// spare are buffers of readers that gave theirs back.
var spare sync.Pool

func buffer(size int) []byte {
	if b, ok := spare.Get().(*[]byte); ok && len(*b) == size {
		return *b
	}
	return make([]byte, size)
}

// smallSize is what a cycle of messages mostly fits in that has to wait.
const smallSize = 256

var small = sync.Pool{New: func() any { return new([smallSize]byte) }}

// discard gives a buffer back, if it is the reader's own.
func (r *Reader) discard() {
	switch {
	case r.lent:
	case cap(r.buf) == smallSize:
		small.Put((*[smallSize]byte)(r.buf[:smallSize]))
	case len(r.buf) == r.size:
		keepSpare(r.buf)
	}
	r.buf = nil
}

func keepSpare(b []byte) { spare.Put(&b) }

// move continues in another buffer, which must have room for what is buffered. The
// run must be empty.
func (r *Reader) move(buf []byte) {
	n := copy(buf, r.buf[r.pos:r.end])
	r.discard()
	r.buf, r.start, r.pos, r.end = buf, 0, 0, n
}

// Borrow continues in a buffer that is lent until [Reader.Settle], and at least as
// large as the reader's own. The run must be empty.
func (r *Reader) Borrow(buf []byte) {
	r.move(buf)
	r.lent = true
}

// Settle gives a buffer back that was lent. What is buffered is kept in as little
// memory as will do; before more is read the reader needs a buffer again.
func (r *Reader) Settle() {
	if r.lent {
		r.Shrink()
	}
}

// Shrink is Settle, also for a buffer that is the reader's own.
func (r *Reader) Shrink() {
	var kept []byte
	switch n := r.Buffered(); {
	case n == 0:
	case n <= smallSize:
		kept = small.Get().(*[smallSize]byte)[:n]
	default:
		kept = make([]byte, n)
	}
	r.move(kept)
	r.lent = false
}

// Own gives the reader a buffer of its own again.
func (r *Reader) Own() {
	if r.lent || len(r.buf) < r.size {
		r.move(buffer(max(r.size, r.Buffered())))
		r.lent = false
	}
}

// Redirect continues on another stream (TLS over the same connection). Nothing may
// be buffered.
func (r *Reader) Redirect(src io.Reader) { r.src = src }

// Buffered counts the bytes that were read and are neither passed nor skipped.
func (r *Reader) Buffered() int { return r.end - r.pos }

// Full reports whether the buffer has no room for more, so that [Reader.Fill] can't.
func (r *Reader) Full() bool { return r.end-r.start == len(r.buf) }

// Size is the buffer's.
func (r *Reader) Size() int { return len(r.buf) }

// Fill reads once. Slices that Peek and Run gave become invalid, also on error.
// The buffer must not be full.
func (r *Reader) Fill() error { return r.FillFrom(r.src) }

// FillFrom is Fill from another source.
func (r *Reader) FillFrom(src io.Reader) error {
	switch {
	case r.start == r.end:
		r.start, r.pos, r.end = 0, 0, 0
	case r.start > 0:
		copy(r.buf, r.buf[r.start:r.end])
		r.pos -= r.start
		r.end -= r.start
		r.start = 0
	}
	if r.end == len(r.buf) {
		return io.ErrShortBuffer
	}
	n, err := src.Read(r.buf[r.end:])
	r.end += n
	if n > 0 {
		r.takeRest()
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// takeRest adds to the run what arrived of the message that was passed last, or drops it.
func (r *Reader) takeRest() {
	n := min(r.rest, r.end-r.pos)
	r.pos += n
	r.rest -= n
	if r.drops {
		r.start = r.pos
	}
}

// Header decodes the next message's header: its type and the length of its body. ok
// is false while less than a header is buffered.
func (r *Reader) Header() (typ byte, body int, ok bool, err error) {
	return decodeHeader(r.buf[r.pos:r.end])
}

func decodeHeader(b []byte) (typ byte, body int, ok bool, err error) {
	if len(b) < HeaderSize {
		return 0, 0, false, nil
	}
	length := binary.BigEndian.Uint32(b[1:])
	if length < 4 {
		return b[0], 0, true, fmt.Errorf("message %q: %w", b[0], ErrTooShort)
	}
	if length-4 > MaxBody {
		return b[0], 0, true, fmt.Errorf("message %q: %w", b[0], ErrTooLong)
	}
	return b[0], int(length - 4), true, nil
}

// Peek returns the next n bytes, which must be buffered, without consuming them.
func (r *Reader) Peek(n int) []byte { return r.buf[r.pos : r.pos+n] }

// Skip consumes n buffered bytes that are not passed on. The run must be empty:
// take it first.
func (r *Reader) Skip(n int) {
	r.pos += n
	r.start = r.pos
}

// Behind returns the n bytes that were consumed last, nil if they are not there any more.
// They are until the next Fill.
func (r *Reader) Behind(n int) []byte {
	if n > r.pos {
		return nil
	}
	return r.buf[r.pos-n : r.pos]
}

// Room makes room for n bytes in front of those that are buffered, in a larger buffer if need be. The run must be empty.
func (r *Reader) Room(n int) {
	if n += r.Buffered(); n > len(r.buf) {
		r.move(make([]byte, n))
		r.lent = false
	}
}

// Unread puts bytes in front of those that are buffered, to be read next; false if there
// is no room. The run must be empty.
func (r *Reader) Unread(p []byte) bool {
	n := r.Buffered()
	if len(p)+n > len(r.buf) {
		return false
	}
	copy(r.buf[len(p):], r.buf[r.pos:r.end])
	copy(r.buf, p)
	r.start, r.pos, r.end = 0, 0, len(p)+n
	return true
}

// Drop is Skip for a message, n bytes with its header, that may not be buffered whole: what later
// Fills bring of it is dropped too.
func (r *Reader) Drop(n int) {
	r.rest, r.drops = n, true
	r.takeRest()
}

// Pass adds the next message, n bytes with its header, to the run. Bytes of it that
// are not buffered yet join the run as later Fills bring them.
func (r *Reader) Pass(n int) {
	r.rest, r.drops = n, false
	r.takeRest()
}

// Partial reports whether the message that was passed or dropped last has not come whole.
func (r *Reader) Partial() bool { return r.rest > 0 }

// Run returns what was passed and not taken yet. The slice is valid until Fill.
func (r *Reader) Run() []byte { return r.buf[r.start:r.pos] }

// Taken forgets the run: it has been sent on.
func (r *Reader) Taken() { r.start = r.pos }

// TakenPart forgets the first n bytes of the run.
func (r *Reader) TakenPart(n int) { r.start += n }

// Next waits for the next whole message and consumes it. The body is valid until
// the next call. A body that does not fit the buffer is an error: this is for the
// small messages of a login, not for a relay.
func (r *Reader) Next() (typ byte, body []byte, err error) {
	for {
		typ, n, ok, err := r.Header()
		if err != nil {
			return typ, nil, err
		}
		if ok && HeaderSize+n > len(r.buf) {
			return typ, nil, fmt.Errorf("message %q of %d bytes does not fit here: %w", typ, n, ErrTooLong)
		}
		if ok && r.Buffered() >= HeaderSize+n {
			frame := r.Peek(HeaderSize + n)
			r.Skip(len(frame))
			return typ, frame[HeaderSize:], nil
		}
		if err := r.Fill(); err != nil {
			return 0, nil, err
		}
	}
}

// NextLarge is Next for messages up to limit bytes: one that does not fit the buffer
// is put together in memory of its own.
func (r *Reader) NextLarge(limit int) (typ byte, body []byte, err error) {
	for {
		typ, n, ok, err := r.Header()
		switch {
		case err != nil:
			return typ, nil, err
		case !ok:
			if err := r.Fill(); err != nil {
				return 0, nil, err
			}
			continue
		case HeaderSize+n <= len(r.buf):
			return r.Next()
		case n > limit:
			return typ, nil, fmt.Errorf("message %q of %d bytes: %w", typ, n, ErrTooLong)
		}
		r.Skip(HeaderSize)
		body = make([]byte, 0, n)
		for len(body) < n {
			k := min(n-len(body), r.Buffered())
			body = append(body, r.Peek(k)...)
			r.Skip(k)
			if len(body) < n {
				if err := r.Fill(); err != nil {
					return 0, nil, err
				}
			}
		}
		return typ, body, nil
	}
}

// Extent says how much of a client's cycle of messages is buffered.
type Extent uint8

const (
	Open  Extent = iota // messages are missing that may come without an answer from us
	Whole               // the cycle ends, in the buffer, with a message that the server answers with ReadyForQuery
	Wants               // the client wants answers before it ends the cycle (Flush, or a Query amid it), leaves, or speaks nonsense
)

// Cycle looks for the end of the client's cycle: from the next message to the first
// Query, FunctionCall or Sync.
func (r *Reader) Cycle() Extent {
	b := r.buf[r.pos:r.end]
	for first := true; ; first = false {
		typ, n, ok, err := decodeHeader(b)
		if err != nil {
			return Wants
		}
		if !ok || len(b) < HeaderSize+n {
			return Open
		}
		switch typ {
		case Query, FunctionCall:
			if !first {
				return Wants
			}
			return Whole
		case Sync:
			return Whole
		case Parse, Bind, Describe, Execute, Close:
		default:
			return Wants
		}
		b = b[HeaderSize+n:]
	}
}

// Plain measures a whole cycle that parses an unnamed statement, and then binds and executes only
// that, and describes its portals. between is how many messages there are between its Parse and its
// Sync. It is 0, 0 for any other cycle.
func (r *Reader) Plain() (size, between int) {
	b := r.buf[r.pos:r.end]
	typ, n, ok, err := decodeHeader(b)
	if !ok || err != nil || typ != Parse || len(b) <= HeaderSize+n || n == 0 || b[HeaderSize] != 0 {
		return 0, 0
	}
	for at := HeaderSize + n; ; between++ {
		typ, n, ok, err := decodeHeader(b[at:])
		if !ok || err != nil || len(b) < at+HeaderSize+n {
			return 0, 0
		}
		body := b[at+HeaderSize : at+HeaderSize+n]
		at += HeaderSize + n
		switch {
		case typ == Bind && unnamedBound(body), typ == Execute:
		case typ == Describe && n > 0 && body[0] == 'P':
		case typ == Sync:
			return at, between
		default:
			return 0, 0
		}
	}
}

// unnamedBound reports whether it is the unnamed statement that a Bind is for.
func unnamedBound(body []byte) bool {
	portal := bytes.IndexByte(body, 0)
	return portal >= 0 && portal+1 < len(body) && body[portal+1] == 0
}
