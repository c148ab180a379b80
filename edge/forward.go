package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"

	"mainstay.dev/mainstay/edge/internal/events"
	"mainstay.dev/mainstay/edge/internal/farewell"
	"mainstay.dev/mainstay/edge/internal/tunnel"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/telemetry"
)

// discardLog silences the reverse proxy: what it would say is in the record.
var discardLog = log.New(io.Discard, "", 0)

// forward carries the request to t and the answer back. OK means that an answer
// was passed on; any other code that nothing has been answered yet. It gives the
// place on t back, also when the answer breaks off and net/http unwinds the stack.
func (l *lane) forward(t *target) (Code, error) {
	defer t.leave()
	l.target, l.code, l.err, l.begun, l.conn = t, OK, nil, false, nil
	l.x.Color, l.x.HTTP.Target = t.color, t.address
	l.expect(t)
	began := time.Now()
	defer func() {
		l.judge(t)
		l.x.Try(telemetry.Attempt{Start: began, Took: time.Since(began), Target: t.address, Status: cmp.Or(l.failure, l.x.HTTP.Status), Cause: causeOf(l.code)})
	}()
	if l.up != nil {
		l.hr.Body = l.up.again()
		defer func() { l.hr.Body = l.up.src }() // net/http asks it how the request ended
	}
	l.proxy.ServeHTTP(&l.out, l.hr)
	return l.code, l.err
}

func causeOf(c Code) string {
	if c == OK {
		return ""
	}
	return string(c)
}

// judge tells the target's fitness what the try came to; an answer has told it
// already.
func (l *lane) judge(t *target) {
	switch l.code {
	case TargetUnreachable, TargetBroke, TargetTimeout:
		t.missed(l.code)
	}
	l.unprobe(t)
	if l.cancel != nil {
		l.cancel(nil)
		l.cancel = nil
	}
}

// again reports whether the request may be tried on another target: nothing was
// answered, and either it does no harm twice or not a byte of it has left.
func (l *lane) again(code Code, err error) bool {
	switch {
	case l.begun || l.up.spent():
		return false
	case code == TargetUnreachable:
		return true
	case code == TargetTimeout:
		return l.replay && errors.Is(err, errSilent)
	}
	return code == TargetBroke && (l.replay || l.unsent())
}

// connected is told by net/http's transport which connection the request takes.
func (l *lane) connected(info httptrace.GotConnInfo) {
	if l.conn, _ = info.Conn.(*patient); l.conn != nil {
		l.sent, l.stale = l.conn.sent.Load(), info.Reused
	}
}

// unsent reports whether not a byte of the request has left.
func (l *lane) unsent() bool { return l.conn == nil || l.conn.sent.Load() == l.sent }

// body is the request's body for another connection.
func (l *lane) body() (io.ReadCloser, error) {
	return l.up.again(), nil
}

// RoundTrip makes the lane the reverse proxy's transport. It goes on with another
// connection where net/http does not: the one it took was closed by the target
// before anything was sent.
func (l *lane) RoundTrip(r *http.Request) (*http.Response, error) {
	if t := httptrace.ContextClientTrace(r.Context()); t != nil { // the reverse proxy's own
		t.GotConn = l.gotConn
	}
	if l.up != nil && l.up.kept != nil {
		r.GetBody = l.getBody
	}
	if l.mirror != nil {
		l.mirror.send(l.s, r)
		l.mirror = nil
	}
	resp, err := l.attempt(r)
	if err != nil && l.conn != nil && l.stale && l.unsent() && r.Context().Err() == nil {
		if l.up.spent() {
			return nil, err
		}
		if l.up != nil {
			r.Body = l.up.again()
		}
		l.conn = nil
		resp, err = l.attempt(r)
	}
	return resp, err
}

// errSilent ends a try on a target that answers nothing at all.
var errSilent = errors.New("the target answered nothing for edge.timeouts.attempt, neither this request nor another")

// attempt sends the request. If another target could take it, it gives up on one
// that has fallen silent.
func (l *lane) attempt(r *http.Request) (*http.Response, error) {
	limit := l.s.policy.Load().cfg.Timeouts.Attempt
	if limit <= 0 || !l.spare || !l.replay || r.Header.Get("Upgrade") != "" || strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		return l.target.transport.RoundTrip(r)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	if l.cancel != nil {
		l.cancel(nil)
	}
	l.cancel = cancel // later: it would end the answer's body too
	s := &silence{target: l.target, up: l.up, limit: limit, give: cancel, heard: l.target.health.answers.Load()}
	s.timer = time.AfterFunc(time.Hour, s.over)
	s.timer.Reset(limit) // now that over can see it
	resp, err := l.target.transport.RoundTrip(r.WithContext(ctx))
	s.timer.Stop()
	if context.Cause(ctx) == errSilent { //nolint:errorlint // the very value that was given
		if err == nil {
			resp.Body.Close()
		}
		return nil, errSilent
	}
	return resp, err
}

// silence waits for a target to answer anything: one that answers others is slow
// with this request, and one that answers nobody hangs.
type silence struct {
	target *target
	up     *upload
	limit  time.Duration
	timer  *time.Timer
	give   context.CancelCauseFunc
	heard  int64
}

func (s *silence) over() {
	if n := s.target.health.answers.Load(); n != s.heard || s.up.rest() { // or it waits for the client
		s.heard = n
		s.timer.Reset(s.limit)
		return
	}
	s.give(errSilent)
}

