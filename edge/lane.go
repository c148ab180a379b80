package edge

import (
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

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
	code   Code    // what the current try came to
	err    error
	cause  error // of the last try that failed
}

func newLane(s *Server) *lane {
	l := &lane{s: s}
	l.Request.Header = l.header
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
	l.target, l.code, l.err, l.cause, l.up = nil, OK, nil, nil, nil
	cfg := &s.policy.Load().cfg
	l.out = reply{w: w, rc: http.NewResponseController(w), patience: cfg.Timeouts.Write, x: x, h2: hr.ProtoMajor > 1}
	r := &l.Request
	r.Method, r.Host, r.Path, r.Proto = hr.Method, hr.Host, hr.URL.Path, hr.Proto
	if hr.URL.Opaque != "" {
		r.Path = hr.URL.Opaque // GET a:b, which admit refuses
	}
	r.Secure, r.Length, r.ID, r.x = hr.TLS != nil, hr.ContentLength, "", x
	r.Client, r.Trusted = netip.Addr{}, false
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
	l.hr, l.up, l.target, l.err, l.cause = nil, nil, nil, nil, nil
	l.out = reply{}
	l.Request.x = nil
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
}

// Unwrap lets http.ResponseController reach hijacking.
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
	o.move()
	n, err := o.w.Write(b)
	o.x.BytesOut += int64(n)
	o.pending = true
	o.settle(err)
	return n, err
}

// FlushError is what http.ResponseController.Flush calls.
func (o *reply) FlushError() error {
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
