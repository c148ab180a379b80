package claudetest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// A Fault is one way in which the real API fails. Its value is its name.
type Fault string

// Faults of the answer's head: any call may meet them.
const (
	None           Fault = ""
	Overloaded     Fault = "overloaded"      // 529 overloaded_error
	RateLimited    Fault = "rate_limited"    // 429 rate_limit_error with retry-after
	Internal       Fault = "internal"        // 500 api_error
	BadGateway     Fault = "bad_gateway"     // 502 with the HTML page of the CDN in front of the API
	GatewayTimeout Fault = "gateway_timeout" // 504 timeout_error
	OriginTimeout  Fault = "origin_timeout"  // 524 with the HTML page of the CDN
	Unavailable    Fault = "unavailable"     // 503 in plain text, of a load balancer
	Page           Fault = "page"            // 200 with an HTML page in place of the answer, as a captive proxy sends it
	Conflict       Fault = "conflict"        // 409 conflict_error
	RequestTimeout Fault = "request_timeout" // 408 timeout_error
	Reset          Fault = "reset"           // the connection is reset, no head was sent
	Hang           Fault = "hang"            // no head ever; lasts until the client leaves or the server closes
)

// Faults of the body. Truncated needs an answer in JSON or the results of a batch, the others a stream of a
// message; a call that they do not fit is answered well.
const (
	Truncated       Fault = "truncated"         // 200, but the connection is reset in the middle of it
	ErrorFirst      Fault = "error_first"       // 200, and the first event is an overloaded_error
	ErrorAfterStart Fault = "error_after_start" // an overloaded_error follows message_start
	ErrorMiddle     Fault = "error_middle"      // an overloaded_error after half of the deltas
	Cut             Fault = "cut"               // the connection is reset within an event, after half of the deltas
	CutBetween      Fault = "cut_between"       // the connection is reset between two events
	EndEarly        Fault = "end_early"         // the body ends as if all were well, but message_stop never came
	Stall           Fault = "stall"             // after half of the deltas nothing comes any more
)

// HTTPFaults returns the faults that a client can get over by calling again,
// without waiting for long: a fair mix for a FaultRate.
func HTTPFaults() []Fault {
	return []Fault{Overloaded, RateLimited, Internal, BadGateway, GatewayTimeout, Conflict, RequestTimeout, Reset, Truncated}
}

// StreamFaults returns the faults that strike after a stream's 200.
func StreamFaults() []Fault {
	return []Fault{ErrorFirst, ErrorAfterStart, ErrorMiddle, Cut, CutBetween, EndEarly, Stall}
}

// fits reports whether f can strike an answer of this kind.
func (f Fault) fits(k kind) bool {
	switch {
	case slices.Contains(StreamFaults(), f):
		return k == streamed
	case f == Truncated:
		return k == plain
	}
	return true
}

// kind is the shape of an answer.
type kind int

const (
	other    kind = iota // no body worth cutting
	plain                // JSON
	streamed             // the stream of a message
)

// draw picks the fault of request n: the next scripted one, or one by the seed. The
// same seed, rate, list and n give the same fault, whatever else happens.
func (s *Server) draw(n uint64, k kind) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.script) > 0 {
		f := s.script[0]
		s.script = s.script[1:]
		if f.fits(k) {
			return f
		}
		return None
	}
	rng := rand.New(rand.NewPCG(s.opt.Seed, n))
	if rng.Float64() >= s.rate {
		return None
	}
	fit := slices.DeleteFunc(slices.Clone(s.faults), func(f Fault) bool { return !f.fits(k) })
	if len(fit) == 0 {
		return None
	}
	return fit[rng.IntN(len(fit))]
}

// pause waits as long as an answer takes to begin; false means that the client has
// left or the server closes.
func (c *call) pause() bool {
	d := c.s.opt.Latency
	if d > 0 {
		d = time.Duration(float64(d) * (0.5 + rand.New(rand.NewPCG(c.s.opt.Seed+1, c.n)).Float64()))
	}
	return c.sleep(d)
}

func (c *call) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.r.Context().Done():
	case <-c.closing():
	}
	return false
}

// strike answers c with f if f is a fault of the head, and reports whether it did.
func (c *call) strike(f Fault) bool {
	switch f {
	case Overloaded:
		c.w.Header().Set("x-should-retry", "true")
		c.refuse(529, "overloaded_error", "Overloaded")
	case RateLimited:
		c.w.Header().Set("retry-after", c.s.opt.RetryAfter)
		c.refuse(429, "rate_limit_error", "This request would exceed your organization's rate limit of 4,000 requests per minute.")
	case Internal:
		c.refuse(500, "api_error", "Internal server error")
	case BadGateway:
		c.page(502, "502 Bad Gateway")
	case OriginTimeout:
		c.page(524, "524: A timeout occurred")
	case Page:
		c.page(200, "Sign in to continue")
	case Unavailable:
		h := c.w.Header()
		clear(h)
		h.Set("Content-Type", "text/plain")
		c.w.WriteHeader(503)
		_, _ = io.WriteString(c.w, "no healthy upstream")
	case GatewayTimeout:
		c.refuse(504, "timeout_error", "Request timed out")
	case Conflict:
		c.refuse(409, "conflict_error", "The request conflicts with the current state of the resource.")
	case RequestTimeout:
		c.refuse(408, "timeout_error", "Request timeout")
	case Reset:
		c.reset()
	case Hang:
		c.hang()
	default:
		return false
	}
	return true
}

// page answers with a page of HTML, without a header of the API.
func (c *call) page(status int, title string) {
	h := c.w.Header()
	clear(h)
	h.Set("Content-Type", "text/html; charset=UTF-8")
	h.Set("Server", "cloudflare")
	c.w.WriteHeader(status)
	_, _ = fmt.Fprintf(c.w, "<html>\r\n<head><title>%[1]s</title></head>\r\n<body><center><h1>%[1]s</h1></center><hr><center>cloudflare</center></body>\r\n</html>\r\n", title)
}

// hang waits until the client leaves or the server closes, then breaks off.
func (c *call) hang() {
	select {
	case <-c.r.Context().Done():
	case <-c.closing():
	}
	panic(http.ErrAbortHandler)
}

// reset breaks the connection off at once: with a TCP reset where it can be had.
func (c *call) reset() {
	if conn, _, err := http.NewResponseController(c.w).Hijack(); err == nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
	panic(http.ErrAbortHandler)
}

// truncate sends the first half of a JSON answer and breaks off.
func (c *call) truncate(status int, body []byte) {
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body[:len(body)/2])
	_ = http.NewResponseController(c.w).Flush()
	c.reset()
}
