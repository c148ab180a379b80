package claude

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/claude/internal/batch"
	"mainstay.dev/mainstay/claude/internal/head"
	"mainstay.dev/mainstay/claude/internal/words"
	"mainstay.dev/mainstay/telemetry"
)

// relay gives the answer to the client and returns what the call came to. broken:
// the client must be made to see that the answer is not whole, by breaking its
// connection off.
func (c *call) relay(w http.ResponseWriter, a *answer) (end verdict, broken bool) {
	if a.res.StatusCode == http.StatusSwitchingProtocols {
		return c.tunnel(w, a), false
	}
	c.watch.Begin(a.res.Header, a.events, c.shape.message, &c.x.GenAI)
	defer c.watch.End()
	if strings.HasPrefix(c.x.Route, routeBatches) {
		c.follow(a)
		c.point(a)
	}
	c.head(w, a)
	out := &toClient{w: w, c: c}
	if a.events || a.res.ContentLength < 0 {
		out.flush = c.controller.Flush
	}
	var err error
	m, mended := a.body.(*mending)
	switch {
	case mended:
		err = c.relayMended(out, m)
	case a.whole:
		out.flush = nil
		c.watch.Whole(a.ahead, a.res.Header)
		c.settleUp(a.verdict.cause)
		_, err = out.Write(a.ahead)
	case a.events && c.watch.Plain:
		err = c.relayEvents(out, a)
	default:
		err = c.relayBytes(out, a)
	}
	c.watch.End()
	c.heard(a, err)
	end, whole := c.outcome(a, out, err)
	if c.resumes > 0 {
		w.Header()[http.TrailerPrefix+"Mainstay-Resumed"] = []string{strconv.Itoa(c.resumes)}
	}
	if whole {
		copyTrailers(w, a.res)
	} else if out.err == nil && !c.watch.Failed && a.events && c.watch.Plain && !out.within {
		out.errorEvent(end)
	}
	return end, !whole
}

// outcome tells what the call came to, now that all of the answer that will ever
// come has been relayed, and whether the client has the whole of it.
func (c *call) outcome(a *answer, out *toClient, err error) (v verdict, whole bool) {
	switch {
	case out.err != nil:
		if v, ended := c.ended(); ended {
			return v, false
		}
		return verdict{code: ClientGone, cause: CauseClient, err: out.err}, false
	case c.watch.Failed:
		return verdict{code: StreamError, cause: CauseStream, err: errors.New("the stream carried an error: " + c.x.GenAI.ErrorType)}, err == nil
	case err != nil:
		return c.lost(a, err), false
	case c.watch.Unfinished():
		return errUnfinished, false
	}
	return a.verdict, true
}

// head sends the head of the answer as it came, but for what is between neighbours.
func (c *call) head(w http.ResponseWriter, a *answer) {
	c.early.end()
	h := w.Header()
	maps.Copy(h, a.res.Header) // which others may be reading: it stays as it is
	head.DropHops(h)
	for _, name := range [...]string{"Content-Type", "Date"} {
		if _, ok := h[name]; !ok {
			h[name] = nil // or net/http would put in its own
		}
	}
	if a.whole && a.res.ContentLength < 0 && a.res.StatusCode != http.StatusNoContent {
		h["Content-Length"] = []string{strconv.Itoa(len(a.ahead))}
	}
	c.closeRetries(h, a.verdict)
	c.sign(h, a.verdict.code)
	c.x.HTTP.Status = a.res.StatusCode
	c.patience.write()
	w.WriteHeader(a.res.StatusCode)
}

// closeRetries tells the client's SDK that a failure is final: what a retry could do
// has been done here, and a second owner of retries only multiplies the load. (Where
// the body was not kept, or retries are turned off, nothing could be done here, and the
// SDK may.) A wait
// that Claude asked for is passed on within reason, and spread, so that clients do
// not come back as a herd.
func (c *call) closeRetries(h http.Header, v verdict) {
	if c.rules.retry.Max <= 0 || v.code == OK || v.code == Rejected || c.body != nil && !c.body.Replayable() {
		return
	}
	h["X-Should-Retry"] = []string{"false"}
	if v.code == RateLimited || v.code == Limited {
		wait := min(max(v.after, time.Second), c.rules.retryAfter)
		wait += rand.N(wait/4 + 1)
		delete(h, "Retry-After-Ms")
		h["Retry-After"] = []string{strconv.FormatInt(int64(math.Ceil(wait.Seconds())), 10)}
	}
}

