// Package observe reads what an answer of the Claude API tells of itself while it passes
// by: model, usage, how it ended. It changes nothing. Only the Claude plane may import it.
package observe

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"strings"

	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/claude/internal/sse"
	"mainstay.dev/mainstay/telemetry"
)

// MostWhole is the largest JSON answer that is read.
const MostWhole = 1 << 20

// An Observer reads what passes by: model, usage, how it ended. It changes nothing,
// and what it can't read it leaves alone: an encoding other than gzip, JSON beyond
// MostWhole.
type Observer struct {
	gen     *telemetry.GenAI
	watches bool // the answer is the stream of a generation
	Plain   bool // its bytes are the events themselves
	zipped  *unzipper
	events  sse.Scanner
	found   func(sse.Event)
	passing func([]byte) // is told all that passes; nil: it is not wanted
	started bool         // message_start has come
	Stopped bool         // message_stop has come
	Failed  bool         // an error event has come
	told    bool         // what the answer came to has been told
	shown   int64        // bytes of deltas
	Hour    int64        // tokens written to the cache for an hour
	Batch   bool         // it is billed as part of a batch
	Fast    bool         // it was given in fast mode

	Searches int64 // of the web, by the API's own tool
}

// Begin looks at the head of the answer that will be relayed.
// events: it is a stream of events; message: it is a generation.
func (o *Observer) Begin(h http.Header, events, message bool, gen *telemetry.GenAI) {
	o.gen = gen
	if !events {
		return
	}
	encoding := h.Get("Content-Encoding")
	o.Plain = encoding == "" || strings.EqualFold(encoding, "identity")
	if o.watches = message; o.watches {
		gen.Stream = true
		o.found = o.event
	}
	if strings.EqualFold(encoding, "gzip") && message {
		o.zipped = unzip(func(p []byte) { o.events.Feed(p, o.found) })
	}
}

// Through has see told all that passes from now on, decompressed, in pieces that are
// borrowed: of an answer that is no stream of events and whose head is h. True: it can be
// read.
func (o *Observer) Through(h http.Header, see func([]byte)) bool {
	switch encoding := h.Get("Content-Encoding"); {
	case encoding == "" || strings.EqualFold(encoding, "identity"):
		o.passing = see
	case strings.EqualFold(encoding, "gzip"):
		o.zipped = unzip(see)
	default:
		return false
	}
	return true
}

// Feed sees the next bytes of a stream; it returns how many of them lead up to the
// End of an event, where that can be told.
func (o *Observer) Feed(p []byte) (whole int) {
	switch {
	case o.Plain:
		return o.events.Feed(p, o.found)
	case o.zipped != nil:
		o.zipped.feed(p)
	case o.passing != nil:
		o.passing(p)
	}
	return 0
}

// Tell reads the usage of a message, a JSON object, into gen and the observer: of one that
// does not pass by itself.
func (o *Observer) Tell(usage []byte, gen *telemetry.GenAI) {
	o.gen = gen
	o.usage(usage)
}

// Event sees the next event of a stream of which no bytes are fed; what it is given is
// borrowed.
func (o *Observer) Event(name, data []byte) {
	if o.found != nil {
		o.event(sse.Event{Name: name, Data: data})
	}
}

// End waits until all that was fed has been read. It may be called again.
func (o *Observer) End() {
	if o.zipped != nil {
		o.zipped.end()
	}
}

// Estimate makes up for an answer that was cut before it told what it came to: at 4
// bytes a token.
func (o *Observer) Estimate() {
	if o.gen != nil && o.started && !o.told {
		o.gen.OutputTokens = max(o.gen.OutputTokens, (o.shown+3)/4)
	}
}

// Unfinished reports that a generation has begun and not ended, as far as that can
// be told.
func (o *Observer) Unfinished() bool { return o.started && !o.Stopped && !o.Failed }

func (o *Observer) event(e sse.Event) {
	switch string(e.Name) {
	case "message_start":
		o.started = true
	case "message_stop":
		o.Stopped = true
		return
	case "error":
		o.Failed = true
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
func (o *Observer) read(object []byte) {
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

func (o *Observer) usage(object []byte) {
	peek.Members(object, func(key, value []byte) {
		switch string(key) {
		case "service_tier":
			o.Batch = peek.Text(value) == "batch"
		case "speed":
			o.Fast = peek.Text(value) == "fast"
		case "cache_creation", "server_tool_use":
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
			o.Hour = n
		case "web_search_requests":
			o.Searches = n
		case "cache_read_input_tokens":
			o.gen.CacheReadTokens = n
		case "output_tokens":
			o.gen.OutputTokens = n
		}
	})
}

func (o *Observer) failure(object []byte) {
	peek.Members(object, func(key, value []byte) {
		if string(key) == "type" {
			o.word(&o.gen.ErrorType, value)
		}
	})
}

// word notes a name, if it is one.
func (o *Observer) word(to *string, value []byte) {
	const most = 128
	if s := peek.Text(value); s != "" && len(s) <= most {
		*to = s
	}
}

// Whole reads an answer in JSON that is there as a whole.
func (o *Observer) Whole(body []byte, h http.Header) {
	if o.passing != nil || o.zipped != nil {
		o.Feed(body)
		o.End()
		return
	}
	switch encoding := h.Get("Content-Encoding"); {
	case encoding == "" || strings.EqualFold(encoding, "identity"):
	case strings.EqualFold(encoding, "gzip"):
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return
		}
		if body, err = io.ReadAll(io.LimitReader(z, MostWhole)); err != nil {
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
