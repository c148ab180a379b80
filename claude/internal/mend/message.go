package mend

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// State is how a message stands.
type State uint8

const (
	Going   State = iota
	Done          // all of it has been given out
	Broken        // an error event came that another attempt may mend
	Refused       // an error event came that none can; it has been given out
)

// most is how much of a message is kept, given or not: beyond it the message passes
// as it comes, and can't be mended any more.
const most = 16 << 20

// A Message is one generation, whatever it takes. Text passes as it comes; all else
// is held until text follows it or the message ends, so that what the client has
// always ends in text, from where a model can go on. The zero value is ready; it
// belongs to one goroutine.
type Message struct {
	// Whole holds everything until the message ends: for answers that can't be
	// continued, but only had again.
	Whole bool
	// Unseen says that the client gets nothing until the message has ended: what was
	// given can still be taken back.
	Unseen bool
	// Anew is how many bytes of a message are held all the same, so that one that
	// breaks early is had again rather than continued.
	Anew int
	// Tap is told each event of the attempt under way, as it came, before anything else
	// is done with it; what it is given is borrowed. Nil: nobody is.
	Tap func(name, data []byte)
	// Shown is told each event that is given to the client, as Tap is of those that come.
	Shown func(name, data []byte)

	in    []byte // of an event that is not all there yet
	held  []byte // not given yet
	out   []byte // given, to be taken from taken on
	log   []byte // all that was given: what the client has
	after []byte // what has come after the last event
	taken int
	lost  bool // log is too long to be kept
	part  bool // what was given ends within an event

	room     *room // of log, out and held, as long as they fit; nil: none yet
	started  bool  // message_start was given
	opening  bool  // message_start of this attempt is in held
	pinned   bool  // a tool is being used: nothing passes until the message ends
	complete bool  // message_delta was given: only message_stop is missing
	live     bool  // the block under way is text

	failure string // type of the error event
	first   usage  // what the first message_start told
	extra   usage  // what attempts besides the first one cost, as far as it is known
	output  int64  // tokens of what was given before the attempt under way; an estimate
	seam    *seam  // of the continuation under way; nil: this is no continuation
}

type usage struct{ input, read, written int64 }

// Extra is what the attempts besides the one that the client was told of have cost:
// input tokens not cached, read from the cache and written to it. It is the API's own
// count.
func (m *Message) Extra() (input, read, written int64) {
	return m.extra.input, m.extra.read, m.extra.written
}

// Failure is the type of the error event that broke the message, if one did.
func (m *Message) Failure() string { return m.failure }

// Given reports whether the client has anything that an attempt can't take back.
func (m *Message) Given() bool { return !m.Unseen && (len(m.log) > 0 || m.lost) }

// Size is about how many bytes the message takes.
func (m *Message) Size() int { return len(m.in) + len(m.held) + len(m.out) + len(m.log) }

// Log is all that the client was given, but for pings; nobody may change it. False: it
// was too long to be kept.
func (m *Message) Log() ([]byte, bool) { return slices.Clip(m.log), !m.lost }

// Forget gives up what is kept: the rest of the message passes as it comes, and can't be
// mended any more.
func (m *Message) Forget() {
	if m.lost = true; m.started || m.opening {
		m.flush()
	}
	m.log = nil
}

// Resumes reports whether the attempt under way goes on with what the client has.
func (m *Message) Resumes() bool { return m.seam != nil }

// Ready reports whether there is something to take.
func (m *Message) Ready() bool { return len(m.out) > 0 }

// Chunk is what was given and not taken yet, borrowed until Took, which says that all
// of it was. within: it ends within an event.
func (m *Message) Chunk() (p []byte, within bool) { return m.out[m.taken:], m.part }

// Took says that the Chunk has been taken.
func (m *Message) Took() { m.out, m.taken = m.out[:0], 0 }

// Take moves what was given into p.
func (m *Message) Take(p []byte) int {
	n := copy(p, m.out[m.taken:])
	if m.taken += n; m.taken == len(m.out) {
		m.out, m.taken = m.out[:0], 0
	}
	return n
}

// Feed takes the next bytes of the attempt under way.
func (m *Message) Feed(p []byte) State {
	if len(m.in) > 0 {
		m.in = append(m.in, p...)
		p = m.in
	}
	for {
		e, n := cut(p)
		if n == 0 {
			break
		}
		p = p[n:]
		if m.Tap != nil {
			m.Tap(e.name, e.data)
		}
		if state := m.take(e); state != Going {
			m.in = nil
			if state == Done {
				m.After(p)
			}
			return state
		}
	}
	m.in = append(m.in[:0], p...)
	if len(m.in)+len(m.held) > most { // no event of the API is so long
		m.give(m.held)
		m.give(m.in)
		m.part = m.part || len(m.in) > 0
		m.held, m.in = m.held[:0], m.in[:0]
	}
	return Going
}

