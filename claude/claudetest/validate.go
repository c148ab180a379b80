package claudetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxMessage is the API's limit on the body of a message or a token count.
const maxMessage = 32 << 20

// params is the body of a message or a token count.
type params struct {
	Model         string          `json:"model"`
	MaxTokens     *int64          `json:"max_tokens"`
	Messages      []turn          `json:"messages"`
	System        json.RawMessage `json:"system"`
	Stream        bool            `json:"stream"`
	Temperature   *float64        `json:"temperature"`
	TopP          *float64        `json:"top_p"`
	TopK          *int64          `json:"top_k"`
	StopSequences []string        `json:"stop_sequences"`
	Tools         []tool          `json:"tools"`
	ToolChoice    *struct {
		Type string `json:"type"`
		Name string `json:"name"`
	} `json:"tool_choice"`
	Thinking *struct {
		Type         string `json:"type"`
		BudgetTokens int64  `json:"budget_tokens"`
	} `json:"thinking"`
	Metadata map[string]any `json:"metadata"`

	raw   []byte
	turns []byte // the messages, as sent
}

type turn struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// content is a string or a list of blocks; a string is one block of text.
type content []block

type block struct {
	Type      string          `json:"type"`
	Text      string          `json:"text"`
	ID        string          `json:"id"`
	ToolUseID string          `json:"tool_use_id"`
	Citations json.RawMessage `json:"citations"`
}

type tool struct {
	Type        string          `json:"type"`
	Name        string          `json:"name"`
	InputSchema json.RawMessage `json:"input_schema"`
}

func (c *content) UnmarshalJSON(data []byte) error {
	data = bytes.TrimSpace(data)
	if len(data) > 0 && data[0] == '"' {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
		*c = content{{Type: "text", Text: text}}
		return nil
	}
	return json.Unmarshal(data, (*[]block)(c))
}

// A refusal is an error in the API's words.
type refusal struct {
	status  int
	kind    string
	message string
}

func invalid(format string, args ...any) *refusal {
	return &refusal{400, "invalid_request_error", fmt.Sprintf(format, args...)}
}

// known are the fields of a message; anything else needs a beta.
var known = []string{
	"model", "max_tokens", "messages", "system", "stream", "temperature", "top_p", "top_k", "stop_sequences", "tools",
	"tool_choice", "thinking", "metadata", "service_tier", "container", "cache_control", "inference_geo", "output_config",
	"speed", "diagnostics",
}

// message reads and checks the body of a message (or, without max_tokens, of a
// token count), in the order in which the API complains.
func (c *call) message(counting bool) (*params, *refusal) {
	if len(c.body) > maxMessage {
		return nil, &refusal{413, "request_too_large", "Request exceeds the maximum size"}
	}
	if ct, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(ct), "application/json") {
		return nil, invalid("content-type: must be application/json")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(c.body, &fields); err != nil {
		return nil, invalid("The request body is not valid JSON: %v", err)
	}
	if c.r.Header.Get("anthropic-beta") == "" {
		for field := range fields {
			if !slices.Contains(known, field) {
				return nil, invalid("%s: Extra inputs are not permitted", field)
			}
		}
	}
	if c.r.Header.Get("anthropic-version") == current {
		for _, gone := range []string{"temperature", "top_p", "top_k"} {
			if _, sent := fields[gone]; sent {
				return nil, invalid("%s: not supported in API version %s", gone, current)
			}
		}
	}
	p := &params{raw: c.body, turns: fields["messages"]}
	if err := json.Unmarshal(c.body, p); err != nil {
		return nil, invalid("%v", err)
	}
	for _, check := range []func() *refusal{p.checkModel, p.checkMaxTokens(counting), p.checkMessages, p.checkSampling, p.checkThinking, p.checkTools, p.checkBlocks(c)} {
		if r := check(); r != nil {
			return nil, r
		}
	}
	return p, nil
}

func (p *params) checkModel() *refusal {
	switch {
	case p.Model == "":
		return invalid("model: Field required")
	case !strings.HasPrefix(p.Model, "claude-"):
		return &refusal{404, "not_found_error", "model: " + p.Model}
	}
	return nil
}

func (p *params) checkMaxTokens(counting bool) func() *refusal {
	return func() *refusal {
		const most = 128_000
		switch {
		case counting && p.MaxTokens != nil:
			return invalid("max_tokens: Extra inputs are not permitted")
		case counting:
		case p.MaxTokens == nil:
			return invalid("max_tokens: Field required")
		case *p.MaxTokens < 1:
			return invalid("max_tokens: must be greater than or equal to 1")
		case *p.MaxTokens > most:
			return invalid("max_tokens: %d > %d, which is the maximum allowed number of output tokens for %s", *p.MaxTokens, most, p.Model)
		}
		return nil
	}
}

