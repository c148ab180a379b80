// Package mend makes one whole message of the streams of several attempts: it holds
// back what must not be shown before it is certain, knows what the client has, asks
// for the rest in the way that the model allows, and joins the rest on without a
// seam. It does no input or output. Only the Claude plane may import it.
package mend

import (
	"bytes"
	"strconv"

	"mainstay.dev/mainstay/claude/internal/peek"
)

// event is one event of a stream; its parts lie in raw.
type event struct {
	raw, name, data []byte
}

// cut takes the first whole event off p; n is its length, 0 when it is not all there.
func cut(p []byte) (e event, n int) {
	if e, n = usual(p); n > 0 {
		return e, n
	}
	for n < len(p) {
		i := bytes.IndexByte(p[n:], '\n')
		if i < 0 {
			return event{}, 0
		}
		line := bytes.TrimSuffix(p[n:n+i], []byte("\r"))
		n += i + 1
		if len(line) == 0 {
			e.raw = p[:n]
			return e, n
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			e.name = value
		case "data":
			if e.data != nil { // several lines, which the API never sends: joined, in memory of their own
				value = bytes.Join([][]byte{e.data, value}, []byte("\n"))
			}
			e.data = value
		}
	}
	return event{}, 0
}

// usual is cut for an event as the API writes them: a line with its name, and one with
// its data. n is 0 for any other.
func usual(p []byte) (e event, n int) {
	const name, data = "event: ", "data: "
	if len(p) < len(name) || string(p[:len(name)]) != name {
		return event{}, 0
	}
	i := bytes.IndexByte(p, '\n')
	if i < 0 || len(p) < i+1+len(data) || string(p[i+1:i+1+len(data)]) != data {
		return event{}, 0
	}
	begin := i + 1 + len(data)
	n = bytes.IndexByte(p[begin:], '\n')
	end := begin + n
	if n < 0 || end+1 >= len(p) || p[end+1] != '\n' || p[i-1] == '\r' || p[end-1] == '\r' {
		return event{}, 0
	}
	return event{raw: p[:end+2], name: p[len(name):i], data: p[begin:end]}, end + 2
}

// compose appends an event.
func compose(to []byte, name string, data []byte) []byte {
	to = append(append(to, "event: "...), name...)
	return append(append(append(to, "\ndata: "...), data...), "\n\n"...)
}

// member returns a value within a JSON object by its path, as written, and where it
// begins; nil: there is none.
func member(object []byte, path ...string) (value []byte, at int) {
	peek.Members(object, func(k, v []byte) {
		if string(k) == path[0] {
			value, at = v, cap(object)-cap(v)
		}
	})
	if value != nil && len(path) > 1 {
		inner, in := member(value, path[1:]...)
		return inner, at + in
	}
	return value, at
}

// text is member for a string.
func text(object []byte, path ...string) string {
	v, _ := member(object, path...)
	return peek.Text(v)
}

// count is member for a number; 0: there is none.
func count(object []byte, path ...string) int64 {
	v, _ := member(object, path...)
	n, _ := peek.Count(v)
	return n
}

// with returns object with the number at path changed, if it is there.
func with(object []byte, n int64, path ...string) []byte {
	v, at := member(object, path...)
	if v == nil {
		return object
	}
	out := append(make([]byte, 0, len(object)+8), object[:at]...)
	out = strconv.AppendInt(out, n, 10)
	return append(out, object[at+len(v):]...)
}
