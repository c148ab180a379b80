package edge

import (
	"bufio"
	"context"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/capacity"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/telemetry"
)

// A Request is all that the steps know of a request. They read it and nothing
// else, so that the same steps serve every lane: net/http's today, one of our own
// for HTTP/1.1 later. Only serve.go's adapter and forward.go know the lane.
//
// Its strings are valid until the request is recorded.
type Request struct {
	Method string
	Host   string
	Path   string
	Proto  string
	Secure bool  // it came over TLS
	Length int64 // of the body; -1: not told, 0: none

	Peer    netip.Addr // the other end of the connection
	Trusted bool       // Peer is a trusted proxy
	Client  netip.Addr // the address of whoever is asking
	Who     identity.Who
	ID      string

	// Header returns a field's values joined by commas, or "".
	Header func(name string) string
	// HeaderSize is the size of the request line and all fields.
	HeaderSize int

	// What claim found out for the steps after it.
	replay bool   // sending it twice does what sending it once does
	spare  bool   // another target could take it
	held   bool   // it waited while the traffic was held
	probe  bool   // it finds out whether an ejected target is back
	secret string // the header that asked for the preview; the app is not shown it
	pin    string // the value of the sticky cookie that the answer is to set
	mirror *mirror

	verdict limits.Verdict // what the rate limits say

	cert *x509.Certificate // the client's, verified; nil: none
	x    *telemetry.Exchange
}

// lane carries one request through net/http: it shows the request to the steps as
// a [Request], and is the reverse proxy's transport, error handler and writer.
// Lanes are pooled; all of a lane's closures are bound once.
type lane struct {
	Request
	s     *Server
	hr    *http.Request
	out   reply
	up    *upload // nil without a body
	proxy httputil.ReverseProxy

	target *target // of the current try
	begun  bool    // its answer is being passed on
	conn   *patient
	sent   int64 // what conn had sent before this request
	stale  bool  // conn had served others before
	cancel context.CancelCauseFunc
	code   Code // what the current try came to
	err    error
	why    Code  // what the last try that was given up came to
	cause  error // of that

	keep    keeping       // what the answer is kept for, if it may be
	kept    Code          // why the answer is one that was kept; empty: it is not
	failure int           // the app's own status, in whose place that is; 0: it gave none
	pass    capacity.Pass // the request's place among those that the app is given
	took    time.Duration // of the app to begin its answer
	part    func()        // takes its tunnel or stream off the lists; nil: there is none
	gotConn func(httptrace.GotConnInfo)
	getBody func() (io.ReadCloser, error)
}

func newLane(s *Server) *lane {
	l := &lane{s: s}
	l.Request.Header = l.header
	l.gotConn, l.getBody = l.connected, l.body
	l.proxy = httputil.ReverseProxy{
		Rewrite:        l.rewrite,
		Transport:      l,
		ModifyResponse: l.answered,
		ErrorHandler:   l.failed,
		BufferPool:     buffers,
		ErrorLog:       discardLog,
	}
	return l
}

// adapt fills a lane from net/http's request.
func (s *Server) adapt(w http.ResponseWriter, hr *http.Request, x *telemetry.Exchange) *lane {
	l := s.lanes.Get().(*lane)
	l.hr = hr
	l.target, l.code, l.err, l.cause, l.why, l.up = nil, OK, nil, nil, "", nil
	l.pass, l.took = capacity.Pass{}, 0
	l.kept, l.failure = "", 0
	cfg := &s.policy.Load().cfg
	l.out = reply{w: w, rc: http.NewResponseController(w), patience: cfg.Timeouts.Write, x: x, h2: hr.ProtoMajor > 1}
	r := &l.Request
	r.Method, r.Host, r.Path, r.Proto = hr.Method, hr.Host, hr.URL.Path, hr.Proto
	if hr.URL.Opaque != "" {
		r.Path = hr.URL.Opaque // GET a:b, which admit refuses
	}
	r.Secure, r.Length, r.ID, r.x = hr.TLS != nil, hr.ContentLength, "", x
	r.Client, r.Trusted, r.Who, r.cert = netip.Addr{}, false, identity.Who{}, nil
	if hr.TLS != nil && len(hr.TLS.VerifiedChains) > 0 {
		r.cert = hr.TLS.VerifiedChains[0][0]
	}
	r.verdict = limits.Verdict{}
	r.held = false
	r.replay, r.spare, r.probe, r.secret, r.pin, r.mirror = false, false, false, "", "", nil
	peer, _ := netip.ParseAddrPort(hr.RemoteAddr)
	r.Peer = peer.Addr().Unmap().WithZone("")
	r.HeaderSize = headerSize(hr)
	x.HTTP.Method, x.HTTP.Host, x.HTTP.Path, x.HTTP.Proto = r.Method, r.Host, r.Path, r.Proto
	if x.HTTP.Scheme = "http"; r.Secure {
		x.HTTP.Scheme = "https"
	}
	if hr.Body != nil && hr.ContentLength != 0 { // HTTP/2 has a Body where there is none
		l.up = &upload{src: hr.Body, rc: l.out.rc, patience: cfg.Timeouts.Read, limit: int64(cfg.Body), h1: hr.ProtoMajor == 1, trailer: hr.Trailer}
		l.out.up = l.up
		if hr.ProtoMajor == 1 {
			// Lets an app answer while it still reads; without it net/http/1.1 would
			// swallow the rest of the body before the first byte of the answer.
			_ = l.out.rc.EnableFullDuplex()
		}
	}
	return l
}

