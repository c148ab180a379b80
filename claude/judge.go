package claude

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mainstay.dev/mainstay/claude/internal/words"
)

// A verdict says what an attempt came to.
type verdict struct {
	code  Code
	cause Cause
	again bool          // another attempt may mend it
	after time.Duration // the wait that Claude asked for; 0: none
	own   bool          // limits.claude refused, and nobody else
	err   error
}

// What ends a call from our side; causes of a context's end.
var (
	errFirstByte = errors.New("no first byte within timeouts.first_byte")
	errIdle      = errors.New("nothing within timeouts.idle")
	errStopping  = errors.New("mainstay is stopping")
	errDone      = errors.New("the call has ended")
	errLate      = errors.New("the answer was not whole by the caller's deadline")
	errQueued    = errors.New("the rate limit of the key left no room for as long as the call could wait")
	errHeld      = errors.New("claude was failing for as long as the call could wait")
)

// judge tells from the head of an answer what the attempt came to: another attempt
// may mend 408, 409, 429 and 5xx (as in the official SDKs), unless x-should-retry
// says otherwise.
func judge(res *http.Response) verdict {
	v := judgeStatus(res.StatusCode)
	if v.code == OK {
		return v
	}
	switch res.Header.Get("X-Should-Retry") {
	case "true":
		v.again = true
	case "false":
		v.again = false
	}
	v.after = retryAfter(res.Header, time.Now)
	return v
}

func judgeStatus(status int) verdict {
	switch {
	case status < 400:
		return verdict{code: OK}
	case status == http.StatusTooManyRequests:
		return verdict{code: RateLimited, cause: CauseRateLimited, again: true}
	case status == 529:
		return verdict{code: Overloaded, cause: CauseOverloaded, again: true}
	case status == http.StatusConflict:
		return verdict{code: UpstreamError, cause: CauseConflict, again: true}
	case status == http.StatusRequestTimeout || status >= 500:
		return verdict{code: UpstreamError, cause: CauseStatus, again: true}
	}
	return verdict{code: Rejected, cause: CauseRejected}
}

// retryAfter reads the wait that an answer asks for: retry-after-ms, or Retry-After
// in seconds, whole or not, or as a date (RFC 9110, section 10.2.3). 0: it asks for
// none, or for something unreadable.
func retryAfter(h http.Header, now func() time.Time) time.Duration {
	if d := number(h.Get("Retry-After-Ms"), time.Millisecond); d > 0 {
		return d
	}
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, at.Sub(now()))
	}
	return number(v, time.Second)
}

func number(s string, unit time.Duration) time.Duration {
	f, err := strconv.ParseFloat(s, 64)
	if s == "" || err != nil || !(f > 0) {
		return 0
	}
	return time.Duration(min(f*float64(unit), math.MaxInt64/2))
}

// broke tells what an attempt came to that gave no answer, or lost it before any of
// it was relayed.
func (c *call) broke(a *answer, err error) verdict {
	if v, ended := c.ended(); ended {
		return v
	}
	if up := c.body.Broken(); up != nil {
		return verdict{code: uploadCode(up), cause: CauseClient, err: up}
	}
	if cause := context.Cause(a.ctx); errors.Is(cause, errFirstByte) || errors.Is(cause, errIdle) {
		return verdict{code: UpstreamTimeout, cause: CauseTimeout, again: true, err: cause}
	}
	if _, certificate := errors.AsType[*tls.CertificateVerificationError](err); certificate {
		return verdict{code: Unreachable, cause: CauseConnect, err: err} // it will not get better within seconds
	}
	if op, dialing := errors.AsType[*net.OpError](err); dialing && op.Op == "dial" {
		return verdict{code: Unreachable, cause: CauseConnect, again: true, err: err}
	}
	return verdict{code: Unreachable, cause: CauseBroken, again: true, err: err}
}

// ended reports whether the call is over from our side or the client's.
func (c *call) ended() (verdict, bool) {
	if c.ctx.Err() == nil {
		return verdict{}, false
	}
	if cause := context.Cause(c.ctx); errors.Is(cause, errStopping) {
		return verdict{code: Stopping, cause: CauseStopping, err: cause}, true
	}
	return verdict{code: ClientGone, cause: CauseClient, err: context.Cause(c.ctx)}, true
}

// lost tells what an answer came to that broke off after some of it was relayed.
func (c *call) lost(a *answer, err error) verdict {
	v, ended := c.ended()
	if given, ok := errors.AsType[*unmended](err); ok && !ended {
		return given.verdict
	}
	switch {
	case ended:
		return v
	case errors.Is(context.Cause(a.ctx), errIdle):
		return verdict{code: UpstreamStalled, cause: CauseStalled, err: errIdle}
	}
	return verdict{code: UpstreamCut, cause: CauseCut, err: err}
}

// connectionError reports whether err is of a connection, not of what was said
// over it.
func connectionError(err error) bool {
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, net.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// errPage says that something between here and Claude answered in Claude's name.
var errPage = errors.New("the answer is not one of the Claude API")

// isPage reports whether a good status came with what no message is: the page of a
// gateway, of a proxy or of a captive network.
func (a *answer) isPage(kind string, c *call) bool {
	if a.events || kind == "" || a.res.StatusCode >= 300 || c.out.Method != http.MethodPost {
		return false
	}
	return (c.shape.message || c.x.Route == routeCount) && !strings.EqualFold(kind, "application/json")
}

// speak makes of a failure that is not told in the API's words one that is: what
// stands in front of the API answers with pages of its own, which no SDK can read.
// Status (but for those that only Cloudflare knows), headers and request id stay.
func (c *call) speak(a *answer) {
	status := a.res.StatusCode
	if c.x.Route == routeOther || c.out.Method == http.MethodHead || status < 400 && !errors.Is(a.verdict.err, errPage) {
		return
	}
	text := a.ahead
	if !a.whole {
		text = nil
	}
	if plain, ok := words.Plain(text, a.res.Header.Get("Content-Encoding")); !ok {
		if mediaType(a.res.Header) == "application/json" {
			return // in an encoding that is not read here
		}
		text = nil
	} else if text = plain; a.whole && words.IsError(text) {
		return
	}
	status, kind := words.For(status)
	message := fmt.Sprintf("%s answered %d with what is no error of the Claude API", c.out.URL.Host, a.res.StatusCode)
	if said := words.Excerpt(text); said != "" {
		message += ": " + said
	}
	id := a.res.Header.Get("Request-Id")
	if id == "" {
		id = c.x.ID
		a.res.Header["Request-Id"] = []string{id}
	}
	for _, name := range [...]string{"Content-Encoding", "Content-Length", "Content-Language", "Etag", "Last-Modified", "Accept-Ranges", "Trailer"} {
		delete(a.res.Header, name)
	}
	a.res.Header["Content-Type"] = []string{"application/json"}
	a.res.StatusCode, a.res.Status, a.res.Trailer = status, "", nil
	a.ahead, a.whole = words.Error(kind, message, id), true
	a.res.ContentLength = int64(len(a.ahead))
	a.res.Header["Content-Length"] = []string{fmt.Sprint(len(a.ahead))}
}

// mediaType is what an answer says that it is, without parameters.
func mediaType(h http.Header) string {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(kind))
}
