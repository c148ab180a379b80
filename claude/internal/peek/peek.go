// Package peek reads a few values out of JSON without parsing the rest of it: an
// answer's usage stands beside kilobytes of text that nobody here needs to know.
// Only the Claude plane may import it.
package peek

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// Members calls found for each member of the JSON object data: its key as written
// (without the quotes, with its escapes) and its value as written. It returns false
// if data is no JSON object as far as it had to look; what found was told until then
// may be wrong too. It does not check what it skips.
func Members(data []byte, found func(key, value []byte)) bool {
	i := space(data, 0)
	if i == len(data) || data[i] != '{' {
		return false
	}
	if i = space(data, i+1); i < len(data) && data[i] == '}' {
		return true
	}
	for {
		end := text(data, i)
		if end < 0 {
			return false
		}
		key := data[i+1 : end-1]
		if i = space(data, end); i == len(data) || data[i] != ':' {
			return false
		}
		i = space(data, i+1)
		if end = value(data, i); end < 0 {
			return false
		}
		found(key, data[i:end])
		if i = space(data, end); i == len(data) {
			return false
		}
		switch data[i] {
		case '}':
			return true
		case ',':
			i = space(data, i+1)
		default:
			return false
		}
	}
}

// Elements calls found for each element of the JSON array data, as written. It returns
// false if data is no JSON array as far as it had to look.
func Elements(data []byte, found func(element []byte)) bool {
	i := space(data, 0)
	if i == len(data) || data[i] != '[' {
		return false
	}
	if i = space(data, i+1); i < len(data) && data[i] == ']' {
		return true
	}
	for {
		end := value(data, i)
		if end < 0 {
			return false
		}
		found(data[i:end])
		if i = space(data, end); i == len(data) {
			return false
		}
		switch data[i] {
		case ']':
			return true
		case ',':
			i = space(data, i+1)
		default:
			return false
		}
	}
}

// Text returns the JSON string value; "" if it is something else.
func Text(value []byte) string {
	if len(value) < 2 || value[0] != '"' {
		return ""
	}
	if inner := value[1 : len(value)-1]; bytes.IndexByte(inner, '\\') < 0 {
		return string(inner)
	}
	var s string
	if json.Unmarshal(value, &s) != nil {
		return ""
	}
	return s
}

// Count returns the JSON value as a whole number that is not negative; false if it
// is something else.
func Count(value []byte) (int64, bool) {
	n, err := strconv.ParseUint(string(value), 10, 63)
	return int64(n), err == nil
}

func space(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\n' || data[i] == '\r' || data[i] == '\t') {
		i++
	}
	return i
}

// text returns the end of the string that begins at i, or -1.
func text(data []byte, i int) int {
	if i >= len(data) || data[i] != '"' {
		return -1
	}
	for i++; ; {
		n := bytes.IndexByte(data[i:], '"')
		if n < 0 {
			return -1
		}
		i += n + 1
		escapes := 0
		for data[i-2-escapes] == '\\' { // the opening quote ends this at the latest
			escapes++
		}
		if escapes%2 == 0 {
			return i
		}
	}
}

// value returns the end of the value that begins at i, or -1.
func value(data []byte, i int) int {
	if i >= len(data) {
		return -1
	}
	switch data[i] {
	case '"':
		return text(data, i)
	case '{', '[':
		return nested(data, i)
	}
	begin := i
	for i < len(data) && data[i] != ',' && data[i] != '}' && data[i] != ']' && space(data, i) == i {
		i++
	}
	if i == begin {
		return -1
	}
	return i
}

// nested returns the end of the object or array that begins at i, or -1.
func nested(data []byte, i int) int {
	for depth := 0; i < len(data); {
		switch data[i] {
		case '"':
			if i = text(data, i); i < 0 {
				return -1
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
		i++
	}
	return -1
}