// sign says in the head of an answer what Mainstay did for it.
func (c *call) sign(h http.Header, code Code) {
	tries := c.x.Tries
	if c.trying {
		tries++
	}
	if c.x.GenAI.Degraded != "" {
		h["Mainstay-Degraded"] = []string{c.x.GenAI.Degraded}
	}
	if via := c.servedBy(); via != nil && tries > 0 {
		h["Mainstay-Claude-Route"] = via
	}
	if tries > 0 {
		h["Mainstay-Attempts"] = []string{strconv.Itoa(tries)}
	}
	if code != OK {
		h["Mainstay-Code"] = []string{string(code)}
	}
	if c.upload != nil && !c.upload.ended.Load() && (c.body == nil || !c.body.Replayable()) {
		h["Connection"] = []string{"close"} // the client is still sending what nobody will read
	}
}

// servedBy is the value of the header that says which route has answered; nil: there are
// no routes.
func (c *call) servedBy() []string {
	if c.way.via == nil {
		return nil
	}
	return c.way.via.Said()
}

// point makes what Claude tells of batches lead to where the client has asked.
func (c *call) point(a *answer) {
	if !c.policy.here || c.x.Route == routeResults || !a.whole || a.res.StatusCode != http.StatusOK || mediaType(a.res.Header) != "application/json" {
		return
	}
	base := "http://" + c.x.HTTP.Host
	if c.out.Header.Get("X-Forwarded-Proto") == "https" {
		base = "https://" + c.x.HTTP.Host
	}
	if c.x.Color != telemetry.ColorUnknown {
		base += "/@" + url.PathEscape(c.x.Color)
	}
	if a.ahead = batch.Point(a.ahead, base); a.res.ContentLength >= 0 {
		a.res.ContentLength = int64(len(a.ahead))
		a.res.Header["Content-Length"] = []string{strconv.Itoa(len(a.ahead))}
	}
}

