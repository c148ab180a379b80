// Package claudetest is a strict, faithful fake of the Claude API
// (https://docs.claude.com/en/api/messages): it checks requests as the real one
// does, answers messages, streams, token counts, models and batches in the real
// shapes, and fails in the real ways, by a script or by a seeded schedule.
//
//	fake := claudetest.New(claudetest.Options{Seed: 1, FaultRate: 0.05})
//	url := fake.Start(t) // http://127.0.0.1:…, for the SDK's base URL
//
// Anyone may import it, tests and demonstrations alike; it knows nothing of the
// plane it was made to test.
package claudetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options say how a [Server] behaves. The zero value answers everything well, at
// once.
type Options struct {
	// Seed makes the faults, the latencies and the texts; the same seed makes the
	// same ones for the same order of requests.
	Seed uint64
	// FaultRate is the share of requests that meet one of Faults, from 0 to 1.
	FaultRate float64
	// Faults are what FaultRate draws from; nil: HTTPFaults().
	Faults []Fault
	// RetryAfter is the retry-after header of RateLimited; empty: "1".
	RetryAfter string
	// Latency passes before an answer begins, give or take half of it.
	Latency time.Duration
	// EventDelay passes before each event of a stream.
	EventDelay time.Duration
	// Keys are the API keys that are let in; nil: any that is not empty.
	Keys []string
	// Models are what /v1/models lists; nil: a few current ones. Messages may name
	// any model that begins with "claude-".
	Models []string
	// Reply gives the text that answers a message with this request body; nil: a
	// text made by the seed.
	Reply func(body []byte) string
	// Answer gives the whole message that answers this request body, as JSON in the
	// API's shape, which is told as it is or in pieces, as a stream; nil: the server
	// makes it. It is asked again when a client asks for the rest of a stream.
	Answer func(body []byte) []byte
	// Repeat is how many bytes of what was said an answer that was asked to go on says
	// again, as models do at times.
	Repeat int
	// Gzip compresses answers for clients that accept it.
	Gzip bool
	// Keep is how many requests [Server.Requests] remembers, the last ones; 0: none.
	Keep int
}

// A Server is the fake. It is an [http.Handler]; Start or Open put it on a port.
// All methods may be called from many goroutines at once.
type Server struct {
	opt Options

	mu       sync.Mutex
	rate     float64
	faults   []Fault
	script   []Fault
	counts   Counts
	requests []Request
	batches  map[string]*batch
	cached   map[[32]byte]bool // prompt prefixes with cache_control that were seen
	seen     uint64
	window   time.Time // the minute that the rate limit headers speak of
	inWindow int
	door     *door
}

// door is what one Open opened.
type door struct {
	srv    *http.Server
	addr   string
	closed chan struct{} // closed when Close begins
	done   chan struct{} // closed when serving has ended
	calls  sync.WaitGroup
}

// Counts is what a server has done so far.
type Counts struct {
	Requests int           // all, also those that were refused or met a fault
	Messages int           // messages answered whole, streams among them
	Streams  int           // messages answered as streams, to the end
	Refused  int           // requests that were wrong: 4xx that no fault made
	Faults   map[Fault]int // by kind
	InFlight int
	// InputTokens and OutputTokens are what the answered messages would have cost.
	InputTokens, OutputTokens int64
}

// A Request is one that came in.
type Request struct {
	N      uint64 // counted from 1
	Method string
	URI    string // as sent
	Header http.Header
	Body   []byte
	Fault  Fault
}

// New returns a server that is not listening yet.
func New(opt Options) *Server {
	if opt.RetryAfter == "" {
		opt.RetryAfter = "1"
	}
	if opt.Models == nil {
		opt.Models = []string{"claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5-20251001"}
	}
	s := &Server{opt: opt, batches: map[string]*batch{}, cached: map[[32]byte]bool{}}
	s.SetFaults(opt.FaultRate, opt.Faults...)
	s.counts.Faults = map[Fault]int{}
	return s
}

