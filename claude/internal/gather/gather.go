// Package gather makes of the stream of a message the JSON that the API would have
// answered if it had not been asked to stream. Nothing is decoded that need not be:
// strings are joined as they are written, and what is unknown is kept. It does no
// input or output. Only the Claude plane may import it.
package gather

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"

	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/claude/internal/sse"
)

// ErrTooLong says that a message is longer than its limit.
var ErrTooLong = errors.New("the message is too long to be gathered")

// errShape says that a stream is not one of a message.
var errShape = errors.New("the stream is not one of a message")

// DefaultLimit is how long a message may be, in bytes, unless its Limit says
// otherwise.
const DefaultLimit = 32 << 20

// A Message is one message in the making. The zero value is ready; it belongs to one
// goroutine.
type Message struct {
	// Limit is how many bytes of events may be kept; 0: DefaultLimit.
	Limit int

	events  sse.Scanner
	head    object // of message_start, and what message_delta said since
	blocks  []block
	size    int
	begun   bool
	done    bool
	failure []byte
	err     error
}

// object is a JSON object whose members stay in their order.
type object []member

type member struct {
	key   string // as written
	value []byte
}

// A block is one content block.
type block struct {
	object
	input []byte // the JSON of a tool's input, as far as it has come
}

// Write takes the next bytes of the stream. It fails with ErrTooLong, and when what
// comes is no stream of a message.
func (m *Message) Write(p []byte) (int, error) {
	m.events.Limit = m.limit()
	m.events.Feed(p, m.event)
	return len(p), m.err
}

// Event takes the next event of the stream, instead of its bytes. What is wrong with it
// the next Write tells.
func (m *Message) Event(name, data []byte) { m.event(sse.Event{Name: name, Data: data}) }

// Reset makes m a message of which nothing has come.
func (m *Message) Reset() { *m = Message{Limit: m.Limit} }

// Size is about how many bytes the message takes.
func (m *Message) Size() int { return m.size }

// Done reports whether the message has come to its end.
func (m *Message) Done() bool { return m.done }

// Failure is the data of the error event that ended the stream, which is an error as
// the API answers it, and that error's type; nil: there was none.
func (m *Message) Failure() (data []byte, kind string) {
	peek.Members(m.failure, func(key, value []byte) {
		if string(key) == "error" {
			peek.Members(value, func(key, value []byte) {
				if string(key) == "type" {
					kind = peek.Text(value)
				}
			})
		}
	})
	return m.failure, kind
}

// JSON returns the message: what message_start told, in its order, with all that
// came after it.
func (m *Message) JSON() []byte {
	content := []byte("[")
	for i, b := range m.blocks {
		if i > 0 {
			content = append(content, ',')
		}
		if len(b.input) > 0 && json.Valid(b.input) { // it is not if max_tokens cut it
			b.set("input", b.input)
		}
		content = b.append(content)
	}
	m.head.set("content", append(content, ']'))
	return m.head.append(make([]byte, 0, m.size+256))
}

func (m *Message) limit() int {
	if m.Limit > 0 {
		return m.Limit
	}
	return DefaultLimit
}

func (m *Message) event(e sse.Event) {
	switch {
	case m.done || m.err != nil || m.failure != nil:
		return
	case e.Cut:
		m.err = ErrTooLong
		return
	}
	switch string(e.Name) {
	case "message_start":
		m.start(e.Data)
	case "error":
		m.failure = bytes.Clone(e.Data)
	case "content_block_start", "content_block_delta", "message_delta", "message_stop":
		if !m.begun {
			m.err = errShape
			return
		}
		m.follow(e)
	}
	if m.size > m.limit() {
		m.err = ErrTooLong
	}
}

// follow takes an event that comes after message_start.
func (m *Message) follow(e sse.Event) {
	switch string(e.Name) {
	case "content_block_start":
		m.open(e.Data)
	case "content_block_delta":
		m.grow(e.Data)
	case "message_delta":
		m.close(e.Data)
	case "message_stop":
		m.done = true
	}
}

// parse copies the members of a JSON object.
func (m *Message) parse(data []byte) (o object) {
	peek.Members(data, func(key, value []byte) {
		o = append(o, member{string(key), bytes.Clone(value)})
		m.size += len(key) + len(value)
	})
	return o
}

func (m *Message) start(data []byte) {
	if message := value(data, "message"); message != nil && !m.begun {
		m.head, m.begun = m.parse(message), true
	}
	if len(m.head) == 0 {
		m.err = errShape
	}
}

// open begins a content block. They begin in the order of their indices.
func (m *Message) open(data []byte) {
	if index, ok := peek.Count(value(data, "index")); !ok || index != int64(len(m.blocks)) {
		m.err = errShape
		return
	}
	raw := value(data, "content_block")
	b := block{object: m.parse(raw)}
	if peek.Text(value(raw, "type")) == "fallback" { // names the model that serves from here on
		if model := value(value(raw, "to"), "model"); model != nil {
			m.head.set("model", bytes.Clone(model))
		}
	}
	m.blocks = append(m.blocks, b)
}