// gather finds out whether the request may be sent twice (RFC 9110, 9.2.2), and
// reads a small body of such a one whole, unless the client waits to be told
// whether to send it. Other bodies pass as they come, so that the app may answer
// before their end; of one whose length nobody told the beginning is kept.
func (l *lane) gather() Code {
	switch l.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		l.replay = true
	default:
		l.replay = len(l.hr.Header["Idempotency-Key"]) > 0
	}
	if l.up == nil || !l.replay {
		return OK
	}
	switch {
	case l.Length > maxReplay || len(l.hr.Header["Expect"]) > 0:
		l.replay = false
	case l.Length < 0:
		l.up.tape = &tape{up: l.up}
	default:
		return l.up.gather(l.Length)
	}
	return OK
}

func (l *lane) header(name string) string {
	switch v := l.hr.Header[http.CanonicalHeaderKey(name)]; len(v) {
	case 0:
		return ""
	case 1:
		return v[0]
	default:
		return strings.Join(v, ",")
	}
}

// uri is what was asked for, as the target is asked for it. forced: it ends with a ?.
func (l *lane) uri() (path, query string, forced bool) {
	return l.hr.URL.EscapedPath(), l.hr.URL.RawQuery, l.hr.URL.ForceQuery
}

func headerSize(hr *http.Request) int {
	n := len(hr.Method) + len(hr.RequestURI) + len(hr.Host) + 32
	for name, values := range hr.Header {
		for _, v := range values {
			n += len(name) + len(v) + 4
		}
	}
	return n
}

// release returns the lane to the pool. Nothing may refer to it any more: the
// upload, which net/http's transport may still hold, does not.
func (l *lane) release() {
	if l.part != nil {
		l.part()
		l.part = nil
	}
	l.hr, l.up, l.target, l.err, l.cause, l.conn, l.mirror = nil, nil, nil, nil, nil, nil, nil
	l.out = reply{}
	if l.keep.on {
		l.keep = keeping{}
	}
	l.Request.x, l.verdict = nil, limits.Verdict{}
	l.s.lanes.Put(l)
}

// bufferPool lends the buffers with which bodies are copied.
type bufferPool struct{ p sync.Pool }

var buffers = &bufferPool{sync.Pool{New: func() any { return new([32 << 10]byte) }}}

func (b *bufferPool) Get() []byte  { return b.p.Get().(*[32 << 10]byte)[:] }
func (b *bufferPool) Put(x []byte) { b.p.Put((*[32 << 10]byte)(x)) }

// reply writes the answer, moves the write deadline along with it and counts.
type reply struct {
	w        http.ResponseWriter
	rc       *http.ResponseController
	patience time.Duration
	x        *telemetry.Exchange
	up       *upload
	moved    time.Time // when the deadline was last moved
	began    bool      // a final header was written
	lost     bool      // a write failed: the client is gone or too slow
	h2       bool
	pending  bool // written, but not flushed
	tunnel   func(net.Conn) net.Conn
	mu       sync.Mutex // an event stream is flushed, and told of silence, by others too
}

// Hijack lets a tunnel begin.
func (o *reply) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := o.rc.Hijack()
	if err == nil && o.tunnel != nil {
		c = o.tunnel(c)
	}
	return c, rw, err
}

// Unwrap lets http.ResponseController reach deadlines.
func (o *reply) Unwrap() http.ResponseWriter { return o.w }

func (o *reply) Header() http.Header { return o.w.Header() }

func (o *reply) WriteHeader(status int) {
	if status < 200 {
		if o.x.HTTP.Proto != "HTTP/1.0" { // RFC 9110, 15.2: which knows none of them
			o.w.WriteHeader(status)
		}
		return
	}
	o.x.HTTP.Status = status
	if !o.h2 {
		o.move()
		if o.up.rest() {
			// Its rest must not be taken for the next request.
			set(o.w.Header(), "Connection", "close")
		}
	}
	o.w.WriteHeader(status)
	o.began = true
}

func (o *reply) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.write(b)
}

// tell sends b at once.
func (o *reply) tell(b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := o.write(b); err != nil {
		return err
	}
	return o.flush()
}

func (o *reply) write(b []byte) (int, error) {
	o.move()
	n, err := o.w.Write(b)
	o.x.BytesOut += int64(n)
	o.pending = true
	o.settle(err)
	return n, err
}

// FlushError is what http.ResponseController.Flush calls.
func (o *reply) FlushError() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.flush()
}

func (o *reply) flush() error {
	o.move()
	err := o.rc.Flush()
	o.pending = false
	o.settle(err)
	return err
}

// move gives the client another spell of patience. The clock is not touched for
// every small piece: a deadline that is a quarter used is good enough.
func (o *reply) move() {
	now := time.Now()
	if !o.h2 && now.Sub(o.moved) < o.patience/4 {
		return
	}
	o.moved = now
	_ = o.rc.SetWriteDeadline(now.Add(o.patience)) // a writer without deadlines (a test's) has none to move
}

// settle ends a write. HTTP/2 resets a stream when its deadline passes, also one
// on which nothing is being written, so none may stand while the app is silent.
func (o *reply) settle(err error) {
	o.lost = o.lost || err != nil
	if o.h2 {
		_ = o.rc.SetWriteDeadline(time.Time{})
	}
}

// end sends what HTTP/2 has kept back while there is a deadline: net/http would
// wait for the client's window without one.
func (o *reply) end() {
	if o.h2 && o.pending {
		_ = o.FlushError()
	}
}