// SetFaults changes the share of requests that fail from now on, and how; no
// faults given: HTTPFaults().
func (s *Server) SetFaults(rate float64, faults ...Fault) {
	if len(faults) == 0 {
		faults = HTTPFaults()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate, s.faults = rate, slices.Clone(faults)
}

// Next scripts the faults of the next requests, one each, before the schedule has
// its say again; None lets one pass. A fault that does not fit its request is used
// up without effect.
func (s *Server) Next(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = append(s.script, faults...)
}

// Counts returns what has been done so far.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	c.Faults = map[Fault]int{}
	maps.Copy(c.Faults, s.counts.Faults)
	return c
}

// Requests returns the last requests, oldest first, as many as Options.Keep says.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Open listens on addr ("127.0.0.1:0" for any free port) and serves until Close. A
// server that was closed may be opened again, at the same address too.
func (s *Server) Open(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for the fake Claude API: %w", err)
	}
	return s.Serve(ln)
}

// Serve is Open on a listener that is there already. It returns at once.
func (s *Server) Serve(ln net.Listener) error {
	d := &door{addr: ln.Addr().String(), closed: make(chan struct{}), done: make(chan struct{})}
	d.srv = &http.Server{
		Handler:           d.counted(s),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(context.Background(), doorKey{}, d) },
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.door != nil {
		_ = ln.Close()
		return errors.New("the fake Claude API is open already at " + s.door.addr)
	}
	s.door = d
	go func() {
		defer close(d.done)
		_ = d.srv.Serve(ln) // ends with Close
	}()
	return nil
}

type doorKey struct{}

// counted lets Close wait for the calls that are still being answered.
func (d *door) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.calls.Add(1)
		defer d.calls.Done()
		h.ServeHTTP(w, r)
	})
}

// Close stops listening, breaks off every connection, and returns when all has
// ended, as if the API's machine had been switched off. Close of a server that is
// not open does nothing.
func (s *Server) Close() {
	s.mu.Lock()
	d := s.door
	s.door = nil
	s.mu.Unlock()
	if d == nil {
		return
	}
	close(d.closed)
	_ = d.srv.Close()
	<-d.done
	d.calls.Wait()
}

// URL returns the base URL, or "" when the server is not open.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.door == nil {
		return ""
	}
	return "http://" + s.door.addr
}

// TB is the part of testing.TB that Start needs.
type TB interface {
	Helper()
	Cleanup(func())
	Fatal(args ...any)
}

// Start opens the server on a free port for the length of a test and returns its
// base URL.
func (s *Server) Start(t TB) string {
	t.Helper()
	if err := s.Open("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s.URL()
}

// closing is closed when the server that took this call begins to close.
func (c *call) closing() <-chan struct{} {
	if d, ok := c.r.Context().Value(doorKey{}).(*door); ok {
		return d.closed
	}
	return nil // served by somebody else's http.Server, which has ways of its own
}

// maxRead bounds what is read of any request: the files API's limit.
const maxRead = 500 << 20

// A call is one request on its way through the fake.
type call struct {
	s    *Server
	w    http.ResponseWriter
	r    *http.Request
	n    uint64
	id   string // request-id
	path []string
	body []byte
}

// ServeHTTP answers as the API does.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{s: s, w: w, r: r, path: strings.Split(strings.Trim(r.URL.Path, "/"), "/")}
	s.mu.Lock()
	s.seen++
	c.n = s.seen
	s.counts.Requests++
	s.counts.InFlight++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.counts.InFlight--
		s.mu.Unlock()
	}()
	rng := rand.New(rand.NewPCG(s.opt.Seed, c.n))
	c.id = "req_" + token(rng, 24)
	c.heads()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRead))
	if err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			c.wrong(413, "request_too_large", "Request exceeds the maximum size")
		}
		return
	}
	c.body = body
	fault := s.draw(c.n, c.kind())
	c.note(fault)
	if !c.pause() || c.strike(fault) {
		return
	}
	if c.enter() {
		c.dispatch(fault)
	}
}

// kind tells which faults fit this request.
func (c *call) kind() kind {
	var ask struct {
		Stream bool `json:"stream"`
	}
	switch {
	case strings.HasPrefix(c.r.URL.Path, "/v1/echo"):
		return other
	case c.r.URL.Path == "/v1/messages" && json.Unmarshal(c.body, &ask) == nil && ask.Stream:
		return streamed
	}
	return plain
}