// relayMended relays a stream that is made whole: its events are known already, and go
// out from where they were put together.
func (c *call) relayMended(out *toClient, m *mending) error {
	defer func() { c.mend.Shown = nil }()
	for {
		if err := m.more(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		chunk, within := c.mend.Chunk()
		if c.mend.Shown == nil { // the first of it came before anybody watched
			c.watch.Feed(chunk)
			c.mend.Shown = c.watch.Event
		}
		out.within = within
		if _, err := out.Write(chunk); err != nil {
			return err
		}
		c.mend.Took()
	}
}

// relayEvents relays whole events as they come: an event of which only a part has
// come is of no use to the client yet, and without it the client can be told in a
// well-formed way when the rest never comes. An event longer than a piece goes in
// parts.
func (c *call) relayEvents(out *toClient, a *answer) error {
	buf, n := a.buffer(), 0
	if len(a.ahead) > 0 { // lies at the start of the same buffer
		n = len(a.ahead)
		a.ahead = nil
	} else if err := out.begin(); err != nil {
		return err
	}
	whole := c.watch.Feed(buf[:n])
	for {
		if whole == 0 && n == len(buf) {
			out.within = true
			whole = n
		} else if whole > 0 {
			out.within = false
		}
		if whole > 0 {
			if _, err := out.Write(buf[:whole]); err != nil {
				return err
			}
			n = copy(buf, buf[whole:n])
		}
		m, err := a.Read(buf[n:])
		whole = 0
		if m > 0 {
			if at := c.watch.Feed(buf[n : n+m]); at > 0 {
				whole = n + at
			}
			n += m
		}
		if err != nil {
			return c.lastEvents(out, buf[:n], whole, err)
		}
	}
}

// lastEvents relays what is left when a stream has ended: all of it if it ended
// well, else whole events only.
func (c *call) lastEvents(out *toClient, left []byte, whole int, err error) error {
	if errors.Is(err, io.EOF) {
		_, err = out.Write(left)
		return err
	}
	if whole > 0 {
		out.within = false
		if _, werr := out.Write(left[:whole]); werr != nil {
			return werr
		}
	}
	return err
}

// relayBytes relays anything else as it comes.
func (c *call) relayBytes(out *toClient, a *answer) error {
	if len(a.ahead) > 0 {
		c.watch.Feed(a.ahead)
		if _, err := out.Write(a.ahead); err != nil {
			return err
		}
		a.ahead = nil
	} else if err := out.begin(); err != nil {
		return err
	}
	buf := a.buffer()
	for {
		n, err := a.Read(buf)
		if n > 0 {
			c.watch.Feed(buf[:n])
			if _, werr := out.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// toClient writes to the client, and remembers whether that failed.
type toClient struct {
	w      http.ResponseWriter
	c      *call
	flush  func() error // after every write; nil: net/http may gather them
	within bool         // the client has a part of an event
	err    error
}

// begin lets the client see the head before there is any of the body.
func (t *toClient) begin() error {
	if t.flush == nil || t.err != nil {
		return t.err
	}
	return t.fail(t.flush())
}

// fail notes that the client has left. The call goes on, if others may ask for its
// answer.
func (t *toClient) fail(err error) error {
	if t.err = err; t.c != nil && t.c.flight != nil {
		return nil
	}
	return err
}

func (t *toClient) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if t.c.tape != nil {
		t.c.hear(p, t.within)
	}
	if t.err != nil {
		return len(p), nil
	}
	t.c.patience.write()
	n, err := t.w.Write(p)
	t.c.x.BytesOut += int64(n)
	if err == nil && t.flush != nil {
		err = t.flush()
	}
	return n, t.fail(err)
}

// errorEvent ends a stream that broke between two events with one that says so, in
// the API's words.
func (t *toClient) errorEvent(v verdict) {
	kind, message := explain(v, t.c.out.URL.Host, t.c.x.Tries+1)
	_, _ = fmt.Fprintf(t, "event: error\ndata: %s\n\n", words.Error(kind, message, t.c.x.ID)) // the connection is broken off after it in any case
}

// copyTrailers passes on what the upstream said after its body.
func copyTrailers(w http.ResponseWriter, res *http.Response) {
	for name, values := range res.Trailer {
		w.Header()[http.TrailerPrefix+name] = values
	}
}

// early tells the client what comes before an answer: 102 and 103 (RFC 9110, section
// 15.2; RFC 8297). The nil early tells nobody.
type early struct {
	w        http.ResponseWriter
	patience *patience
	mu       sync.Mutex // an attempt that was given up may still be heard
	ended    bool       // the answer has begun
}

// hear returns the context of an attempt that is heard.
func (e *early) hear(ctx context.Context) context.Context {
	if e == nil {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: e.tell})
}

func (e *early) tell(code int, header textproto.MIMEHeader) error {
	if code == http.StatusContinue { // is between two neighbours
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return nil
	}
	h := e.w.Header()
	maps.Copy(h, header)
	head.DropHops(h)
	e.patience.write() // the deadline of an answer before it may have passed
	e.w.WriteHeader(code)
	clear(h) // net/http leaves them for the answer
	return nil
}

// end lets nothing be told any more.
func (e *early) end() {
	if e != nil {
		e.mu.Lock()
		e.ended = true
		e.mu.Unlock()
	}
}

// tunnel lets both sides speak the protocol that they have gone over to, until one of
// them ends, nothing has come for longer than a first byte may take, or Mainstay stops.
func (c *call) tunnel(w http.ResponseWriter, a *answer) verdict {
	c.early.end()
	c.x.HTTP.Status, c.x.HTTP.Upgraded = a.res.StatusCode, head.Upgrades(a.res.Header)
	back, ok := a.res.Body.(io.ReadWriteCloser)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil || !ok {
		return verdict{code: Internal, err: errors.Join(err, errors.New("the connections can't go over to "+c.x.HTTP.Upgraded))}
	}
	both := func() { _, _ = conn.Close(), back.Close() } // ends both copies; they are closed again
	defer both()
	defer context.AfterFunc(c.ctx, both)()
	_ = conn.SetDeadline(time.Time{})
	quiet := time.AfterFunc(c.rules.firstByte, both)
	defer quiet.Stop()
	c.sign(a.res.Header, OK)
	head := &http.Response{StatusCode: a.res.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: a.res.Header}
	if err = errors.Join(head.Write(buffered), buffered.Flush()); err != nil {
		return verdict{code: ClientGone, cause: CauseClient, err: err}
	}
	moved := func(n int, count *int64) { *count += int64(n); quiet.Reset(c.rules.firstByte) }
	up := make(chan struct{})
	go func() {
		defer close(up)
		pass(back, buffered, func(n int) { moved(n, &c.x.BytesIn) })
		both()
	}()
	pass(conn, back, func(n int) { moved(n, &c.x.BytesOut) })
	both()
	<-up
	if v, _ := c.ended(); v.code == Stopping {
		return v
	}
	return verdict{code: OK} // whichever side ended it
}

// pass copies until one side ends, and says how much it has.
func pass(to io.Writer, from io.Reader, moved func(int)) {
	buf := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(buf)
	for {
		n, err := from.Read(buf[:])
		moved(n)
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// ended waits for the calls whose connections have gone over to another protocol, of
// which net/http knows no more; false: ctx was done before they were.
func (s *Server) ended(ctx context.Context) bool {
	all := make(chan struct{})
	go func() { // ends when they do, for which Run waits too
		s.calls.Wait()
		close(all)
	}()
	select {
	case <-all:
		return true
	case <-ctx.Done():
		return false
	}
}
