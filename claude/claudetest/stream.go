package claudetest

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"unicode/utf8"
)

// A stream writes the events of one answer.
type stream struct {
	c     *call
	out   io.Writer
	zip   *gzip.Writer
	fault Fault
	left  int // deltas until the fault strikes
	gone  bool
}

// tell sends m as a stream and reports whether it got to the end.
func (c *call) tell(m *message, fault Fault) bool {
	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	s := &stream{c: c, out: c.w, fault: fault}
	if c.zips() {
		h.Set("Content-Encoding", "gzip")
		s.zip = gzip.NewWriter(c.w)
		s.out = s.zip
	}
	for _, p := range m.parts {
		s.left += len(p.deltas())
	}
	s.left /= 2
	c.w.WriteHeader(http.StatusOK)
	whole := s.message(m)
	if s.zip != nil {
		_ = s.zip.Close() // the last bytes of a stream that ended well, or as if it had
	}
	return whole
}

func (s *stream) message(m *message) bool {
	if s.fault == ErrorFirst {
		return s.overloaded()
	}
	var opening, end any = m.opening(), m.closing()
	if m.raw != nil {
		opening, end = m.begins(), m.ends()
	}
	s.event("message_start", map[string]any{"type": "message_start", "message": opening})
	if s.fault == ErrorAfterStart {
		return s.overloaded()
	}
	for i, p := range m.parts {
		if !s.part(i, p) {
			return false
		}
	}
	if s.fault == EndEarly {
		return false
	}
	s.event("message_delta", end)
	s.event("message_stop", map[string]any{"type": "message_stop"})
	return !s.gone
}

// closing is how a message ends, as message_delta tells it.
func (m *message) closing() map[string]any {
	u := m.usage
	u.Tier = ""
	return map[string]any{"type": "message_delta", "delta": map[string]any{"stop_reason": m.stop, "stop_sequence": m.stopAt}, "usage": u}
}

// part tells one content block.
func (s *stream) part(i int, p part) bool {
	s.event("content_block_start", map[string]any{"type": "content_block_start", "index": i, "content_block": p.opening()})
	if i == 0 {
		s.event("ping", map[string]any{"type": "ping"})
	}
	for _, delta := range p.deltas() {
		if s.left == 0 && !s.strike(i, delta) {
			return false
		}
		s.left--
		s.event("content_block_delta", map[string]any{"type": "content_block_delta", "index": i, "delta": delta})
	}
	s.event("content_block_stop", map[string]any{"type": "content_block_stop", "index": i})
	return !s.gone
}

// opening is a part as its first event tells it.
func (p part) opening() any {
	if p.whole != nil {
		open, _ := p.opens()
		return open
	}
	p.text, p.proof, p.input = "", "", "{}"
	return p.json()
}

// deltas cuts a part into several pieces, as the API would.
func (p part) deltas() (ds []fields) {
	if p.whole != nil {
		_, ds = p.opens()
		return ds
	}
	switch p.kind {
	case "tool_use":
		for _, piece := range append([]string{""}, pieces(p.input, 11)...) {
			ds = append(ds, fields{"type": raw("input_json_delta"), "partial_json": raw(piece)})
		}
	case "thinking":
		for _, piece := range pieces(p.text, 23) {
			ds = append(ds, fields{"type": raw("thinking_delta"), "thinking": raw(piece)})
		}
		ds = append(ds, fields{"type": raw("signature_delta"), "signature": raw(p.proof)})
	default:
		for _, piece := range pieces(p.text, 17) {
			ds = append(ds, fields{"type": raw("text_delta"), "text": raw(piece)})
		}
	}
	return ds
}

// pieces cuts text into pieces of about n bytes, never within a character.
func pieces(text string, n int) (all []string) {
	for len(text) > n {
		at := n
		for !utf8.RuneStart(text[at]) {
			at--
		}
		all, text = append(all, text[:at]), text[at:]
	}
	return append(all, text)
}

// strike is the moment of the faults in mid-stream; true: go on, none was due.
func (s *stream) strike(i int, delta fields) bool {
	switch s.fault {
	case ErrorMiddle:
		return s.overloaded()
	case Cut:
		text, _ := json.Marshal(map[string]any{"type": "content_block_delta", "index": i, "delta": delta})
		_, _ = fmt.Fprintf(s.out, "event: content_block_delta\ndata: %s", text[:len(text)/2])
		s.flush()
		s.c.reset()
	case CutBetween:
		s.c.reset()
	case Stall:
		s.c.hang()
	case EndEarly:
		return false
	}
	return true
}

func (s *stream) overloaded() bool {
	s.event("error", map[string]any{
		"type": "error", "error": map[string]string{"type": "overloaded_error", "message": "Overloaded"}, "request_id": s.c.id,
	})
	return false
}

func (s *stream) event(name string, v any) {
	if s.gone || !s.c.sleep(s.c.s.opt.EventDelay) {
		s.gone = true
		return
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic("claudetest: an event of ours is no JSON: " + err.Error())
	}
	if _, err := fmt.Fprintf(s.out, "event: %s\ndata: %s\n\n", name, data); err != nil {
		s.gone = true
		return
	}
	s.flush()
}

func (s *stream) flush() {
	if s.zip != nil {
		_ = s.zip.Flush()
	}
	if http.NewResponseController(s.c.w).Flush() != nil {
		s.gone = true
	}
}
