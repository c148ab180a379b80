package claude

import (
	"context"
	"errors"
	"io"
	"time"

	"mainstay.dev/mainstay/claude/internal/mend"
)

// A mending is the body of a message's stream that is made whole from as many
// attempts as it takes.
type mending struct {
	c     *call
	a     *answer // of the attempt under way; nil: none
	done  bool
	plain bool    // the model refused a prefill
	next  verdict // what broke after what is there to be taken
	err   error
}

// An unmended is the end of a stream that could not be made whole.
type unmended struct{ verdict }

func (u *unmended) Error() string { return u.err.Error() }
func (u *unmended) Unwrap() error { return u.err }

// mending reads the first attempt's answer until some of it is fit for the client;
// what breaks until then is an attempt that failed, of which the client sees nothing.
func (c *call) mending(a *answer) (*answer, verdict) {
	m := &mending{c: c, a: a}
	if v := m.advance(); v.code != OK {
		m.a.close()
		c.mend.Mend()
		return nil, v
	}
	whole := &answer{res: a.res, body: m, verdict: a.verdict, events: true, first: forever, idle: forever}
	whole.ctx, whole.cancel = context.WithCancelCause(c.ctx)
	whole.timer = time.AfterFunc(forever, whole.tooLate)
	whole.arrived()
	buf := whole.buffer()
	whole.ahead = buf[:c.mend.Take(buf)]
	return whole, a.verdict
}

// forever is how long the whole waits for its parts, each of which has limits of its
// own.
const forever = 1 << 62

// advance reads on until there is something to take, or the message has ended.
func (m *mending) advance() verdict {
	if v := m.next; v.code != "" {
		m.next = verdict{}
		return v
	}
	v := m.read()
	if v.code != OK && m.c.mend.Ready() {
		m.next, v = v, verdict{code: OK} // the client first gets what came before it
	}
	return v
}

// read is advance for the bytes of one attempt.
func (m *mending) read() verdict {
	c, a := m.c, m.a
	a.idle = min(a.idle, c.rules.stall)
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	for !c.mend.Ready() && !m.done {
		n, err := a.Read(buf[:])
		if n > 0 {
			a.arrived()
		}
		switch c.mend.Feed(buf[:n]) {
		case mend.Done, mend.Refused:
			m.done = true
			return verdict{code: OK}
		case mend.Broken:
			c.x.GenAI.ErrorType = c.mend.Failure()
			return verdict{code: StreamError, cause: CauseStream, again: true, err: errors.New("the stream carried an error: " + c.mend.Failure())}
		case mend.Going:
		}
		if err != nil {
			return m.broke(err)
		}
	}
	return verdict{code: OK}
}

// broke tells what an attempt came to whose stream ended before the message did.
func (m *mending) broke(err error) verdict {
	if v, ended := m.c.ended(); ended {
		return v
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the stream ended without message_stop")
	}
	v := verdict{code: UpstreamCut, cause: CauseCut, again: true, err: err}
	if cause := context.Cause(m.a.ctx); errors.Is(cause, errIdle) || errors.Is(cause, errFirstByte) {
		v = verdict{code: UpstreamStalled, cause: CauseStalled, again: true, err: cause}
	}
	return v
}

// Read gives what the client may have.
func (m *mending) Read(p []byte) (int, error) {
	for {
		if n := m.c.mend.Take(p); n > 0 {
			return n, nil
		}
		switch {
		case m.done:
			return 0, io.EOF
		case m.err != nil:
			return 0, m.err
		}
		if v := m.advance(); v.code != OK {
			m.resume(v)
		}
	}
}

// Close ends the attempt under way.
func (m *mending) Close() error {
	if m.a != nil {
		m.a.close()
	}
	return nil
}

// resume asks for the rest of a stream that broke, and again, until some of it has
// come or the call's patience ends.
func (m *mending) resume(v verdict) {
	c := m.c
	c.until = time.Time{} // each break has its own hold
	for {
		c.report(v)
		if c.mend.Mend() {
			m.done = true
			return
		}
		wait, ok := time.Duration(0), v.again && c.body.replayable()
		if ok {
			wait, ok = c.next(v.after)
		}
		if !ok {
			m.err = &unmended{v}
			return
		}
		c.tried(v.cause)
		c.retrying(v, wait)
		_ = m.Close()
		if v = m.goOn(wait, v); v.code == OK {
			return
		}
	}
}

// goOn makes one attempt at the rest.
func (m *mending) goOn(wait time.Duration, broke verdict) verdict {
	c := m.c
	rest := c.mend.Continue(c.body.text(), m.plain)
	if rest == nil || !c.claim(wait) {
		broke.again = false
		return broke
	}
	c.sends = newBody(int64(len(rest)), &reserve{})
	c.sends.kept = rest
	defer c.sends.release()
	c.midway = true
	if c.mend.Resumes() {
		c.resumes++
		c.engine.counts.resumed.Add(1)
	}
	shown := c.mend
	c.mend = nil // the attempt is not to be wrapped: it is a part
	a, v := c.forward()
	c.mend = shown
	if a == nil {
		return v
	}
	m.a = a
	if v.code != OK {
		if v.code == Rejected && !m.plain {
			m.plain, v.again = true, true
		}
		return v
	}
	v = m.advance()
	if v.code == OK {
		c.report(v)
		c.until = time.Time{}
		c.x.GenAI.ErrorType = ""
	}
	return v
}
