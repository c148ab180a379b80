package claudetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"unicode/utf8"
)

// A message is an answer before it is told as JSON or as a stream.
type message struct {
	id     string
	model  string
	parts  []part
	stop   string  // stop_reason
	stopAt *string // stop_sequence
	usage  usage
	raw    []byte // all of it, as Options.Answer gave it; nil: it did not
	whole  fields // the same
}

// A part is one content block of an answer: text, thinking or tool_use.
type part struct {
	kind  string
	text  string // of text and thinking
	proof string // signature of thinking
	id    string // of tool_use
	name  string
	input string // JSON
	whole fields // of a message that was given: all of it
}

type usage struct {
	Input      int64  `json:"input_tokens"`
	CacheWrite int64  `json:"cache_creation_input_tokens"`
	CacheRead  int64  `json:"cache_read_input_tokens"`
	Output     int64  `json:"output_tokens"`
	Tier       string `json:"service_tier,omitempty"`
}

// compose makes the answer to p. The same seed and messages make the
// same one, streamed or not.
func (c *call) compose(p *params) *message {
	sum := fnv.New64a()
	asked, said, way := p.interrupted()
	_, _ = sum.Write(asked) // never fails
	rng := rand.New(rand.NewPCG(c.s.opt.Seed, sum.Sum64()))
	m := &message{id: "msg_" + token(rand.New(rand.NewPCG(c.s.opt.Seed+2, c.n)), 24), model: p.Model, stop: "end_turn"}
	if p.Thinking != nil && p.Thinking.Type != "disabled" {
		m.parts = append(m.parts, part{kind: "thinking", text: "Let me think about that. " + prose(rng, 20), proof: token(rng, 64)})
	}
	if c.s.opt.Answer != nil {
		m.parts = nil
		m.take(c.s.opt.Answer(p.raw))
		return m
	}
	text := prose(rng, 24)
	if c.s.opt.Reply != nil {
		text = c.s.opt.Reply(p.raw)
	}
	switch way {
	case byPrefill:
		text = rest(text, said, 0)
	case byPrompt:
		text = rest(text, said, c.s.opt.Repeat)
	case fromStart:
	}
	text, m.stop, m.stopAt = p.end(text)
	if text != "" {
		m.parts = append(m.parts, part{kind: "text", text: text})
	}
	if t := p.picks(); t != nil {
		m.parts = append(m.parts, part{kind: "tool_use", id: "toolu_" + token(rng, 24), name: t.Name, input: fill(t.InputSchema)})
		m.stop, m.stopAt = "tool_use", nil
	}
	m.usage = c.s.price(p)
	for _, part := range m.parts {
		m.usage.Output += tokens(len(part.text) + len(part.input))
	}
	return m
}

// How an answer comes about.
type way int

const (
	fromStart way = iota
	byPrefill     // it goes on from a last turn of the assistant's
	byPrompt      // it was asked to go on
)

// interruption is how a request to go on begins, as the API's documentation has it.
const interruption = "Your previous response was interrupted and ended with "

// interrupted takes off a conversation what asks for the rest of an answer: the
// answer's beginning as the last turn, or that and a turn that says so. It returns
// the turns before, and what was said.
func (p *params) interrupted() (asked []byte, said string, by way) {
	var raw []json.RawMessage
	if json.Unmarshal(p.turns, &raw) != nil || len(raw) < 2 {
		return p.turns, "", fromStart
	}
	n := len(p.Messages) - 1
	by = byPrefill
	if last := p.Messages[n]; last.Role == "user" && len(last.Content) == 1 && strings.HasPrefix(last.Content[0].Text, interruption) {
		by = byPrompt
		n--
	}
	if p.Messages[n].Role != "assistant" {
		return p.turns, "", fromStart
	}
	for _, b := range p.Messages[n].Content {
		if b.Type == "text" {
			said += b.Text
		}
	}
	p.Messages = p.Messages[:n]
	return append(append([]byte("["), bytes.Join(raws(raw[:n]), []byte(","))...), ']'), said, by
}

func raws(in []json.RawMessage) (out [][]byte) {
	for _, r := range in {
		out = append(out, r)
	}
	return out
}

// rest is what of text is still to be said, and before it the last few bytes of what
// was said.
func rest(text, said string, repeat int) string {
	left, ok := strings.CutPrefix(text, said)
	if !ok {
		return text
	}
	from := len(said) - min(repeat, len(said))
	for !utf8.RuneStart(text[min(from, len(text)-1)]) {
		from++
	}
	return said[min(from, len(said)):] + left
}

