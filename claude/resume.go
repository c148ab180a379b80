package claude

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"mainstay.dev/mainstay/claude/internal/body"
	"mainstay.dev/mainstay/claude/internal/gather"
	"mainstay.dev/mainstay/claude/internal/mend"
	"mainstay.dev/mainstay/claude/internal/words"
)

// cheap is how much of a message that the client has not seen, in bytes of its
// stream (a few thousand tokens), is rather had anew than continued: that costs
// little, and leaves no seam.
const cheap = 128 << 10

// makeWhole prepares for mending the answer, if it is one that can be mended.
func (c *call) makeWhole() {
	switch {
	case c.request.stream && c.rules.streams:
		c.mend = &mend.Message{Whole: c.request.format}
	case !c.request.stream && c.request.gather:
		if !c.room(1) { // it is not needed so badly that others should fail for it
			return
		}
		text, ok := gather.Streaming(c.body.Text())
		if !ok {
			return
		}
		c.body.Replace(text)
		c.mend = &mend.Message{Whole: c.request.format, Unseen: true, Anew: cheap}
		c.gather = &gather.Message{Limit: c.rules.answer}
	default:
		return
	}
	c.out.Header["Accept-Encoding"] = []string{"identity"} // what is compressed can't be mended
}

// gathered reads a message's stream to its end and makes of it the answer that the
// API would have given. It goes on with what breaks, as the stream does by itself;
// what that can't mend is final.
func (c *call) gathered(stream *answer) (*answer, verdict) {
	defer stream.close()
	if m, ok := stream.body.(*mending); ok && m.gathered {
		m.finish()
		if _, bad := c.gather.Write(nil); bad != nil {
			return nil, c.misfit(bad)
		}
		if !c.room(c.mend.Size() + c.gather.Size()) {
			return nil, errNoRoom
		}
		return c.told(stream.res)
	}
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	for {
		n, err := stream.Read(buf[:])
		if _, bad := c.gather.Write(buf[:n]); bad != nil {
			return nil, c.misfit(bad)
		}
		if !c.room(c.mend.Size() + c.gather.Size()) {
			return nil, errNoRoom
		}
		switch {
		case errors.Is(err, io.EOF):
			return c.told(stream.res)
		case err != nil:
			return nil, c.lost(stream, err)
		}
	}
}

// misfit tells what a call came to whose answer can't be gathered.
func (c *call) misfit(err error) verdict {
	if errors.Is(err, gather.ErrTooLong) {
		return verdict{code: AnswerTooLarge, cause: CauseTooLarge, err: err}
	}
	return verdict{code: UpstreamCut, cause: CauseCut, err: err}
}

// late turns a verdict on an answer that took longer than its caller waits into one
// that says so.
func (c *call) late(v verdict) verdict {
	if v.cause == CauseStalled && !time.Now().Before(c.whole) {
		return verdict{code: UpstreamTimeout, cause: CauseTimeout, err: errLate}
	}
	return v
}

// told is the answer that a stream told.
func (c *call) told(res *http.Response) (*answer, verdict) {
	v := verdict{code: OK}
	body, kind := c.gather.Failure()
	if body != nil {
		res.StatusCode = words.Status(kind)
		v = judgeStatus(res.StatusCode)
		v.again = false
		c.try.Status = res.StatusCode
	} else if body = c.gather.JSON(); !c.gather.Done() || !json.Valid(body) {
		return nil, c.misfit(errors.New("the stream was not one of a message"))
	}
	res.Status = strconv.Itoa(res.StatusCode) + " " + http.StatusText(res.StatusCode)
	res.ContentLength, res.TransferEncoding = int64(len(body)), nil
	res.Header["Content-Type"] = []string{"application/json"}
	res.Header["Content-Length"] = []string{strconv.Itoa(len(body))}
	if res.Header.Get("Cache-Control") == "no-cache" { // says every stream, and no other answer
		delete(res.Header, "Cache-Control")
	}
	return &answer{res: res, body: http.NoBody, verdict: v, ahead: body, whole: true, ctx: c.ctx}, v
}

