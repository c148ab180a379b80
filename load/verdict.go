package load

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// A Verdict says what became of a request.
type Verdict uint8

const (
	OK             Verdict = iota
	HTTPError              // an answer came, and it says that the request failed
	WrongBody              // an answer came that claims success and is not what was asked for
	TransportError         // no whole answer came: refused, reset, cut short, timed out
	Saturated              // it was not sent: the generator had no place, port or file left
)

func (v Verdict) String() string {
	switch v {
	case OK:
		return "ok"
	case HTTPError:
		return "http_error"
	case WrongBody:
		return "wrong_body"
	case TransportError:
		return "transport_error"
	case Saturated:
		return "saturated"
	}
	return "verdict " + strconv.Itoa(int(v))
}

// An Outcome is the life of one request.
type Outcome struct {
	Kind    string
	Due     time.Time // when the plan meant it to be sent
	Sent    time.Time // when it was; later than Due if the generator itself was late
	Done    time.Time // when the last byte of the answer was in, or the failure known
	Status  int       // HTTP status; 0: none came
	Verdict Verdict
	Cause   string // why it is not OK, in a word: "503", "refused", "timeout"
}

// Latency is what a user felt: from when the request was due to its end.
func (o Outcome) Latency() time.Duration { return o.Done.Sub(o.Due) }

// Failed reports whether the server owes a better answer. A saturated generator
// says nothing about the server.
func (o Outcome) Failed() bool { return o.Verdict != OK && o.Verdict != Saturated }

// ByStatus is how an answer is judged that its Kind does not judge: a status below
// 400 is OK, any other is an HTTPError with the status as the cause.
func ByStatus(a Answer) (Verdict, string) {
	if a.Status < http.StatusBadRequest {
		return OK, ""
	}
	return HTTPError, strconv.Itoa(a.Status)
}

// blame tells the server's failures from the generator's.
func blame(err error) (Verdict, string) {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EADDRINUSE):
		return Saturated, "ports"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return Saturated, "files"
	case errors.Is(err, syscall.ECONNREFUSED):
		return TransportError, "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return TransportError, "reset"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return TransportError, "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return TransportError, "cut"
	}
	return TransportError, "other"
}