// note counts the request and remembers it.
func (c *call) note(f Fault) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if f != None {
		s.counts.Faults[f]++
	}
	if s.opt.Keep == 0 {
		return
	}
	if len(s.requests) == s.opt.Keep {
		s.requests = slices.Delete(s.requests, 0, 1)
	}
	s.requests = append(s.requests, Request{
		N: c.n, Method: c.r.Method, URI: c.r.RequestURI, Header: c.r.Header.Clone(), Body: c.body, Fault: f,
	})
}

// heads sets what every answer of the API carries.
func (c *call) heads() {
	const limit = 4000
	s, now := c.s, time.Now()
	s.mu.Lock()
	if now.Sub(s.window) >= time.Minute {
		s.window, s.inWindow = now, 0
	}
	s.inWindow++
	left, reset := max(0, limit-s.inWindow), s.window.Add(time.Minute)
	s.mu.Unlock()
	h := c.w.Header()
	h.Set("request-id", c.id)
	h.Set("anthropic-organization-id", "01234567-89ab-cdef-0123-456789abcdef")
	h.Set("anthropic-ratelimit-requests-limit", strconv.Itoa(limit))
	h.Set("anthropic-ratelimit-requests-remaining", strconv.Itoa(left))
	h.Set("anthropic-ratelimit-requests-reset", reset.UTC().Format(time.RFC3339))
	for _, of := range []string{"tokens", "input-tokens", "output-tokens"} {
		h.Set("anthropic-ratelimit-"+of+"-limit", "400000")
		h.Set("anthropic-ratelimit-"+of+"-remaining", strconv.Itoa(left*100/1000*1000))
		h.Set("anthropic-ratelimit-"+of+"-reset", reset.UTC().Format(time.RFC3339))
	}
	h.Set("cf-cache-status", "DYNAMIC")
}

// The API's versions: the one that shaped it for three years, and the one that the
// current SDKs send (https://platform.claude.com/docs/en/api/versioning).
const (
	before  = "2023-06-01"
	current = "2026-10-21"
)

// enter checks who asks, and in which version.
func (c *call) enter() bool {
	key := c.r.Header.Get("x-api-key")
	if scheme, token, _ := strings.Cut(c.r.Header.Get("Authorization"), " "); key == "" && strings.EqualFold(scheme, "bearer") {
		key = token
	}
	switch version := c.r.Header.Get("anthropic-version"); {
	case key == "":
		c.wrong(401, "authentication_error", "x-api-key header is required")
	case c.s.opt.Keys != nil && !slices.Contains(c.s.opt.Keys, key):
		c.wrong(401, "authentication_error", "invalid x-api-key")
	case version == "":
		c.wrong(400, "invalid_request_error", "anthropic-version: header is required")
	case version != before && version != current:
		c.wrong(400, "invalid_request_error", fmt.Sprintf("anthropic-version: %q is not a valid version", version))
	default:
		return true
	}
	return false
}

// refuse answers with an error in the API's shape.
func (c *call) refuse(status int, kind, message string) {
	c.json(status, map[string]any{
		"type":       "error",
		"error":      map[string]string{"type": kind, "message": message},
		"request_id": c.id,
	}, None)
}

// wrong is refuse for what the client did wrong.
func (c *call) wrong(status int, kind, message string) {
	c.s.mu.Lock()
	c.s.counts.Refused++
	c.s.mu.Unlock()
	c.refuse(status, kind, message)
}

// json sends v, or its first half if f is Truncated.
func (c *call) json(status int, v any, f Fault) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("claudetest: an answer of ours is no JSON: " + err.Error())
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	if c.zips() {
		h.Set("Content-Encoding", "gzip")
		body = zipped(body)
	}
	if f == Truncated {
		c.truncate(status, body)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body) // a client that has left has nobody to tell
}

// zips reports whether this answer is to be compressed.
func (c *call) zips() bool {
	return c.s.opt.Gzip && strings.Contains(c.r.Header.Get("Accept-Encoding"), "gzip")
}

func zipped(p []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(p) // into memory: cannot fail
	_ = z.Close()
	return b.Bytes()
}

// token returns n characters as the API's ids have them.
func token(rng *rand.Rand, n int) string {
	b := make([]byte, (n+1)/2)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return hex.EncodeToString(b)[:n]
}
