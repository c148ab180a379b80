// Package events carries event streams (text/event-stream) from the app to a
// client: it ends one exactly between two events, so that the client comes back
// with the id of the last and misses nothing, and lets a silent one be heard. The
// edge alone uses it.
package events

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// heartbeat is a comment, which clients skip.
var heartbeat = []byte(": keep-alive\n\n")

// Options is what a Stream needs to know.
type Options struct {
	// Write sends bytes to the client at once. It is called only while a Read
	// waits for the app.
	Write func([]byte) error
	// Every is the silence after which the client gets a comment; 0: never.
	Every time.Duration
	// Closed streams may be ended; others go on until the app ends them.
	Closes bool
	// Resumes tells that a stream ends early only if its client can go on where
	// it was: Resumable, or an event had an id.
	Resumes   bool
	Resumable bool
}

// Stream is an answer's body. Read and Close are for the one who copies it, the
// rest for any goroutine.
type Stream struct {
	src  io.ReadCloser
	opts Options

	mu      sync.Mutex
	at      scanner
	reading bool // a Read waits for the app
	timer   *time.Timer
	due     bool // it is to end at the next boundary, also the one that it is at
	last    bool // also if the client can't go on where it was
	ended   bool // it was ended between two events
	closed  bool
	lost    error // the client is gone

	soon atomic.Bool // it is to end after the next event
}

// New wraps src.
func New(src io.ReadCloser, o Options) *Stream {
	s := &Stream{src: src, opts: o}
	s.at.id = o.Resumable
	return s
}

// Read passes on what the app says, up to the event at which the stream ends.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	if s.ended || s.due && s.may() {
		s.ended = true
		s.mu.Unlock()
		return 0, io.EOF
	}
	s.reading = true
	s.listen()
	s.mu.Unlock()

	n, err := s.src.Read(p)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading = false
	if s.timer != nil {
		s.timer.Stop()
	}
	switch {
	case s.lost != nil:
		return 0, s.lost
	case s.ended: // what came since then is the next one's
		return 0, io.EOF
	}
	kept := 0
	for ending := s.due || s.soon.Load(); kept < n; {
		kept += s.at.feed(p[kept:n], ending)
		if ending && s.may() {
			s.ended = true
			return kept, io.EOF
		}
	}
	return n, err
}

// may reports whether the stream can end here. s.mu is held.
func (s *Stream) may() bool {
	return s.opts.Closes && s.at.between() && (!s.opts.Resumes || s.at.id || s.last)
}

// Close ends the app's side.
func (s *Stream) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	return s.src.Close()
}

// Soon ends the stream right after the next event.
func (s *Stream) Soon() { s.soon.Store(true) }

// Farewell ends the stream as soon as no event is under way.
func (s *Stream) Farewell() { s.end(false) }

// Last ends it even if the client can't go on where it was.
func (s *Stream) Last() { s.end(true) }

func (s *Stream) end(last bool) {
	s.mu.Lock()
	s.due, s.last = true, s.last || last
	now := s.reading && !s.ended && !s.closed && s.may()
	if now {
		s.ended = true
	}
	s.mu.Unlock()
	if now {
		_ = s.src.Close() // lets the Read return
	}
}

// listen begins to wait for silence. s.mu is held.
func (s *Stream) listen() {
	switch {
	case s.opts.Every <= 0:
	case s.timer == nil:
		s.timer = time.AfterFunc(s.opts.Every, s.beat)
	default:
		s.timer.Reset(s.opts.Every)
	}
}

// beat sends a comment, if the app is silent between two events.
func (s *Stream) beat() {
	s.mu.Lock()
	if !s.reading || s.ended || s.closed {
		s.mu.Unlock()
		return
	}
	if s.at.between() {
		s.lost = s.opts.Write(heartbeat)
	}
	gone := s.lost != nil
	if !gone {
		s.timer.Reset(s.opts.Every)
	}
	s.mu.Unlock()
	if gone {
		_ = s.src.Close()
	}
}