// answered sees the target's answer before its header is passed on.
func (l *lane) answered(resp *http.Response) error {
	x := l.x
	l.target.answered()
	x.FirstByte = time.Since(x.Start)
	l.took = l.pass.Since()
	resp.Header.Del("Mainstay-Code")     // ours alone
	delete(resp.Header, identity.Header) // for the app alone, should it echo what it gets
	if resp.Header.Get("X-Request-Id") == "" {
		set(resp.Header, "X-Request-Id", l.ID)
	}
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		err := l.switched(resp)
		l.begun = err == nil
		return err
	case resp.StatusCode < 100:
		return fmt.Errorf("the target answered with status %03d, which HTTP does not have", resp.StatusCode)
	}
	l.begun = true
	if g := l.s.deps.Limits; g != nil {
		g.Charge(&l.verdict, resp.Header)
		l.consider(resp)
		l.tell(resp.Header)
	}
	if l.pin != "" {
		l.setCookie(resp)
	}
	if x.HTTP.Stream = strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"); x.HTTP.Stream {
		l.pass.Free() // it lasts as long as its ends like
		l.stream(resp)
	} else {
		resp.Body = watch(resp.Body, l.s.policy.Load().cfg.Timeouts.Stall)
		if l.keep.copy != nil {
			resp.Body = l.keep.copy.Of(resp.Body)
		}
	}
	return nil
}

// stream lets an event stream be ended between two events, and be heard while it
// is silent. One whose events can't be seen, or whose length was told, passes as
// it is. Only what was asked for by GET is ended early: a client of EventSource
// comes back, and the answer of a chat would seem to be whole.
func (l *lane) stream(resp *http.Response) {
	if resp.StatusCode != http.StatusOK || l.Method == "HEAD" || resp.ContentLength >= 0 || resp.Header.Get("Content-Encoding") != "" {
		return
	}
	cfg := l.s.policy.Load().cfg.Streams
	o := events.Options{Write: l.out.tell, Every: cfg.Heartbeat, Closes: l.Method == "GET", Resumes: cfg.SSE == streamHandOver,
		Resumable: l.header("Last-Event-Id") != ""}
	for _, cc := range resp.Header["Cache-Control"] {
		if strings.Contains(strings.ToLower(cc), "no-transform") { // RFC 9111, 5.2.2.6
			o.Every = 0
		}
	}
	body := events.New(resp.Body, o)
	resp.Body = body
	l.part = l.join(body, cfg.SSE)
}

// join puts a stream on the lists of those that are ended when their time comes.
func (l *lane) join(s farewell.Stream, how string) (part func()) {
	p := farewell.Policy{Ride: how == streamRide, Soon: how == streamHandOver, Over: l.s.policy.Load().cfg.Streams.Over}
	one, other := l.target.streams.Add(s, p), l.s.streams.Add(s, p)
	return func() {
		one()
		other()
	}
}

// switched lets a tunnel begin, if the request asked for one and has been sent
// whole: the rest of a body would go down the tunnel.
func (l *lane) switched(resp *http.Response) error {
	if resp.Request.Header.Get("Upgrade") == "" || l.up.rest() {
		return errors.New("the target switched protocols unasked")
	}
	if to, ok := resp.Body.(io.ReadWriteCloser); ok {
		resp.Body = upstream{to}
	}
	l.pass.Free()
	l.x.HTTP.Upgraded = strings.ToLower(resp.Header.Get("Upgrade"))
	app, webSocket := resp.Body, l.x.HTTP.Upgraded == "websocket"
	l.out.tunnel = func(c net.Conn) net.Conn {
		t := tunnel.New(c, webSocket, func() { app.Close() })
		if webSocket {
			l.part = l.join(t, l.s.policy.Load().cfg.Streams.WebSocket)
		}
		return t
	}
	l.x.HTTP.Status = resp.StatusCode // the reverse proxy writes it past us
	return nil
}

// failed is called in place of an answer. It writes none: ServeHTTP decides
// whether another target is tried.
func (l *lane) failed(_ http.ResponseWriter, hr *http.Request, err error) {
	l.code, l.err = l.classify(hr.Context(), err), err
	l.x.HTTP.Status, l.x.HTTP.Upgraded = 0, "" // it came to no tunnel
	l.unanswered()
}

func (l *lane) classify(ctx context.Context, err error) Code {
	_, uploaded := l.up.result()
	if uploaded != "" && uploaded != ClientGone {
		return uploaded
	}
	if ctx.Err() != nil || uploaded == ClientGone {
		return l.s.gone()
	}
	if errors.Is(err, errSilent) {
		return TargetTimeout
	}
	if _, ok := errors.AsType[*dialError](err); ok {
		return TargetUnreachable
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return TargetTimeout
	}
	return TargetBroke
}

// watched is an answer's body that is given up when the target falls silent in
// the middle of it.
type watched struct {
	io.ReadCloser
	limit time.Duration
	timer *time.Timer
}

func watch(body io.ReadCloser, limit time.Duration) io.ReadCloser {
	if body == http.NoBody {
		return body
	}
	return &watched{body, limit, nil}
}

func (w *watched) Read(p []byte) (int, error) {
	if w.timer == nil {
		w.timer = time.AfterFunc(w.limit, func() { w.ReadCloser.Close() })
	} else {
		w.timer.Reset(w.limit)
	}
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	return n, err
}
