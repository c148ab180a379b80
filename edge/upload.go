package edge

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lingering is how long a client that has had its answer may still send what is
// left of its body, so that it reads the answer and not a reset.
const lingering = 5 * time.Second

// upload is a request body on its way to a target: bounded in size and in the
// client's silence. It outlives the lane and the request, since net/http's
// transport may go on reading for a moment after it has returned an answer.
type upload struct {
	src      io.ReadCloser
	rc       *http.ResponseController
	patience time.Duration
	limit    int64 // 0: none
	h1       bool  // HTTP/1: the body stands in the way of the next request
	trailer  http.Header

	// mu is never held while src is read: that takes as long as the client likes.
	// kept is the whole body, if it is small enough to be sent again; it is not
	// written to once it is set.
	kept  []byte
	first playback
	tape  *tape // keeps the beginning of a body of unknown length; nil: none

	mu    sync.Mutex
	n     int64
	code  Code // why reading failed; empty if it did not
	whole bool // its end was seen
	over  bool // the request is done: reader and deadlines are net/http's again
}

// maxReplay is the largest body that is kept to be sent again.
const maxReplay = 64 << 10

// gather reads a body of length bytes and keeps it. A target is claimed only
// afterwards, so a client that is slow to send takes no place on one.
func (u *upload) gather(length int64) Code {
	into := make([]byte, length)
	n := 0
	for {
		var over [1]byte
		p := into[n:]
		if len(p) == 0 {
			p = over[:] // the end is still to be seen
		}
		k, err := u.Read(p)
		switch {
		case errors.Is(err, io.EOF):
			u.kept = into[:n+k]
			return OK
		case err != nil:
			_, code := u.result()
			return code
		case n == len(into) && k > 0:
			return BadRequest // net/http lets none be longer than it was told
		}
		n += k
	}
}

// spent reports whether a part of the body is gone and can't be sent again.
func (u *upload) spent() bool {
	if u != nil && u.tape != nil {
		return u.tape.full.Load()
	}
	n, _ := u.result()
	return n > 0 && u.kept == nil
}

// again returns the body from its beginning for the next try; it must not be
// spent.
func (u *upload) again() io.ReadCloser {
	switch {
	case u.tape != nil:
		return &rerun{tape: u.tape}
	case u.kept == nil:
		return u
	case u.first.data == nil:
		u.first.data = u.kept
		return &u.first
	}
	return &playback{u.kept}
}

// playback is one reading of a kept body. It outlives its try as an upload does,
// so that each try has one of its own.
type playback struct{ data []byte }

func (p *playback) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.data)
	p.data = p.data[n:]
	return n, nil
}

func (p *playback) Close() error { return nil }

// tape keeps what was read of a body while that is little, so that another try can
// begin with it and go on where the one before stopped reading.
type tape struct {
	up   *upload
	full atomic.Bool // it was more, and is not kept

	// mu is held while the client is read from: what comes belongs to all tries.
	mu   sync.Mutex
	kept []byte
	read int // in all
	err  error
}

// rerun is one reading of a tape. One try's may still be reading when the next
// begins: what it gets is on the tape.
type rerun struct {
	tape *tape
	off  int
}

var errSpent = errors.New("the request body is larger than what is kept of it for another try")

func (r *rerun) Read(p []byte) (int, error) {
	t := r.tape
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case r.off < len(t.kept):
		n := copy(p, t.kept[r.off:])
		r.off += n
		return n, nil
	case r.off < t.read:
		return 0, errSpent
	case t.err != nil:
		return 0, t.err
	}
	n, err := t.up.Read(p)
	if t.read += n; t.read > maxReplay {
		t.full.Store(true)
		t.kept = nil
	} else {
		t.kept = append(t.kept, p[:n]...)
	}
	r.off, t.err = r.off+n, err
	return n, err
}

func (r *rerun) Close() error { return nil }

var (
	errTooLarge = errors.New("request body is larger than edge.max_body")
	errOver     = errors.New("request body read after the request ended")
)

// Read moves the read deadline for each piece and takes it away afterwards: one
// left standing would end the connection under a long answer.
func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	if u.over {
		u.mu.Unlock()
		return 0, errOver
	}
	if u.limit > 0 && u.n >= u.limit {
		var probe [1]byte // at the limit: the end may still come
		p = probe[:]
	}
	_ = u.rc.SetReadDeadline(time.Now().Add(u.patience))
	u.mu.Unlock()

	n, err := u.src.Read(p)

	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over { // else rc belongs to nobody, or to the next request
		_ = u.rc.SetReadDeadline(time.Time{})
	}
	u.n += int64(n)
	if err == io.EOF {
		u.whole = true
		cleanseTrailer(u.trailer)
	}
	if u.limit > 0 && u.n > u.limit {
		u.code = TooLarge
		return 0, errTooLarge
	}
	if err != nil && err != io.EOF {
		u.code = u.blame(err)
	}
	return n, err
}

func (u *upload) blame(err error) Code {
	_, network := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ClientTimeout
	case !u.h1 || network || errors.Is(err, io.ErrUnexpectedEOF):
		return ClientGone
	}
	return BadRequest // it came, and is not framed as HTTP/1.1 has it
}

// Close does nothing: a try that failed leaves the body for the next, and net/http
// closes it in the end.
func (u *upload) Close() error { return nil }

// end gives the body back to net/http, which reads and drops a little of what is
// left before it closes the connection; the deadline bounds that.
func (u *upload) end() {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	if u.h1 && !u.whole {
		_ = u.rc.SetReadDeadline(time.Now().Add(min(u.patience, lingering)))
	}
}

// rest reports whether a part of the body is still to come.
func (u *upload) rest() bool {
	if u == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.whole
}

// result tells how much was read and why reading failed, if it did.
func (u *upload) result() (int64, Code) {
	if u == nil {
		return 0, ""
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n, u.code
}
