package claude

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"mainstay.dev/mainstay/claude/internal/attach"
)

// landed is a gathered answer, or the head of a stream, for those who are attached to
// its call. Nobody changes it.
type landed struct {
	status int
	header http.Header
	body   []byte   // of an answer that is there as a whole
	via    []string // the route that has served it
	end    verdict
	events bool // it is a stream of events
	quiet  bool // between whose pieces nothing may be put
}

// attach shares the answer of an identical call under way, where the call is an SDK's
// retry of it or calls may join. True: it has been answered.
func (c *call) attach(w http.ResponseWriter, r *http.Request, s *Server) bool {
	joins := c.rules.joins && !c.makesBatch() // of which two alike may be meant
	if c.rules.attach == 0 && !joins || c.mend == nil && !c.comesAgain(joins) {
		return false
	}
	who := c.identity()
	if again := c.request.again > 0; joins || again {
		f, leads := s.board.JoinOrBegin(s.base, who, c.body.Kept, c.rules.attach)
		if leads {
			c.flight = f
		} else if c.ride(w, f) {
			c.attached = again
			return true
		}
	}
	if c.flight == nil {
		c.flight = s.board.Begin(s.base, who, c.body.Kept, c.rules.attach)
	}
	c.ctx = c.flight.Context()
	c.leave = context.AfterFunc(r.Context(), c.flight.Leave)
	return false
}

// comesAgain reports whether a call whose answer passes as it comes may be asked for
// again while it is under way: by an SDK, which counts its tries, or by a twin. It must
// cost something, Claude's work or its own place in a rate limit, and be kept.
func (c *call) comesAgain(joins bool) bool {
	if c.request.again < 0 && !joins || len(c.body.Kept) == 0 || !c.body.Replayable() {
		return false
	}
	return c.shape.message || c.x.Route == routeCount && c.out.Method == http.MethodPost || c.makesBatch()
}

// identity tells apart what must not share an answer: the key, the address, the headers
// that shape what is answered, and whether it is a stream.
func (c *call) identity() attach.Who {
	said := &c.said
	who := attach.Who{
		Path: c.out.URL.Path, Query: c.out.URL.RawQuery, Whole: c.gather != nil,
		Header: [...][]string{said.Key, said.Authorization, said.Version, said.Beta, said.Type, nil},
	}
	if c.mend == nil { // what is made whole is never compressed
		who.AsIs, who.Header[len(who.Header)-1] = true, c.out.Header["Accept-Encoding"]
	}
	return who
}

// ride waits for another call's answer, and relays it as it comes. False: it came to
// nothing, and the call has to see for itself.
func (c *call) ride(w http.ResponseWriter, f *attach.Flight[landed]) bool {
	defer f.Leave()
	late := time.NewTimer(time.Until(c.whole))
	defer late.Stop()
	p := f.Progress()
	for !p.Landed && p.Head == nil {
		select {
		case <-p.Changed:
		case <-late.C:
			c.refuse(w, verdict{code: UpstreamTimeout, cause: CauseTimeout, err: errLate})
			return true
		case <-c.ctx.Done():
			v, _ := c.ended()
			c.refuse(w, v)
			return true
		}
		p = f.Progress()
	}
	l := p.Head
	if l == nil {
		l = p.Answer
	}
	if l == nil || l.header == nil {
		return false
	}
	res := &http.Response{StatusCode: l.status, Header: l.header.Clone(), ContentLength: int64(len(l.body))}
	res.Header["Mainstay-Attached"] = []string{"1"}
	if l.via != nil {
		res.Header["Mainstay-Claude-Route"] = l.via
	}
	a := &answer{res: res, body: http.NoBody, verdict: l.end, ahead: l.body, whole: true}
	if p.Head != nil {
		res.ContentLength = -1
		ctx, cancel := context.WithCancelCause(c.ctx)
		a = &answer{res: res, body: &follower{f: f, ctx: ctx, quiet: l.quiet}, verdict: l.end, events: l.events, ctx: ctx, cancel: cancel}
		if l.events {
			c.x.HTTP.Stream = true
			c.engine.counts.streams.Add(1)
		}
		defer a.close()
	}
	c.firstByte()
	c.shadow = true
	var broken bool
	c.end, broken = c.relay(w, a)
	if broken {
		panic(http.ErrAbortHandler) // net/http breaks the connection off
	}
	return true
}

// A follower is the body of a stream that another call is given: from its beginning,
// and then as it comes.
type follower struct {
	f     *attach.Flight[landed]
	ctx   context.Context
	at    int    // of the text
	left  []byte // of a ping
	quiet bool   // it can't be given any
}

// quiet is how long a follower hears nothing until it pings its client: the pings of the
// stream itself are not kept.
const quiet = 10 * time.Second

const ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n"

func (r *follower) Read(p []byte) (int, error) {
	for {
		if n := copy(p, r.left); n > 0 {
			r.left = r.left[n:]
			return n, nil
		}
		now := r.f.Progress()
		if n := copy(p, now.Text[min(r.at, len(now.Text)):]); n > 0 {
			r.at += n
			return n, nil
		}
		if now.Landed {
			switch {
			case now.Answer == nil:
				return 0, &unmended{verdict{code: UpstreamCut, cause: CauseCut, err: errors.New("the call that this one was attached to came to nothing")}}
			case now.Answer.end.code != OK:
				return 0, &unmended{now.Answer.end}
			}
			return 0, io.EOF
		}
		timer := time.NewTimer(quiet)
		select {
		case <-now.Changed:
		case <-timer.C:
			if !r.quiet {
				r.left = []byte(ping) // what is kept ends between two events
			}
		case <-r.ctx.Done():
			timer.Stop()
			return 0, context.Cause(r.ctx)
		}
		timer.Stop()
	}
}