// show tells of the events in raw, which is given to the client.
func (m *Message) show(raw []byte) {
	for m.Shown != nil && len(raw) > 0 {
		e, n := cut(raw)
		if n == 0 {
			return
		}
		m.Shown(e.name, e.data)
		raw = raw[n:]
	}
}

// After takes bytes that come after the message's last event.
func (m *Message) After(p []byte) { m.after = append(m.after, p...) }

// Rest gives out what has come after the message's last event, as it is; but what went
// wrong then is nobody's business any more.
func (m *Message) Rest() {
	for rest := m.after; ; {
		e, n := cut(rest)
		if n == 0 {
			m.out = append(m.out, rest...)
			break
		}
		if string(e.name) != "error" {
			m.out = append(m.out, e.raw...)
			m.show(e.raw)
		}
		rest = rest[n:]
	}
	m.after = nil
}

// take takes one event.
func (m *Message) take(e event) State {
	switch string(e.name) {
	case "message_start":
		m.start(e)
	case "ping":
		if m.started {
			m.out = append(m.out, e.raw...) // at once, past what is held: it says that we are alive
			m.part = false
		} else {
			m.hold(e.raw)
		}
	case "error":
		return m.error(e)
	case "message_delta":
		m.last(e)
	case "message_stop":
		m.flush()
		m.give(e.raw)
		return Done
	case "content_block_start", "content_block_delta", "content_block_stop":
		m.block(e)
	default:
		m.hold(e.raw)
	}
	return Going
}

func (m *Message) start(e event) {
	told, _ := member(e.data, "message", "usage")
	u := usage{count(told, "input_tokens"), count(told, "cache_read_input_tokens"), count(told, "cache_creation_input_tokens")}
	if m.started {
		m.extra.add(u)
		return
	}
	m.extra.add(m.first) // of an attempt that the client will never hear of
	m.first, m.opening = u, true
	m.hold(e.raw)
}

func (u *usage) add(v usage) {
	u.input, u.read, u.written = u.input+v.input, u.read+v.read, u.written+v.written
}

// error ends the attempt.
func (m *Message) error(e event) State {
	m.failure = text(e.data, "error", "type")
	switch m.failure {
	case "invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large", "billing_error":
		m.held = m.held[:0]
		m.give(e.raw)
		return Refused
	}
	return Broken
}

// last takes the event that says why the message ended: what is held is certain now.
func (m *Message) last(e event) {
	raw := e.raw
	if s := m.seam; s != nil {
		m.held = s.end(m.held)
		data := with(e.data, m.output+count(e.data, "usage", "output_tokens"), "usage", "output_tokens")
		data = with(data, m.first.input, "usage", "input_tokens")
		data = with(data, m.first.read, "usage", "cache_read_input_tokens")
		data = with(data, m.first.written, "usage", "cache_creation_input_tokens")
		raw = compose(nil, "message_delta", data)
	}
	m.flush()
	m.give(raw)
	m.complete = true
}

// block takes an event of a content block.
func (m *Message) block(e event) {
	if string(e.name) == "content_block_start" {
		kind := text(e.data, "content_block", "type")
		m.live = kind == "text"
		m.pinned = m.pinned || kind == "tool_use"
		if !m.live && m.opening && !m.Whole && m.Anew == 0 {
			m.flush() // so that the client hears the pings while the model thinks
		}
	}
	raw := e.raw
	if m.seam != nil {
		raw = m.seam.join(e)
	}
	// The end of a text is held as well: until something follows it, more of it may.
	passes := m.live && !m.pinned && !m.Whole && len(raw) > 0 && string(e.name) == "content_block_delta"
	if passes && m.started && len(m.held) == 0 {
		m.put(raw)
		if m.seam != nil {
			m.show(raw)
		} else if m.Shown != nil { // it need not be cut again
			m.Shown(e.name, e.data)
		}
		return
	}
	m.hold(raw)
	if passes && (m.started || len(m.held) >= m.Anew) {
		m.flush()
	}
}

// A room is the memory of a message, as much as an ordinary one takes; one that needs more
// gets it elsewhere.
type room struct {
	log       [8 << 10]byte
	out, held [2 << 10]byte
}

var rooms = sync.Pool{New: func() any { return new(room) }}

func (m *Message) furnish() {
	m.room = rooms.Get().(*room)
	m.log, m.out, m.held = m.room.log[:0], m.room.out[:0], m.room.held[:0]
}

// Release gives the message's memory back. Nobody may use the message any more, nor what
// it has given out. Of a nil message there is none.
func (m *Message) Release() {
	if m == nil {
		return
	}
	if m.room != nil {
		rooms.Put(m.room)
	}
	*m = Message{}
}