func (p *params) checkMessages() *refusal {
	if p.Messages == nil {
		return invalid("messages: Field required")
	}
	if len(p.Messages) == 0 {
		return invalid("messages: at least one message is required")
	}
	if p.Messages[0].Role == "assistant" {
		return invalid("messages: first message must use the \"user\" role")
	}
	var asked []string // ids of the tool_use blocks in the turn before
	for i, m := range p.Messages {
		if m.Role != "user" && m.Role != "assistant" && (m.Role != "system" || i == 0) {
			return invalid("messages.%d.role: Input should be 'user', 'assistant' or 'system'", i)
		}
		if len(m.Content) == 0 && (i < len(p.Messages)-1 || m.Role == "user") {
			return invalid("messages.%d: all messages must have non-empty content except for the optional final assistant message", i)
		}
		next, r := m.check(i, asked)
		if r != nil {
			return r
		}
		asked = next
	}
	if last := p.Messages[len(p.Messages)-1]; last.Role == "assistant" && !prefills(p.Model) {
		return invalid("This model does not support assistant message prefill. The conversation must end with a user message.")
	}
	return nil
}

// check looks at the blocks of turn i and returns the ids of its tool uses.
func (m *turn) check(i int, asked []string) (uses []string, r *refusal) {
	for j, b := range m.Content {
		switch b.Type {
		case "":
			return nil, invalid("messages.%d.content.%d.type: Field required", i, j)
		case "text":
			if strings.TrimSpace(b.Text) == "" {
				return nil, invalid("messages: text content blocks must be non-empty")
			}
		case "tool_use":
			uses = append(uses, b.ID)
		case "tool_result":
			if !slices.Contains(asked, b.ToolUseID) {
				return nil, invalid("messages.%d.content.%d: unexpected `tool_use_id` found in `tool_result` blocks: %s. Each `tool_result` block must have a corresponding `tool_use` block in the previous message.", i, j, b.ToolUseID)
			}
		}
	}
	return uses, nil
}

// checkBlocks refuses blocks that the current version has no place for.
func (p *params) checkBlocks(c *call) func() *refusal {
	return func() *refusal {
		if c.r.Header.Get("anthropic-version") != current {
			return nil
		}
		for i, m := range p.Messages {
			for j, b := range m.Content {
				switch {
				case m.Role == "assistant" && b.Type == "document":
					return invalid("messages.%d.content.%d: `document` blocks are not allowed in assistant messages", i, j)
				case m.Role == "user" && b.Type == "text" && len(b.Citations) > 2 && string(b.Citations) != "null":
					return invalid("messages.%d.content.%d.citations: must be empty in user messages", i, j)
				}
			}
		}
		return nil
	}
}

func (p *params) checkSampling() *refusal {
	switch {
	case p.Temperature != nil && (*p.Temperature < 0 || *p.Temperature > 1):
		return invalid("temperature: range: 0..1")
	case p.TopP != nil && (*p.TopP < 0 || *p.TopP > 1):
		return invalid("top_p: range: 0..1")
	case p.TopK != nil && *p.TopK < 0:
		return invalid("top_k: must be greater than or equal to 0")
	}
	for i, seq := range p.StopSequences {
		if strings.TrimSpace(seq) == "" {
			return invalid("stop_sequences.%d: each stop sequence must contain non-whitespace", i)
		}
	}
	return nil
}

func (p *params) checkThinking() *refusal {
	if p.Thinking == nil {
		return nil
	}
	switch p.Thinking.Type {
	case "disabled", "adaptive", "between_tools":
	case "enabled":
		if p.Thinking.BudgetTokens < 1024 {
			return invalid("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
		}
		if p.MaxTokens != nil && p.Thinking.BudgetTokens >= *p.MaxTokens {
			return invalid("`max_tokens` must be greater than `thinking.budget_tokens`")
		}
	default:
		return invalid("thinking.type: Input should be 'enabled', 'adaptive', 'between_tools' or 'disabled'")
	}
	return nil
}

func (p *params) checkTools() *refusal {
	for i, t := range p.Tools {
		if t.Name == "" {
			return invalid("tools.%d.name: Field required", i)
		}
		if (t.Type == "" || t.Type == "custom") && len(t.InputSchema) == 0 {
			return invalid("tools.%d.custom.input_schema: Field required", i)
		}
	}
	if p.ToolChoice == nil {
		return nil
	}
	switch p.ToolChoice.Type {
	case "auto", "none", "any":
	case "tool":
		if !slices.ContainsFunc(p.Tools, func(t tool) bool { return t.Name == p.ToolChoice.Name }) {
			return invalid("Tool '%s' not found in provided tools", p.ToolChoice.Name)
		}
	default:
		return invalid("tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'")
	}
	return nil
}

var version = regexp.MustCompile(`^claude-(?:[a-z]+-)?(\d{1,2})(?:-(\d{1,2}))?(?:-|$)`)

// prefills reports whether a model takes an unfinished assistant turn: those up to
// 4.5 do.
func prefills(model string) bool {
	m := version.FindStringSubmatch(model)
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major < 4 || major == 4 && minor <= 5
}
