package claude

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	pieceSize = 32 << 10 // what is read ahead and relayed at once
	mostWhole = 1 << 20  // a JSON answer up to this size is relayed when all of it is there
	mostKept  = 64 << 10 // an error answer up to this size is kept in case it is the last one
)

var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// An answer is what one attempt brought: a head, what of the body was read ahead,
// and the rest.
type answer struct {
	res     *http.Response // its Body is not used: body is
	body    io.ReadCloser
	verdict verdict
	events  bool // an event stream

	ahead []byte // read, not yet relayed
	whole bool   // ahead is all of the body

	ctx    context.Context         // the attempt's
	cancel context.CancelCauseFunc // nil, as the vigil: the answer is made of attempts, which have their own
	vigil  *vigil                  // ends the attempt when nothing comes
	closed bool
	shared bool // the vigil is of the connection, and others will keep it
	first  time.Duration
	idle   time.Duration
	until  time.Time   // all of it must be there by then; zero: whenever it comes
	begun  atomic.Bool // the first byte has come, progress of the upload counts no more
	piece  *[pieceSize]byte
}

// forward sends the request once. An answer without a verdict of OK may still be
// what the client gets; no answer means that nothing usable came.
func (c *call) forward() (*answer, verdict) {
	a := &c.own.answer
	if a.ctx != nil { // an attempt before this one has used it, and may be heard of still
		a = new(answer)
	} else if c.desk != nil {
		a.vigil, a.shared = &c.desk.vigil, true
	}
	if a.vigil == nil {
		a.vigil = new(vigil)
	}
	a.first, a.idle = c.firstByteLimit(), c.rules.idle
	a.ctx, a.cancel = context.WithCancelCause(c.ctx)
	a.vigil.keep(a.first, a.tooLate)
	out := c.out.WithContext(c.early.hear(a.ctx))
	var res *http.Response
	err := c.sends.Attach(out, a.progress)
	if err == nil && c.way.via.Signs() {
		err = c.way.via.Sign(out, c.sends.Text(), c.way.access)
	}
	if err == nil {
		res, err = c.engine.rt.RoundTrip(out)
	}
	if err != nil {
		a.close()
		return nil, c.broke(a, err)
	}
	c.way.via.Read(res)
	a.res, a.body = res, res.Body
	c.try.Status = res.StatusCode
	c.try.UpstreamID = res.Header.Get("Request-Id")
	c.x.GenAI.UpstreamID = c.try.UpstreamID
	a.verdict = judge(res)
	c.ticket.Told(res.StatusCode, res.Header, a.verdict.after)
	c.learn(res.Header)
	if a.verdict.code == OK {
		if err := a.readAhead(c.shape); err != nil {
			a.close()
			return nil, c.broke(a, err)
		}
		if a.isPage(mediaType(res.Header), c) {
			a.verdict = verdict{code: UpstreamError, cause: CauseStatus, again: true, err: errPage}
		}
		if a.events && c.mend != nil {
			a, v := c.mending(a)
			if c.gather == nil {
				return a, v
			}
			if a != nil {
				a, v = c.gathered(a)
			}
			return a, c.late(v)
		}
	}
	a.arrived()
	if !c.shape.message {
		a.idle = max(a.idle, a.first) // a stream of something else may pause for long
	}
	return a, a.verdict
}

// tooLate ends an attempt from which nothing comes.
func (a *answer) tooLate() {
	if a.begun.Load() {
		a.cancel(errIdle)
	} else {
		a.cancel(errFirstByte)
	}
}

// progress puts off the end of the wait for the first byte while the request is
// still being sent.
func (a *answer) progress() {
	if !a.begun.Load() {
		a.vigil.await(a.first)
	}
}

// arrived ends the wait for the first byte.
func (a *answer) arrived() {
	if a.begun.CompareAndSwap(false, true) && a.vigil != nil {
		a.vigil.rest()
	}
}

// readAhead reads as much of a good answer as can be held back without harm: the
// first piece of a generation's stream, the whole of a JSON answer. What breaks
// until then, another attempt can mend, since the client has seen nothing.
func (a *answer) readAhead(s shape) error {
	kind := mediaType(a.res.Header)
	a.events = kind == "text/event-stream"
	switch {
	case a.body == http.NoBody: // also the answer to HEAD
		return nil
	case a.events && s.message:
		return a.readFirst()
	case kind == "application/json" && s.whole && a.res.ContentLength <= mostWhole:
		if err := a.readWhole(mostWhole); err != nil || !s.message || !a.whole || a.res.Header.Get("Content-Encoding") != "" {
			return err
		}
		if text := bytes.TrimSpace(a.ahead); len(text) == 0 || text[len(text)-1] != '}' {
			return io.ErrUnexpectedEOF // whoever passed it on ended it as if it were whole
		}
	}
	return nil
}