// end cuts text where a stop sequence or max_tokens ends it.
func (p *params) end(text string) (cut, why string, sequence *string) {
	why = "end_turn"
	for _, stop := range p.StopSequences {
		if before, _, found := strings.Cut(text, stop); found {
			text, why, sequence = before, "stop_sequence", &stop
		}
	}
	if p.MaxTokens != nil && tokens(len(text)) > *p.MaxTokens {
		at := *p.MaxTokens * charsPerToken
		for !utf8.RuneStart(text[at]) {
			at--
		}
		return text[:at], "max_tokens", nil
	}
	return text, why, sequence
}

// picks returns the tool that the answer uses: the one it must, or, where the
// model may choose, the first one if the last turn speaks of a tool.
func (p *params) picks() *tool {
	choice := "auto"
	if p.ToolChoice != nil {
		choice = p.ToolChoice.Type
	}
	for i := range p.Tools {
		switch t := &p.Tools[i]; {
		case len(t.InputSchema) == 0: // a server's own tool
		case choice == "any", choice == "tool" && t.Name == p.ToolChoice.Name, choice == "auto" && p.asksForTool():
			return t
		}
	}
	return nil
}

func (p *params) asksForTool() bool {
	for _, b := range p.Messages[len(p.Messages)-1].Content {
		if b.Type == "text" && strings.Contains(strings.ToLower(b.Text), "tool") {
			return true
		}
	}
	return false
}

// fill makes an input that satisfies a tool's schema as far as its required
// properties go.
func fill(schema json.RawMessage) string {
	var s struct {
		Properties map[string]struct {
			Type string `json:"type"`
			Enum []any  `json:"enum"`
		} `json:"properties"`
		Required []string `json:"required"`
	}
	input := map[string]any{}
	if json.Unmarshal(schema, &s) == nil {
		for _, name := range s.Required {
			p := s.Properties[name]
			switch {
			case len(p.Enum) > 0:
				input[name] = p.Enum[0]
			case p.Type == "integer" || p.Type == "number":
				input[name] = 7
			case p.Type == "boolean":
				input[name] = true
			case p.Type == "array":
				input[name] = []any{}
			case p.Type == "object":
				input[name] = map[string]any{}
			default:
				input[name] = "a value for " + name
			}
		}
	}
	b, _ := json.Marshal(input) // of plain values: cannot fail
	return string(b)
}

const charsPerToken = 4

func tokens(chars int) int64 { return int64((chars + charsPerToken - 1) / charsPerToken) }

// mostCached is how many prompt prefixes are remembered; then all are forgotten.
const mostCached = 10_000

// price counts the input. A prompt with a cache_control block is written to the
// cache at its first sight and read from it afterwards.
func (s *Server) price(p *params) usage {
	u := usage{Tier: "standard"}
	all := tokens(len(p.raw))
	at := bytes.LastIndex(p.raw, []byte(`"cache_control"`))
	if at < 0 {
		u.Input = all
		return u
	}
	prefix := tokens(at)
	u.Input = all - prefix
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sha256.Sum256(append([]byte(p.Model), p.raw[:at]...))
	if s.cached[key] {
		u.CacheRead = prefix
		return u
	}
	if len(s.cached) >= mostCached {
		clear(s.cached)
	}
	s.cached[key] = true
	u.CacheWrite = prefix
	return u
}

// json is the answer as one JSON value.
func (m *message) json() any {
	if m.raw != nil {
		return json.RawMessage(m.raw)
	}
	content := make([]any, len(m.parts))
	for i, p := range m.parts {
		content[i] = p.json()
	}
	v := m.opening()
	v["content"], v["stop_reason"], v["stop_sequence"], v["usage"] = content, m.stop, m.stopAt, m.usage
	return v
}

// opening is the message as message_start tells it.
func (m *message) opening() map[string]any {
	u := m.usage
	u.Output = 1
	return map[string]any{
		"id": m.id, "type": "message", "role": "assistant", "model": m.model, "content": []any{},
		"stop_reason": nil, "stop_sequence": nil, "usage": u,
	}
}

func (p part) json() map[string]any {
	switch p.kind {
	case "thinking":
		return map[string]any{"type": "thinking", "thinking": p.text, "signature": p.proof}
	case "tool_use":
		return map[string]any{"type": "tool_use", "id": p.id, "name": p.name, "input": json.RawMessage(p.input)}
	}
	return map[string]any{"type": "text", "text": p.text}
}

var words = strings.Fields(`the contact has been with this workspace since spring and answers within a day
	their last three notes speak of renewal, of invoices, of a colleague who left; warm tone — next step: call them on Tuesday
	offer the annual plan “as agreed” über 日本 naïve café and keep it short`)

func prose(rng *rand.Rand, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(words[rng.IntN(len(words))])
	}
	b.WriteByte('.')
	return b.String()
}
