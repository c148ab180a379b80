package routes

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

// Change returns the request asking for model, with its max_tokens lowered to most
// beside the budget that it gives its thinking, and with nothing else changed; the
// request itself, if nothing had to be. tokens is what it then asks for; 0: as before.
func Change(request []byte, model string, most int64) (changed []byte, tokens int64) {
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
	values := map[string][]byte{}
	if name, err := json.Marshal(model); err == nil && model != "" {
		values["model"] = name
	}
	if most > 0 && thinks < asked && most < asked-thinks {
		tokens = most + thinks
		values["max_tokens"] = strconv.AppendInt(nil, tokens, 10)
	}
	return replace(request, values), tokens
}

// Slack is by how much a changed request may at most be longer.
const Slack = 1 << 10

// replace puts values in the places of all members of their names: which of several
// counts is up to the reader.
func replace(request []byte, values map[string][]byte) []byte {
	out, from := []byte(nil), 0
	whole := peek.Members(request, func(key, old []byte) {
		value := values[string(key)]
		if value == nil || bytes.Equal(old, value) {
			return
		}
		if out == nil {
			out = make([]byte, 0, len(request)+Slack)
		}
		at := cap(request) - cap(old) // old is a part of request
		out = append(append(out, request[from:at]...), value...)
		from = at + len(old)
	})
	if out == nil || !whole {
		return request
	}
	return append(out, request[from:]...)
}