func (a *answer) readFirst() error {
	buf := a.buffer()
	for {
		n, err := a.body.Read(buf)
		a.ahead = buf[:n]
		switch {
		case n > 0: // what err says, the next read says again
			return nil
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF // a generation that says nothing is none
		case err != nil:
			return err
		}
	}
}

// readWhole reads the body up to limit; a longer one is left to be relayed in
// pieces.
func (a *answer) readWhole(limit int) error {
	buf := a.buffer()
	if n := a.res.ContentLength; n > int64(len(buf)) && n < int64(limit) {
		buf = make([]byte, n+1)
	}
	for n := 0; ; {
		m, err := a.body.Read(buf[n:])
		if n == 0 && m > 0 {
			a.arrived()
		}
		n += m
		a.ahead = buf[:n]
		switch {
		case errors.Is(err, io.EOF):
			a.whole = true
			return nil
		case err != nil:
			return err
		case n == limit:
			return nil
		case n == len(buf):
			buf = append(buf, make([]byte, min(len(buf), limit-len(buf)))...)
		}
		if a.begun.Load() {
			a.vigil.await(a.idle)
		}
	}
}

func (a *answer) buffer() []byte {
	if a.piece == nil {
		a.piece = pieces.Get().(*[pieceSize]byte)
	}
	return a.piece[:]
}

// Read gives what was read ahead and then the rest, as long as it keeps coming.
func (a *answer) Read(p []byte) (int, error) {
	if len(a.ahead) > 0 {
		n := copy(p, a.ahead)
		a.ahead = a.ahead[n:]
		return n, nil
	}
	if a.whole {
		return 0, io.EOF
	}
	idle := a.idle
	if a.vigil == nil {
		return a.body.Read(p)
	}
	if !a.until.IsZero() {
		idle = min(idle, time.Until(a.until))
	}
	a.vigil.await(idle)
	n, err := a.body.Read(p)
	a.vigil.rest()
	return n, err
}

// keep reads the rest of an answer that says what went wrong: so that its
// connection is free for another attempt while the answer may still have to stand,
// and so that it can be read. False means that it is not there as a whole.
func (a *answer) keep() bool {
	if a.whole || a.body == http.NoBody {
		return true
	}
	if a.res.ContentLength > mostKept {
		return false
	}
	err := a.readWhole(mostKept)
	a.vigil.rest()
	return err == nil && a.whole
}

// close ends the attempt and frees what it holds. It may be called again.
func (a *answer) close() {
	if a.vigil != nil && !a.closed { // which may be another call's by the second time
		a.vigil.end(a.shared)
	}
	a.closed = true
	if a.cancel != nil {
		a.cancel(errDone)
	}
	if a.body != nil {
		_ = a.body.Close() // what it says nobody can use any more
	}
	if a.piece != nil {
		pieces.Put(a.piece)
		a.piece, a.ahead = nil, nil
	}
}

// A vigil calls late when what is awaited does not come in time. Setting a timer anew for
// each event of a stream would cost more than the event: so only the time is noted by
// which something must have come, and the timer, once it fires, looks whether it has. One
// that is over may be kept again; its timer, which may still be set, is of use then.
type vigil struct {
	mu    sync.Mutex
	late  func()
	timer *time.Timer   // nil: none was needed yet
	epoch time.Time     // when it was kept first
	due   time.Duration // since epoch; 0: nothing is awaited
	fires time.Duration // of the timer, since epoch; 0: it doesn't
	ended bool
}

// keep begins to await something within limit.
func (v *vigil) keep(limit time.Duration, late func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.late, v.ended = late, false; v.epoch.IsZero() {
		v.epoch = time.Now()
	}
	v.set(limit)
}

// await gives what is awaited the time d, whatever it had before.
func (v *vigil) await(d time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.ended {
		v.set(d)
	}
}

// set needs the lock.
func (v *vigil) set(d time.Duration) {
	v.due = max(time.Since(v.epoch)+d, 1)
	switch {
	case v.fires != 0 && v.fires <= v.due:
		return
	case v.timer == nil:
		v.timer = time.AfterFunc(d, v.look)
	default:
		v.timer.Reset(d)
	}
	v.fires = v.due
}

// rest awaits nothing for now.
func (v *vigil) rest() {
	v.mu.Lock()
	v.due = 0
	v.mu.Unlock()
}

// end awaits nothing any more. again: somebody will keep the vigil again, and have use
// for a timer that is set.
func (v *vigil) end(again bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.due, v.ended, v.late = 0, true, nil
	if !again && v.timer != nil {
		v.timer.Stop()
		v.fires = 0
	}
}

// look is the timer's end.
func (v *vigil) look() {
	v.mu.Lock()
	v.fires = 0
	left := v.due - time.Since(v.epoch)
	var late func()
	switch {
	case v.due == 0:
	case left > 0:
		v.fires = v.due
		v.timer.Reset(left)
	default:
		late = v.late
	}
	v.mu.Unlock()
	if late != nil {
		late()
	}
}