// grow adds a delta to its block.
func (m *Message) grow(data []byte) {
	var at, delta, kind, citation []byte
	peek.Members(data, func(key, value []byte) {
		switch string(key) {
		case "index":
			at = value
		case "delta":
			delta = value
		}
	})
	index, ok := peek.Count(at)
	if !ok || index >= int64(len(m.blocks)) {
		m.err = errShape
		return
	}
	b := &m.blocks[index]
	m.size += len(delta)
	peek.Members(delta, func(key, value []byte) {
		switch string(key) {
		case "type":
			kind = value
		case "citation":
			citation = value
		}
	})
	switch string(kind) {
	case `"input_json_delta"`:
		b.input = append(b.input, peek.Text(value(delta, "partial_json"))...)
	case `"citations_delta"`:
		if citation != nil {
			b.add([]byte("citations"), slices.Concat([]byte("["), citation, []byte("]")))
		}
	default: // text, thinking, signature, and what is yet to be invented
		peek.Members(delta, func(key, value []byte) {
			if string(key) != "type" {
				b.add(key, value)
			}
		})
	}
}

// close takes over how the message ended.
func (m *Message) close(data []byte) {
	peek.Members(data, func(key, value []byte) {
		m.size += len(value)
		switch string(key) {
		case "type":
		case "delta":
			peek.Members(value, func(key, value []byte) { m.head.set(string(key), bytes.Clone(value)) })
		case "usage":
			m.usage(value)
		default:
			m.head.fill(string(key), bytes.Clone(value))
		}
	})
}

// usage lays the counts of message_delta, which are those of the whole message, over
// those of message_start, which keeps the last word on what is not told.
func (m *Message) usage(data []byte) {
	all := m.parse(m.head.get("usage"))
	peek.Members(data, func(key, value []byte) { all.fill(string(key), bytes.Clone(value)) })
	m.head.set("usage", all.append(nil))
}

// get returns a member's value; nil: there is none.
func (o object) get(key string) []byte {
	for i := range o {
		if o[i].key == key {
			return o[i].value
		}
	}
	return nil
}

// set gives a member its value, in its place, or at the end.
func (o *object) set(key string, value []byte) {
	for i := range *o {
		if (*o)[i].key == key {
			(*o)[i].value = value
			return
		}
	}
	*o = append(*o, member{key, value})
}

// fill is set, except that null replaces nothing.
func (o *object) fill(key string, value []byte) {
	if string(value) != "null" || o.get(key) == nil {
		o.set(key, value)
	}
}

// add adds value to a member: strings and arrays are joined, anything else takes the
// place of what was there.
func (o *object) add(key, value []byte) {
	for i := range *o {
		m := &(*o)[i]
		if m.key != string(key) {
			continue
		}
		old, n := m.value, len(m.value)
		switch {
		case n < 2 || len(value) < 2 || old[0] != value[0] || value[0] != '"' && value[0] != '[':
			o.fill(m.key, bytes.Clone(value))
		case value[0] == '"':
			m.value = append(old[:n-1], value[1:]...)
		case len(bytes.TrimSpace(old[1:n-1])) == 0:
			m.value = bytes.Clone(value)
		case len(bytes.TrimSpace(value[1:len(value)-1])) > 0:
			m.value = append(append(old[:n-1], ','), value[1:]...)
		}
		return
	}
	*o = append(*o, member{string(key), bytes.Clone(value)})
}

func (o object) append(to []byte) []byte {
	to = append(to, '{')
	for i, m := range o {
		if i > 0 {
			to = append(to, ',')
		}
		to = append(append(append(append(to, '"'), m.key...), `":`...), m.value...)
	}
	return append(to, '}')
}

// value returns a member of a JSON object as written; nil: there is none.
func value(data []byte, name string) (v []byte) {
	peek.Members(data, func(key, value []byte) {
		if string(key) == name {
			v = value
		}
	})
	return v
}

// Streaming makes of a request for a message one for its stream, by the least edit
// there is: stream becomes true where it stands, or is added as the last member. It
// edits in place where the capacity of request allows. False: it is no JSON object as
// far as can be told, asks for a stream already, or says stream in a way that nobody
// does; then it is as it was.
func Streaming(request []byte) ([]byte, bool) {
	var says [][]byte // what it says of stream
	end := 0          // of the last member
	fit := peek.Members(request, func(key, value []byte) {
		end = cap(request) - cap(value) + len(value)
		if peek.Text(slices.Concat([]byte(`"`), key, []byte(`"`))) == "stream" {
			says = append(says, value)
		}
	})
	switch {
	case !fit || end == 0 || len(says) > 1:
	case len(says) == 1:
		if s := string(says[0]); s == "false" || s == "null" {
			at := cap(request) - cap(says[0])
			return slices.Replace(request, at, at+len(s), []byte("true")...), true
		}
	case string(bytes.TrimSpace(request[end:])) == "}":
		return slices.Insert(request, end, []byte(`,"stream":true`)...), true
	}
	return request, false
}