func (r *follower) Close() error { return nil }

// takeOff lets those who are attached see how an answer begins that is not there as a
// whole: a stream, or what passes as it comes.
func (c *call) takeOff(a *answer) {
	taped := c.mend == nil && a.verdict.code == OK && !a.whole
	if c.flight == nil || c.gather != nil || !taped && !a.events {
		return
	}
	c.head0 = &landed{status: a.res.StatusCode, header: a.res.Header, via: c.servedBy(), end: verdict{code: OK}, events: a.events}
	if !taped {
		c.share()
		return
	}
	c.tape = &tape{}
	encoding := a.res.Header.Get("Content-Encoding")
	c.head0.quiet = !a.events || encoding != "" && !strings.EqualFold(encoding, "identity")
	c.flight.Tell(c.head0, nil)
}

// A tape is what has passed of an answer; it only grows.
type tape struct{ text []byte }

// mostTaped bounds what is kept of an answer that passes as it comes, for those who are
// attached to it.
const mostTaped = 16 << 20

// hear keeps what passes, and tells those who are attached; within: it ends within an
// event.
func (c *call) hear(p []byte, within bool) {
	if n := len(c.tape.text) + len(p); n > mostTaped || !c.room(n) {
		c.flight.Close()
		c.flight.Land(&landed{end: errNoRoom}, false)
		c.tape = nil
		c.shrink(0)
		return
	}
	if c.tape.text = append(c.tape.text, p...); !within {
		c.flight.Tell(c.head0, c.tape.text)
	}
}

// heard tells those who are attached how an answer ended that has passed as it came.
func (c *call) heard(a *answer, err error) {
	if c.tape == nil {
		return
	}
	l, text := *c.head0, c.tape.text
	c.tape = nil
	switch {
	case err != nil:
		l.end = c.lost(a, err)
	case c.watch.Unfinished():
		l.end = errUnfinished
	default:
		c.flight.Tell(c.head0, text)
	}
	c.flight.Land(&l, l.end.code == OK && !c.watch.Failed)
}

// errUnfinished is the end of a stream that ended as if it were whole.
var errUnfinished = verdict{code: UpstreamCut, cause: CauseCut, err: errors.New("the stream ended without message_stop")}

// share tells those who are attached what has come of a stream. False: the answer is to
// be gathered, and there is no memory left for it.
func (c *call) share() bool {
	log, kept := c.mend.Log()
	if kept && !c.room(c.mend.Size()) {
		if c.gather != nil {
			return false
		}
		c.mend.Forget()
		c.shrink(0)
		kept = false
	}
	switch {
	case c.flight == nil || c.gather != nil:
	case !kept:
		c.flight.Close()
		c.flight.Land(&landed{end: errNoRoom}, false)
	case c.head0 != nil:
		c.flight.Tell(c.head0, log)
	}
	return true
}

// landStream tells those who are attached to a stream how it ended.
func (c *call) landStream(end verdict) {
	if c.head0 != nil {
		l := *c.head0
		l.end = end
		c.flight.Land(&l, end.code == OK)
	}
}

// land gives an answer that is there as a whole to those who are attached to its call.
// One that is a failure is nobody else's.
func (c *call) land(a *answer) {
	switch {
	case c.flight == nil:
	case a != nil && a.whole && a.verdict.code == OK:
		text, head := a.ahead, a.res.Header
		if c.mend == nil { // both will be used for something else
			if !c.room(len(text)) {
				c.flight.Land(nil, false)
				return
			}
			text, head = bytes.Clone(text), head.Clone()
		}
		c.shrink(len(text))
		c.flight.Land(&landed{status: a.res.StatusCode, header: head, body: text, via: c.servedBy(), end: a.verdict}, true)
	case a == nil || a.verdict.code != OK || !a.events && c.mend != nil:
		c.flight.Land(nil, false)
	}
}

// depart ends the flight, if there is one, however the call ended.
func (c *call) depart() {
	if c.flight == nil {
		return
	}
	c.flight.Land(nil, false)
	if c.stayed {
		c.flight.Leave()
	}
	c.flight.End()
}

// errNoRoom is the end of an answer for which there is no memory.
var errNoRoom = verdict{code: AnswersFull, cause: CauseTooLarge, err: errors.New("the answers under way take all of claude.recovery.memory")}

// room reserves memory for an answer that takes n bytes by now.
func (c *call) room(n int) bool {
	const step = 64 << 10
	for int64(n) > c.roomy {
		if !c.engine.counts.answers.Take(step, c.rules.memory) {
			return false
		}
		c.roomy += step
	}
	return true
}

// shrink gives back what is reserved for more than n bytes of the answer.
func (c *call) shrink(n int) {
	if spare := c.roomy - int64(n); spare > 0 {
		c.engine.counts.answers.Give(spare)
		c.roomy = int64(n)
	}
}

// leaveRoom gives the memory of the answer back, when nobody can ask for it any more.
func (c *call) leaveRoom() {
	n, answers, m := c.roomy, &c.engine.counts.answers, c.mend
	c.roomy = 0
	switch {
	case n == 0:
	case c.flight != nil:
		c.flight.Free(func() {
			answers.Give(n)
			m.Release()
		})
	case c.done == nil: // of a Transport: whoever reads the body may still do so
		answers.Give(n)
	default:
		answers.Give(n)
		m.Release()
	}
}