func (m *Message) hold(raw []byte) {
	if m.lost { // there is no use in it any more
		m.give(raw)
		return
	}
	if m.room == nil {
		m.furnish()
	}
	m.held = append(m.held, raw...)
}

func (m *Message) flush() {
	m.give(m.held)
	m.held = m.held[:0]
	m.started, m.opening = true, false
}

func (m *Message) give(raw []byte) {
	m.put(raw)
	m.show(raw)
}

// put is give, but for telling of it.
func (m *Message) put(raw []byte) {
	if m.room == nil {
		m.furnish()
	}
	m.out, m.part = append(m.out, raw...), m.part && len(raw) == 0
	if m.lost = m.lost || len(m.log)+len(raw) > most; !m.lost {
		m.log = append(m.log, raw...)
	}
}

// Mend is told that the attempt under way has broken. True: the message lacks
// nothing but its last event, which has been given out.
func (m *Message) Mend() bool {
	m.in, m.held = m.in[:0], m.held[:0]
	m.live, m.pinned, m.opening = false, false, false
	if m.complete {
		m.give(compose(nil, "message_stop", []byte(`{"type":"message_stop"}`)))
	}
	return m.complete
}

// Continue makes the request that asks for what is missing, of the one that was sent
// first; nil: it can't be asked for. Without anything to continue it is the same
// request again. plain keeps it from using a prefill, where the model refused one.
func (m *Message) Continue(request []byte, plain bool) []byte {
	if m.lost {
		return nil
	}
	blocks, open := contents(m.log)
	if len(blocks) == 0 {
		m.seam = nil
		return request
	}
	said := ""
	given := 0
	for i := range blocks {
		given += len(blocks[i].text)
		if blocks[i].kind == "text" {
			said = blocks[i].text
		}
	}
	m.output = int64(given+3) / 4
	model := text(request, "model")
	prefill := !plain && open && prefills(model) && !thinks(request)
	m.seam = newSeam(blocks, open, prefill)
	return m.ask(request, turns(blocks, said, prefill))
}

// ask adds turns to a request, and takes what was said off its budget.
func (m *Message) ask(request, turns []byte) []byte {
	messages, at := member(request, "messages")
	if len(messages) < 2 || messages[len(messages)-1] != ']' {
		return nil
	}
	end := at + len(messages) - 1
	out := append(make([]byte, 0, len(request)+len(turns)+1), request[:end]...)
	if len(bytes.TrimSpace(messages[1:len(messages)-1])) > 0 {
		out = append(out, ',')
	}
	out = append(append(out, turns...), request[end:]...)
	if limit := count(request, "max_tokens"); limit > 0 && !thinks(request) { // a budget of thinking must stay below it
		out = with(out, max(limit-m.output, 1), "max_tokens")
	}
	return out
}

// turns are what a continuation adds to the conversation: what was said, and, where
// the model does not go on from there by itself, the request to.
func turns(blocks []block, said string, prefill bool) []byte {
	var content [][]byte
	for i, b := range blocks {
		if raw := b.turn(i == len(blocks)-1); raw != nil {
			content = append(content, raw)
		}
	}
	out := append([]byte(`{"role":"assistant","content":[`), bytes.Join(content, []byte(","))...)
	out = append(out, "]}"...)
	if prefill {
		return out
	}
	return append(append(append(out, `,{"role":"user","content":`...), quote(Prompt(said))...), '}')
}

// Prompt is what asks a model that takes no prefill to go on
// (https://docs.claude.com/en/docs/build-with-claude/streaming, error recovery).
func Prompt(said string) string {
	const tail = 200
	if len(said) > tail {
		said = strings.ToValidUTF8(said[len(said)-tail:], "")
	}
	return "Your previous response was interrupted and ended with " + string(quote(said)) +
		". Continue from where you left off: begin with the very next characters, repeat nothing, and add nothing before them."
}

func quote(s string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic("mend: a string is no JSON: " + err.Error())
	}
	return bytes.TrimSpace(b.Bytes())
}

// thinks reports whether a request asks for thinking, which excludes a prefill.
func thinks(request []byte) bool {
	kind := text(request, "thinking", "type")
	return kind != "" && kind != "disabled"
}

// prefills reports whether a model goes on from an unfinished assistant turn: those
// up to 4.5 do, all later ones refuse it.
func prefills(model string) bool {
	var numbers []int
	for part := range strings.SplitSeq(strings.TrimPrefix(model, "claude-"), "-") {
		for n := range strings.SplitSeq(part, ".") {
			if v, err := strconv.Atoi(n); err == nil && v < 100 { // not a date
				numbers = append(numbers, v)
			}
		}
	}
	switch {
	case !strings.HasPrefix(model, "claude-") || len(numbers) == 0:
		return false
	case numbers[0] != 4:
		return numbers[0] < 4
	}
	return len(numbers) == 1 || numbers[1] <= 5
}
