package claudetest

import (
	"encoding/json"
	"fmt"
	"maps"
)

// fields is a JSON object whose values stay as they were written.
type fields map[string]json.RawMessage

// take reads the message that Options.Answer gave.
func (m *message) take(whole []byte) {
	var v struct {
		Content []fields
		Stop    string `json:"stop_reason"`
		Usage   struct {
			Input      int64 `json:"input_tokens"`
			CacheWrite int64 `json:"cache_creation_input_tokens"`
			CacheRead  int64 `json:"cache_read_input_tokens"`
			Output     int64 `json:"output_tokens"`
		}
	}
	if err := json.Unmarshal(whole, &m.whole); err != nil {
		panic(fmt.Sprintf("claudetest: Options.Answer gave no JSON object: %v: %s", err, whole))
	}
	if err := json.Unmarshal(whole, &v); err != nil {
		panic(fmt.Sprintf("claudetest: Options.Answer gave no message: %v: %s", err, whole))
	}
	m.raw, m.stop = whole, v.Stop
	m.usage.Input, m.usage.CacheWrite, m.usage.CacheRead, m.usage.Output = v.Usage.Input, v.Usage.CacheWrite, v.Usage.CacheRead, v.Usage.Output
	for _, b := range v.Content {
		m.parts = append(m.parts, part{kind: text(b["type"]), whole: b})
	}
}

func text(raw json.RawMessage) (s string) {
	_ = json.Unmarshal(raw, &s) // what is no string is none
	return s
}

func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic("claudetest: " + err.Error())
	}
	return b
}

// begins is a given message as message_start tells it.
func (m *message) begins() fields {
	open := maps.Clone(m.whole)
	open["content"], open["stop_reason"], open["stop_sequence"] = raw([]any{}), raw(nil), raw(nil)
	for _, later := range []string{"container", "context_management", "stop_details"} {
		delete(open, later)
	}
	usage := fields{}
	_ = json.Unmarshal(m.whole["usage"], &usage) // a message without has none
	usage["output_tokens"] = raw(1)
	delete(usage, "server_tool_use")
	open["usage"] = raw(usage)
	return open
}

// ends is the rest, as message_delta tells it.
func (m *message) ends() fields {
	delta := fields{"stop_reason": m.whole["stop_reason"], "stop_sequence": raw(nil)}
	for _, name := range []string{"stop_sequence", "container", "stop_details"} {
		if v, ok := m.whole[name]; ok {
			delta[name] = v
		}
	}
	end := fields{"type": raw("message_delta"), "delta": raw(delta), "usage": m.whole["usage"]}
	if v, ok := m.whole["context_management"]; ok {
		end["context_management"] = v
	}
	return end
}

// opens is a given block as content_block_start tells it, and pieces what its deltas
// tell. A block of a kind that nobody knows is told at once.
func (p part) opens() (fields, []fields) {
	open, deltas := maps.Clone(p.whole), []fields(nil)
	grow := func(kind, as, text string, n int) {
		for _, piece := range pieces(text, n) {
			deltas = append(deltas, fields{"type": raw(kind), as: raw(piece)})
		}
	}
	switch p.kind {
	case "text":
		var citations []json.RawMessage
		if json.Unmarshal(p.whole["citations"], &citations) == nil && citations != nil {
			open["citations"] = raw([]any{})
		}
		for _, c := range citations {
			deltas = append(deltas, fields{"type": raw("citations_delta"), "citation": c})
		}
		open["text"] = raw("")
		grow("text_delta", "text", text(p.whole["text"]), 17)
	case "thinking":
		open["thinking"], open["signature"] = raw(""), raw("")
		grow("thinking_delta", "thinking", text(p.whole["thinking"]), 23)
		deltas = append(deltas, fields{"type": raw("signature_delta"), "signature": p.whole["signature"]})
	case "compaction":
		open["content"] = raw(nil)
		deltas = append(deltas, fields{"type": raw("compaction_delta"), "content": p.whole["content"]})
	case "tool_use", "server_tool_use", "mcp_tool_use":
		open["input"] = raw(fields{})
		grow("input_json_delta", "partial_json", "", 11)
		grow("input_json_delta", "partial_json", string(p.whole["input"]), 11)
	}
	return open, deltas
}
