package candidates

import (
	"bytes"
	"encoding/json"
	"hash/fnv"
	"strconv"

	"mainstay.dev/mainstay/claude/internal/peek"
)

// mostHashed bounds how much of each part of a prompt decides on its key.
const mostHashed = 64 << 10

// Prefix names what of a request the prompt cache may know: model, tools and system;
// without these two, how its messages begin. pinned: it speaks of files or containers,
// which one key's workspace has and another's does not.
func Prefix(request []byte) (prefix uint64, pinned bool) {
	var model, tools, system, messages []byte
	peek.Members(request, func(key, value []byte) {
		switch string(key) {
		case "model":
			model = value
		case "tools":
			tools = value
		case "system":
			system = value
		case "messages":
			messages = value
		case "container":
			pinned = pinned || string(value) != "null"
		}
	})
	h := fnv.New64a()
	if tools == nil && system == nil {
		const beginning = 256
		tools = messages[:min(len(messages), beginning)]
	}
	for _, part := range [...][]byte{model, tools, system} {
		_, _ = h.Write(part[:min(len(part), mostHashed)]) // can't fail
		_, _ = h.Write([]byte{0})
	}
	return h.Sum64(), pinned || bytes.Contains(messages, []byte(`"file_id"`))
}

// WithModel returns the request asking for model, with nothing else changed; the
// request itself if it does so already, or names none.
func WithModel(request []byte, model string) []byte {
	name, err := json.Marshal(model)
	if err != nil {
		return request
	}
	return replace(request, "model", name)
}

// Within returns the request with its max_tokens lowered to most, beside the budget
// that it gives its thinking, and what it then asks for; 0 if nothing was changed.
func Within(request []byte, most int64) (changed []byte, tokens int64) {
	asked, thinks := int64(0), int64(0)
	peek.Members(request, func(key, value []byte) {
		switch string(key) {
		case "max_tokens":
			asked, _ = peek.Count(value)
		case "thinking":
			thinks = 0
			peek.Members(value, func(key, value []byte) {
				if string(key) == "budget_tokens" {
					thinks, _ = peek.Count(value)
				}
			})
		}
	})
	if most <= 0 || most+thinks >= asked {
		return request, 0
	}
	return replace(request, "max_tokens", strconv.AppendInt(nil, most+thinks, 10)), most + thinks
}

// replace puts value in the place of every member of that name: which of several
// counts is up to the reader.
func replace(request []byte, name string, value []byte) []byte {
	out, from := []byte(nil), 0
	peek.Members(request, func(key, old []byte) {
		if string(key) != name || bytes.Equal(old, value) {
			return
		}
		if out == nil {
			out = make([]byte, 0, len(request)+len(value))
		}
		at := cap(request) - cap(old) // old is a part of request
		out = append(append(out, request[from:at]...), value...)
		from = at + len(old)
	})
	if out == nil {
		return request
	}
	return append(out, request[from:]...)
}
