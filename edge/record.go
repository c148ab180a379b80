package edge

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
)

// record writes the request down, once, whatever the outcome; a panic that ends
// the request goes on afterwards.
func (s *Server) record(l *lane) {
	crash := recover()
	x := l.x
	if l.code == OK || crash != nil {
		l.code = l.outcome(crash)
	}
	x.Code, x.Blame = string(l.code), meaning[l.code].Blame
	if x.Err = l.err; x.Err == nil {
		x.Err = l.cause
	}
	x.BytesIn, _ = l.up.result()
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
	case crash != nil && !isAbort(crash):
		return Internal
	case l.out.lost || crash != nil && l.hr.Context().Err() != nil:
		return ClientGone
	case crash != nil:
		if _, code := l.up.result(); code != "" {
			return code
		}
		return AnswerCut
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
	l.code, l.err = code, err
	m := meaning[code]
	if code == ClientGone {
		l.x.HTTP.Status = m.Status
		return // nobody is left to read an answer
	}
	h := l.out.Header()
	set(h, "Mainstay-Code", string(code))
	set(h, "X-Request-Id", l.ID)
	set(h, "Cache-Control", "no-store")
	if m.Status == http.StatusServiceUnavailable {
		set(h, "Retry-After", "1")
	}
	if l.up != nil {
		set(h, "Connection", "close") // the rest of the body is not wanted
	}
	body, kind := plain(m, l.ID), "text/plain; charset=utf-8"
	if strings.Contains(l.header("Accept"), "json") {
		body, kind = problem(m, l.ID), "application/problem+json"
	}
	set(h, "Content-Type", kind)
	set(h, "X-Content-Type-Options", "nosniff")
	set(h, "Content-Length", strconv.Itoa(len(body)))
	l.out.WriteHeader(m.Status)
	_, _ = l.out.Write(body) // a client that is gone by now has lost nothing
}

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
