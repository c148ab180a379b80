package claude

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/claude/internal/attach"
	"mainstay.dev/mainstay/claude/internal/gather"
	"mainstay.dev/mainstay/claude/internal/mend"
)

// aggregateHeader: off lets a call that does not stream go upstream as it is.
const aggregateHeader = "Mainstay-Aggregate"

// choose reads what a caller wants to be left alone.
func (c *call) choose(h http.Header) {
	c.request.gather = c.rules.gathers && !strings.EqualFold(h.Get(aggregateHeader), "off")
	delete(h, aggregateHeader)
}

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
		text, ok := gather.Streaming(c.body.text())
		if !ok {
			return
		}
		c.body.replace(text)
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
		return c.told(stream.res)
	}
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	for {
		n, err := stream.Read(buf[:])
		if _, bad := c.gather.Write(buf[:n]); bad != nil {
			return nil, c.misfit(bad)
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
	if v.cause == CauseStalled && !time.Now().Before(c.deadline) {
		return verdict{code: UpstreamTimeout, cause: CauseTimeout, err: errLate}
	}
	return v
}

// told is the answer that a stream told.
func (c *call) told(res *http.Response) (*answer, verdict) {
	v := verdict{code: OK}
	body, kind := c.gather.Failure()
	if body != nil {
		if res.StatusCode = statuses[kind]; res.StatusCode == 0 {
			res.StatusCode = http.StatusInternalServerError
		}
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

// statuses are those of the API's errors (https://docs.claude.com/en/api/errors).
var statuses = map[string]int{
	"invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403, "not_found_error": 404,
	"conflict_error": 409, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504, "overloaded_error": 529,
}

// landed is a gathered answer, for those who are attached to its call. Nobody changes
// it.
type landed struct {
	status int
	header http.Header
	body   []byte
	end    verdict
}

// attach shares the answer of an identical call under way, where the call is an SDK's
// retry of it or calls may join. True: it has been answered.
func (c *call) attach(w http.ResponseWriter, r *http.Request, s *Server) bool {
	if c.gather == nil || c.rules.attach == 0 && !c.rules.joins {
		return false
	}
	who := identityOf(c.out)
	again, _ := strconv.Atoi(r.Header.Get("X-Stainless-Retry-Count"))
	if c.rules.joins || again > 0 {
		if f := s.board.Join(who, c.body.kept); f != nil && c.ride(w, f) {
			c.attached = again > 0
			return true
		}
	}
	c.flight = s.board.Begin(s.base, who, c.body.kept, c.rules.attach)
	c.ctx = c.flight.Context()
	c.leave = context.AfterFunc(r.Context(), c.flight.Leave)
	return false
}

// identityOf tells apart what must not share an answer: the key, the address, and the
// headers that shape what is answered.
func identityOf(out *http.Request) string {
	parts := []string{out.URL.Path, out.URL.RawQuery}
	for _, name := range []string{"X-Api-Key", "Authorization", "Anthropic-Version", "Anthropic-Beta", "Content-Type"} {
		parts = append(parts, strings.Join(out.Header[name], ","))
	}
	return strings.Join(parts, "\x00")
}

// ride waits for another call's answer. False: it came to nothing, and the call has
// to see for itself.
func (c *call) ride(w http.ResponseWriter, f *attach.Flight[landed]) bool {
	defer f.Leave()
	late := time.NewTimer(time.Until(c.deadline))
	defer late.Stop()
	select {
	case <-f.Landed():
	case <-late.C:
		c.refuse(w, verdict{code: UpstreamTimeout, cause: CauseTimeout, err: errLate})
		return true
	case <-c.ctx.Done():
		v, _ := c.ended()
		c.refuse(w, v)
		return true
	}
	l := f.Answer()
	if l == nil {
		return false
	}
	res := &http.Response{StatusCode: l.status, Header: l.header.Clone(), ContentLength: int64(len(l.body))}
	res.Header["Mainstay-Attached"] = []string{"1"}
	c.firstByte()
	c.rides = true
	c.end, _ = c.relay(w, &answer{res: res, body: http.NoBody, verdict: l.end, ahead: l.body, whole: true})
	return true
}

// land gives a call's answer to those who are attached to it.
func (c *call) land(a *answer) {
	if c.flight == nil {
		return
	}
	var l *landed
	if a != nil && a.whole && a.verdict.code == OK {
		l = &landed{a.res.StatusCode, a.res.Header.Clone(), a.ahead, a.verdict}
	}
	c.flight.Land(l)
}

// depart ends the flight, if there is one, however the call ended.
func (c *call) depart() {
	if c.flight == nil {
		return
	}
	c.flight.Land(nil)
	if c.leave() {
		c.flight.Leave()
	}
	c.flight.End()
}

// A mending is the body of a message's stream that is made whole from as many
// attempts as it takes.
type mending struct {
	c     *call
	a     *answer // of the attempt under way; nil: none
	done  bool
	plain bool    // the model refused a prefill
	next  verdict // what broke after what is there to be taken
	err   error

	gathered bool // the message came in one piece, and has been gathered
	finished bool // all has been read that comes after the message
}

// An unmended is the end of a stream that could not be made whole.
type unmended struct{ verdict }

func (u *unmended) Error() string { return u.err.Error() }
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
	whole := &answer{res: a.res, body: m, verdict: a.verdict, events: true, ctx: c.ctx}
	buf := whole.buffer()
	whole.ahead = buf[:c.mend.Take(buf)]
	return whole, a.verdict
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
	a.idle = min(a.idle, c.rules.stall)
	if c.gather != nil {
		a.until = c.deadline
	}
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
		case m.done && !m.finished:
			m.finish()
			continue
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
	c.way.pinned = true
	defer func() { c.way.pinned = false }()
	rest := c.mend.Continue(c.chosen().text(), m.plain)
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
