package edge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// record writes the request down, once, whatever the outcome; the panic that cuts
// an answer short goes on afterwards.
func (s *Server) record(l *lane) {
	crash := recover()
	x := l.x
	switch {
	case crash == nil:
		l.out.end()
	case !isAbort(crash):
		l.err = fmt.Errorf("panic: %v", crash)
		s.deps.Log.Error("a request crashed; this is a bug", "request_id", l.ID, "err", l.err, "stack", string(debug.Stack()))
		l.code, crash = Internal, http.ErrAbortHandler
		if !l.out.began {
			l.refuse(Internal, l.err)
			crash = nil
		}
	}
	if l.code == OK {
		l.code = l.outcome(crash)
	}
	l.leave()
	x.Code, x.Blame = string(l.code), meaning[l.code].Blame
	if x.Err = l.err; x.Err == nil {
		x.Err = l.cause
	}
	x.BytesIn, _ = l.up.result()
	l.up.end()
	if g := s.deps.Limits; g != nil {
		g.Release(&l.verdict)
	}
	l.release()
	s.requests.Add(-1)
	x.End(s.deps.Sink)
	if crash != nil {
		panic(crash)
	}
}

// outcome names how an answer that was begun has ended. The reverse proxy panics
// with ErrAbortHandler when it cannot finish one.
func (l *lane) outcome(crash any) Code {
	switch {
	case l.out.lost || crash != nil && l.hr.Context().Err() != nil, l.x.HTTP.Upgraded != "" && l.s.cutting.Load():
		return l.s.gone()
	case crash != nil:
		if _, code := l.up.result(); code != "" {
			return code
		}
		return AnswerCut
	case l.kept != "":
		return l.kept
	case l.x.HTTP.Status >= 500:
		return AppError
	}
	return OK
}

func isAbort(crash any) bool {
	err, ok := crash.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}

// refuse gives Mainstay's own answer.
func (l *lane) refuse(code Code, err error) {
	if code == Limited {
		err = l.verdict.Why()
	}
	l.code, l.err = code, err
	m := meaning[code]
	if code == ClientGone {
		// Nobody is left to read an answer; returning would give one all the same,
		// 200, to a client that closed no more than its sending side.
		l.x.HTTP.Status = m.Status
		panic(http.ErrAbortHandler)
	}
	h := l.out.Header()
	set(h, "Mainstay-Code", string(code))
	set(h, "X-Request-Id", l.ID)
	set(h, "Cache-Control", "no-store")
	if m.Status == http.StatusServiceUnavailable {
		set(h, "Retry-After", "1")
	}
	if code == Unauthorized { // RFC 6750, 3.1
		set(h, "Www-Authenticate", `Bearer error="invalid_token", error_description="`+string(l.Who.Refused)+`"`)
	}
	l.verdict.Headers(time.Now(), func(name, value string) { set(h, name, value) })
	body, kind := plain(m, l.ID), "text/plain; charset=utf-8"
	switch accept := l.header("Accept"); {
	case code == Limited || code == Denied:
		body, kind = l.verdict.Body(accept, l.ID)
	case code == Maintenance && strings.Contains(accept, "html"):
		body, kind = l.s.plan.Load().maintenance(), "text/html; charset=utf-8"
		set(h, "Retry-After", "30")
	case strings.Contains(accept, "json"):
		body, kind = problem(m, l.ID), "application/problem+json"
	}
	set(h, "Content-Type", kind)
	set(h, "X-Content-Type-Options", "nosniff")
	set(h, "Content-Length", strconv.Itoa(len(body)))
	l.out.WriteHeader(m.Status)
	_, _ = l.out.Write(body) // a client that is gone by now has lost nothing
}

// maintenance is the page for browsers. No path is exempt from it, not the health
// path either: deploy probes the app itself, and a monitor outside is to see what
// users see.
func (p *plan) maintenance() []byte {
	if p.page != "" {
		return []byte(p.page)
	}
	return []byte(plainPage)
}

// plainPage is for a maintenance without a page of the user's own.
const plainPage = `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Maintenance</title>
<body style="font:18px/1.5 system-ui;margin:20vh auto;max-width:32em;padding:0 1em"><h1>Back in a moment</h1><p>We are working on the site. Please try again shortly.</p></body></html>
`

func plain(m Meaning, id string) []byte {
	return []byte(strconv.Itoa(m.Status) + " " + http.StatusText(m.Status) + "\n" + m.Text + "\ncode: " + string(m.Code) + "\nrequest: " + id + "\n")
}

// problem is the answer as RFC 9457 has it.
func problem(m Meaning, id string) []byte {
	b, _ := json.Marshal(struct { // strings and an int: cannot fail
		Title   string `json:"title"`
		Status  int    `json:"status"`
		Detail  string `json:"detail"`
		Code    Code   `json:"code"`
		Request string `json:"request_id"`
	}{http.StatusText(m.Status), m.Status, m.Text, m.Code, id})
	return append(b, '\n')
}
