package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// discardLog silences the reverse proxy: what it would say is in the record.
var discardLog = log.New(io.Discard, "", 0)

// forward carries the request to t and the answer back. OK means that an answer
// was passed on; any other code that nothing has been answered yet. It gives the
// place on t back, also when the answer breaks off and net/http unwinds the stack.
func (l *lane) forward(t *target) (Code, error) {
	defer t.leave()
	l.target, l.code, l.err = t, OK, nil
	l.x.Color, l.x.HTTP.Target = t.color, t.address
	began := time.Now()
	defer func() {
		l.x.Try(telemetry.Attempt{Start: began, Took: time.Since(began), Target: t.address, Status: l.x.HTTP.Status, Cause: causeOf(l.code)})
	}()
	if l.up != nil {
		l.hr.Body = l.up
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

// RoundTrip makes the lane the reverse proxy's transport.
func (l *lane) RoundTrip(r *http.Request) (*http.Response, error) {
	return l.target.transport.RoundTrip(r)
}

// answered sees the target's answer before its header is passed on.
func (l *lane) answered(resp *http.Response) error {
	x := l.x
	x.FirstByte = time.Since(x.Start)
	resp.Header.Del("Mainstay-Code") // ours alone
	if resp.Header.Get("X-Request-Id") == "" {
		set(resp.Header, "X-Request-Id", l.ID)
	}
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		return l.switched(resp)
	case resp.StatusCode < 100:
		return fmt.Errorf("the target answered with status %03d, which HTTP does not have", resp.StatusCode)
	}
	if x.HTTP.Stream = strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"); !x.HTTP.Stream {
		resp.Body = watch(resp.Body, l.s.policy.Load().cfg.Timeouts.Stall)
	}
	return nil
}

// switched lets a tunnel begin, if the request asked for one and has been sent
// whole: the rest of a body would go down the tunnel.
func (l *lane) switched(resp *http.Response) error {
	if resp.Request.Header.Get("Upgrade") == "" || l.up.rest() {
		return errors.New("the target switched protocols unasked")
	}
	if to, ok := resp.Body.(io.ReadWriteCloser); ok {
		resp.Body = tunnel{to}
	}
	l.x.HTTP.Upgraded = strings.ToLower(resp.Header.Get("Upgrade"))
	l.x.HTTP.Status = resp.StatusCode // the reverse proxy writes it past us
	return nil
}

// failed is called in place of an answer. It writes none: ServeHTTP decides
// whether another target is tried.
func (l *lane) failed(_ http.ResponseWriter, hr *http.Request, err error) {
	l.code, l.err = l.classify(hr.Context(), err), err
	l.x.HTTP.Status, l.x.HTTP.Upgraded = 0, "" // it came to no tunnel
}

func (l *lane) classify(ctx context.Context, err error) Code {
	_, uploaded := l.up.result()
	if uploaded != "" && uploaded != ClientGone {
		return uploaded
	}
	if ctx.Err() != nil || uploaded == ClientGone {
		return ClientGone
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
