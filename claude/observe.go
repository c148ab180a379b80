package claude

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/claude/internal/sse"
	"mainstay.dev/mainstay/telemetry"
)

// An observer reads what passes by: model, usage, how it ended. It changes nothing,
// and what it can't read it leaves alone: an encoding other than gzip, JSON beyond
// mostWhole.
type observer struct {
	gen     *telemetry.GenAI
	watches bool // the answer is the stream of a generation
	plain   bool // its bytes are the events themselves
	zipped  *unzipper
	events  sse.Scanner
	found   func(sse.Event)
	started bool  // message_start has come
	stopped bool  // message_stop has come
	failed  bool  // an error event has come
	told    bool  // what the answer came to has been told
	shown   int64 // bytes of deltas
	hour    int64 // tokens written to the cache for an hour
	batch   bool  // it is billed as part of a batch
}

// begin looks at the head of the answer that will be relayed.
func (o *observer) begin(a *answer, s shape, gen *telemetry.GenAI) {
	o.gen = gen
	if !a.events {
		return
	}
	encoding := a.res.Header.Get("Content-Encoding")
	o.plain = encoding == "" || strings.EqualFold(encoding, "identity")
	if o.watches = s.message; o.watches {
		gen.Stream = true
		o.found = o.event
	}
	if strings.EqualFold(encoding, "gzip") && s.message {
		o.zipped = unzip(func(p []byte) { o.events.Feed(p, o.found) })
	}
}

// feed sees the next bytes of a stream; it returns how many of them lead up to the
// end of an event, where that can be told.
func (o *observer) feed(p []byte) (whole int) {
	switch {
	case o.plain:
		return o.events.Feed(p, o.found)
	case o.zipped != nil:
		o.zipped.feed(p)
	}
	return 0
}

// end waits until all that was fed has been read. It may be called again.
func (o *observer) end() {
	if o.zipped != nil {
		o.zipped.end()
	}
}

// estimate makes up for an answer that was cut before it told what it came to: at 4
// bytes a token.
func (o *observer) estimate() {
	if o.gen != nil && o.started && !o.told {
		o.gen.OutputTokens = max(o.gen.OutputTokens, (o.shown+3)/4)
	}
}

// unfinished reports that a generation has begun and not ended, as far as that can
// be told.
func (o *observer) unfinished() bool { return o.started && !o.stopped && !o.failed }

func (o *observer) event(e sse.Event) {
	switch string(e.Name) {
	case "message_start":
		o.started = true
	case "message_stop":
		o.stopped = true
		return
	case "error":
		o.failed = true
		o.gen.ErrorType = "error" // unless it says which
	case "message_delta":
		o.told = true
	case "content_block_delta":
		const frame = 80 // bytes of an event beside what it says
		o.shown += max(int64(len(e.Data))-frame, 1)
		return
	default:
		return
	}
	o.read(e.Data)
}

// read notes what a message, an event or an error tells. Counts in a stream are
// cumulative: the last one told is right, and one not told stays as it was.
func (o *observer) read(object []byte) {
	peek.Members(object, func(key, value []byte) {
		switch string(key) {
		case "message", "delta": // of message_start, of message_delta
			o.read(value)
		case "usage":
			o.usage(value)
		case "error":
			o.failure(value)
		case "model":
			o.word(&o.gen.Model, value)
		case "id":
			o.word(&o.gen.AnswerID, value)
		case "stop_reason":
			o.word(&o.gen.StopReason, value)
		}
	})
}

func (o *observer) usage(object []byte) {
	peek.Members(object, func(key, value []byte) {
		switch string(key) {
		case "service_tier":
			o.batch = peek.Text(value) == "batch"
		case "cache_creation":
			o.usage(value)
		}
		n, ok := peek.Count(value)
		if !ok {
			return // null, or something new
		}
		switch string(key) {
		case "input_tokens":
			o.gen.InputTokens = n
		case "cache_creation_input_tokens":
			o.gen.CacheWriteTokens = n
		case "ephemeral_1h_input_tokens":
			o.hour = n
		case "cache_read_input_tokens":
			o.gen.CacheReadTokens = n
		case "output_tokens":
			o.gen.OutputTokens = n
		}
	})
}

func (o *observer) failure(object []byte) {
	peek.Members(object, func(key, value []byte) {
		if string(key) == "type" {
			o.word(&o.gen.ErrorType, value)
		}
	})
}

// word notes a name, if it is one.
func (o *observer) word(to *string, value []byte) {
	const most = 128
	if s := peek.Text(value); s != "" && len(s) <= most {
		*to = s
	}
}

// whole reads an answer in JSON that is there as a whole.
func (o *observer) whole(body []byte, h http.Header) {
	switch encoding := h.Get("Content-Encoding"); {
	case encoding == "" || strings.EqualFold(encoding, "identity"):
	case strings.EqualFold(encoding, "gzip"):
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return
		}
		if body, err = io.ReadAll(io.LimitReader(z, mostWhole)); err != nil {
			return
		}
	default:
		return
	}
	o.read(body)
}

// An unzipper gives the plain bytes of a compressed stream, as far as they can be
// had, to see.
type unzipper struct {
	w    *io.PipeWriter
	done chan struct{}
}

func unzip(see func([]byte)) *unzipper {
	r, w := io.Pipe()
	u := &unzipper{w: w, done: make(chan struct{})}
	go func() {
		defer close(u.done)
		if z, err := gzip.NewReader(r); err == nil {
			buf := make([]byte, 4<<10)
			for n := 0; err == nil; {
				n, err = z.Read(buf)
				see(buf[:n])
			}
		}
		_, _ = io.Copy(io.Discard, r) // what can't be read must not hold up the relay
	}()
	return u
}

func (u *unzipper) feed(p []byte) { _, _ = u.w.Write(p) } // fails only after end

func (u *unzipper) end() {
	_ = u.w.Close()
	<-u.done
}

// A desk is where a connection leaves the call that it has answered, to be written down
// when the client has all of the answer and need not wait for it any more.
type desk struct{ last *call }

// desks are those of all connections.
type desks struct{ of sync.Map }

// open gives a connection its desk.
func (ds *desks) open(ctx context.Context, conn net.Conn) context.Context {
	d := new(desk)
	ds.of.Store(conn, d)
	return context.WithValue(ctx, desk{}, d)
}

// turn is told by net/http, on the connection's own goroutine, when an answer has gone
// out, and when the connection has ended.
func (ds *desks) turn(conn net.Conn, to http.ConnState) {
	if to != http.StateIdle && to != http.StateClosed {
		return
	}
	v, ok := ds.of.Load(conn)
	if !ok {
		return
	}
	if to == http.StateClosed {
		ds.of.Delete(conn)
	}
	if d := v.(*desk); d.last != nil {
		d.last.conclude()
		d.last.writeDown()
		d.last = nil
	}
}
