package mend

import (
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A block is a content block that the client has, or a part of one.
type block struct {
	kind string
	text string          // of text, thinking, and the JSON of an input
	sign string          // of thinking
	raw  json.RawMessage // as it began
}

// contents reads back what the client has. open: the last block has not ended.
func contents(log []byte) (blocks []block, open bool) {
	for {
		e, n := cut(log)
		if n == 0 {
			return blocks, open
		}
		log = log[n:]
		switch string(e.name) {
		case "content_block_start":
			raw, _ := member(e.data, "content_block")
			blocks, open = append(blocks, block{kind: text(raw, "type"), text: text(raw, "text") + text(raw, "thinking"), raw: raw}), true
		case "content_block_stop":
			open = false
		case "content_block_delta":
			if len(blocks) > 0 {
				d, _ := member(e.data, "delta")
				b := &blocks[len(blocks)-1]
				b.text += text(d, "text") + text(d, "thinking") + text(d, "partial_json")
				b.sign += text(d, "signature")
			}
		}
	}
}

// turn is a block as a conversation tells it; nil: it has nothing to say.
func (b block) turn(last bool) []byte {
	switch b.kind {
	case "text":
		said := b.text
		if last {
			said = strings.TrimRight(said, " \t\r\n") // the API refuses a last turn that ends in space
		}
		if strings.TrimSpace(said) == "" {
			return nil
		}
		return append(append([]byte(`{"type":"text","text":`), quote(said)...), '}')
	case "thinking":
		out := append([]byte(`{"type":"thinking","thinking":`), quote(b.text)...)
		return append(append(append(out, `,"signature":`...), quote(b.sign)...), '}')
	}
	if b.text == "" {
		return b.raw // of one piece: redacted thinking, the result of a server's tool
	}
	input, at := member(b.raw, "input")
	if input == nil || !json.Valid([]byte(b.text)) {
		return nil
	}
	out := append([]byte(nil), b.raw[:at]...)
	return append(append(out, b.text...), b.raw[at+len(input):]...)
}

// A seam joins a continuation to what the client has: the same indices go on, what
// the model says twice is dropped, and so is what it thinks about going on.
type seam struct {
	open   bool   // the client's last block waits for more text
	index  int64  // of the client's last block
	shift  int64  // from the attempt's indices to the client's
	tail   string // of what was said
	space  string // said, but not repeated to the model: it will say it again
	drop   int64  // index of a block under way that is dropped; -1: none
	into   int64  // index of the block that goes on with the client's last one; -1: none
	marked bool   // the client has been told
	wait   strings.Builder
}

// window is how much of what was said a continuation is compared with, and sure is
// how much of it must come again to be taken for a repetition.
const (
	window = 256
	sure   = 12
)

func newSeam(blocks []block, open, prefill bool) *seam {
	s := &seam{open: open, index: int64(len(blocks) - 1), shift: int64(len(blocks)), drop: -1, into: -1}
	said := blocks[len(blocks)-1].text
	s.space = said[len(strings.TrimRight(said, " \t\r\n")):]
	if !prefill {
		s.tail = said[max(0, len(said)-window):]
	}
	return s
}

// join returns what the client gets for an event of a content block.
func (s *seam) join(e event) []byte {
	value, _ := member(e.data, "index")
	index, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		return nil
	}
	switch string(e.name) {
	case "content_block_start":
		return s.begin(e, index)
	case "content_block_delta":
		if index == s.into {
			return s.more(e)
		}
	case "content_block_stop":
		if index == s.into {
			out := s.rest(nil)
			s.into, s.open = -1, false
			return s.shifted(out, e, index)
		}
	}
	if index == s.drop {
		return nil
	}
	return s.shifted(nil, e, index)
}

func (s *seam) begin(e event, index int64) []byte {
	switch kind := text(e.data, "content_block", "type"); {
	case kind == "thinking" || kind == "redacted_thinking":
		s.drop = index
		s.shift--
		return nil
	case kind == "text" && s.open && s.into < 0:
		s.into, s.shift = index, s.index-index
		s.wait.WriteString(text(e.data, "content_block", "text"))
		return nil
	}
	s.drop = -1
	return s.shifted(s.end(nil), e, index)
}

// shifted appends e with the client's index.
func (s *seam) shifted(to []byte, e event, index int64) []byte {
	return compose(s.mark(to), string(e.name), with(e.data, index+s.shift, "index"))
}

// mark tells the client, in a comment that no parser minds, that here another
// attempt goes on.
func (s *seam) mark(to []byte) []byte {
	if !s.marked {
		s.marked = true
		to = append(to, ": mainstay-resumed\n"...)
	}
	return to
}

// more takes text that goes on with the client's block.
func (s *seam) more(e event) []byte {
	if text(e.data, "delta", "type") != "text_delta" {
		return s.shifted(s.rest(nil), e, s.into)
	}
	if s.tail == "" && s.space == "" {
		return s.shifted(nil, e, s.into)
	}
	s.wait.WriteString(text(e.data, "delta", "text"))
	if s.wait.Len() < window && s.tail != "" || s.tail == "" && strings.TrimSpace(s.wait.String()) == "" {
		return nil
	}
	return s.rest(nil)
}

// rest appends what the text that waits says anew.
func (s *seam) rest(to []byte) []byte {
	said := s.wait.String()
	s.wait.Reset()
	if said != "" {
		said = said[s.repeated(said):]
	}
	s.tail, s.space = "", ""
	if said == "" {
		return to
	}
	data := append([]byte(`{"type":"content_block_delta","index":`), strconv.FormatInt(s.index, 10)...)
	data = append(append(append(data, `,"delta":{"type":"text_delta","text":`...), quote(said)...), "}}"...)
	return compose(s.mark(to), "content_block_delta", data)
}

// repeated is how much of said the client has already.
func (s *seam) repeated(said string) int {
	for n := min(len(s.tail), len(said)); n >= sure; n-- {
		if utf8.RuneStart(s.tail[len(s.tail)-n]) && strings.HasSuffix(s.tail, said[:n]) {
			return n
		}
	}
	n := 0
	for n < len(s.space) && n < len(said) && said[n] == s.space[n] {
		n++
	}
	if n == len(s.space) {
		return n
	}
	if s.tail != "" && s.space != "" { // one space is enough
		return len(said) - len(strings.TrimLeft(said, " \t\r\n"))
	}
	return n
}

// end ends the client's block, if the attempt goes on with something else.
func (s *seam) end(to []byte) []byte {
	if !s.open {
		return to
	}
	to = s.rest(to)
	s.open = false
	if s.into >= 0 {
		s.into = -1
	}
	data := append([]byte(`{"type":"content_block_stop","index":`), strconv.FormatInt(s.index, 10)...)
	return compose(s.mark(to), "content_block_stop", append(data, '}'))
}