// A mending is the body of a message's stream that is made whole from as many
// attempts as it takes.
type mending struct {
	c     *call
	a     *answer    // of the attempt under way; nil: none
	mu    sync.Mutex // guards a against breakOff
	done  bool
	plain bool    // the model refused a prefill
	next  verdict // what broke after what is there to be taken
	err   error

	gathered bool // the message came in one piece, and has been gathered
	finished bool // all has been read that comes after the message
}

// An unmended is the end of a stream that could not be made whole.
type unmended struct{ verdict }

func (u *unmended) Error() string {
	if u.err == nil { // an answer with a status that says it all
		return "the rest of the stream cannot be had: " + string(u.cause)
	}
	return u.err.Error()
}
func (u *unmended) Unwrap() error { return u.err }

// mending reads the first attempt's answer until some of it is fit for the client;
// what breaks until then is an attempt that failed, of which the client sees nothing.
func (c *call) mending(a *answer) (*answer, verdict) {
	m := &mending{c: c, a: a}
	if c.gather != nil { // most answers are short, and come in one piece: then no second look at them is needed
		c.gather.Reset()
		c.mend.Tap = c.gather.Event
	}
	v := m.advance()
	c.mend.Tap = nil
	if v.code != OK {
		m.a.close()
		c.mend.Mend()
		return nil, v
	}
	if m.gathered = c.gather != nil && m.done; c.gather != nil && !m.gathered {
		c.gather.Reset()
	}
	return &answer{res: a.res, body: m, verdict: a.verdict, events: true, ctx: c.ctx}, a.verdict
}

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
	if c.way.via.Pings() {
		a.idle = min(a.idle, c.rules.stall)
	}
	if c.gather != nil {
		a.until = c.whole
	}
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	for !c.mend.Ready() && !m.done {
		n, err := a.Read(buf[:])
		if n > 0 {
			a.arrived()
		}
		state := c.mend.Feed(buf[:n])
		if !c.share() {
			return errNoRoom
		}
		switch state {
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
	if err := m.more(); err != nil {
		return 0, err
	}
	return m.c.mend.Take(p), nil
}

// more waits until there is something that the client may have; io.EOF: there will be
// nothing more.
func (m *mending) more() error {
	c := m.c
	for !c.mend.Ready() {
		switch {
		case m.done && !m.finished:
			m.finish()
			continue
		case m.done:
			c.landStream(verdict{code: OK})
			return io.EOF
		case m.err != nil:
			if u, ok := errors.AsType[*unmended](m.err); ok {
				c.landStream(u.verdict)
			}
			return m.err
		}
		if v := m.advance(); v.code != OK {
			m.resume(v)
		}
	}
	return nil
}

// finish reads the end of a stream whose message has ended: whatever may still come
// passes, and the connection is there for another call, since nothing is left unread.
func (m *mending) finish() {
	const little, moment = 64 << 10, time.Second / 4
	m.finished = true
	defer m.c.mend.Rest()
	if m.a == nil {
		return
	}
	m.a.idle = min(m.a.idle, moment)
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	for n := 0; n < little; {
		k, err := m.a.Read(buf[:])
		m.c.mend.After(buf[:k])
		if n += k; err != nil {
			return
		}
	}
}

// breakOff ends the attempt that is being read.
func (m *mending) breakOff() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.a != nil && m.a.body != nil {
		_ = m.a.body.Close() // what it says the Read says too
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
		wait, ok := time.Duration(0), v.again && c.body.Replayable()
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
	c.way.pinned = true
	defer func() { c.way.pinned = false }()
	rest := c.mend.Continue(c.chosen().Text(), m.plain)
	if rest == nil || !c.claim(wait) {
		broke.again = false
		return broke
	}
	c.sends = body.New(int64(len(rest)), &body.Reserve{})
	c.sends.Kept = rest
	defer c.sends.Release()
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
	m.mu.Lock()
	m.a = a
	m.mu.Unlock()
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
