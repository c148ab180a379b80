// Package batch reads the results of batches of messages while they pass, knows which of
// them have been booked, and for whom the batches were made.
//
// Only the Claude plane may import it.
package batch

import "bytes"

// A Result is what one line of the results tells of its message, as it is written; all of
// it is borrowed.
type Result struct {
	ID    []byte // custom_id, a JSON string
	Kind  []byte // result.type, a JSON string
	Model []byte // result.message.model, a JSON string; empty: there is no message
	Usage []byte // result.message.usage, a JSON object; likewise
}

// mostValue is how much is kept of each of a line's values. The API's own are far
// shorter (a custom_id has 64 characters, a usage some hundred bytes); all else in a
// line, however long it is, is looked at as it passes and not kept.
const mostValue = 16 << 10

// Lines reads results (https://platform.claude.com/docs/en/build-with-claude/batch-processing):
// a JSON object a line, in pieces that end anywhere. It takes the memory of the values of
// one [Result], no more than 64 KiB, however long the lines are. The zero value is ready
// but for Found; it belongs to one goroutine.
type Lines struct {
	Found  func(Result) // is told each line's
	Unread int          // lines of which it could not be told what they say

	line   bool // something of a line has come
	bad    bool // it is no object, or a value is too long
	depth  int  // of the object or array under way
	level  int  // of the objects on the way to the values, of which this is the innermost
	text   bool // within a string
	escape bool // after a backslash in it
	isKey  bool // the next string is a member's name, or this one is
	key    []byte
	take   *[]byte // what the value under way is kept in; nil: it is not

	id, kind, model, usage []byte
}

// The objects on the way: the line, its result, and that one's message.
const (
	inLine = iota + 1
	inResult
	inMessage
)

// Feed reads the next bytes.
func (l *Lines) Feed(p []byte) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n') // JSON writes none within a line
		if end < 0 {
			l.read(p)
			return
		}
		l.read(p[:end])
		l.End()
		p = p[end+1:]
	}
}

// End ends the line under way, which need not end with a newline. False: it was not whole.
func (l *Lines) End() (whole bool) {
	whole = !l.line || !l.bad && l.depth == 0 && !l.text
	switch {
	case !l.line:
	case whole && len(l.id) > 0 && len(l.kind) > 0:
		l.Found(Result{ID: l.id, Kind: l.kind, Model: l.model, Usage: l.usage})
	default:
		l.Unread++
	}
	*l = Lines{Found: l.Found, Unread: l.Unread, key: l.key[:0], id: l.id[:0], kind: l.kind[:0], model: l.model[:0], usage: l.usage[:0]}
	return whole
}

// read reads a part of a line.
func (l *Lines) read(p []byte) {
	for i := 0; i < len(p) && !l.bad; {
		if l.text {
			i += l.string(p[i:])
			continue
		}
		b := p[i]
		switch b {
		case ' ', '\t', '\r':
			i++
			continue
		case '"':
			l.text = true
			if l.named() && l.isKey {
				l.key = l.key[:0]
			}
		case '{', '[':
			l.open(b)
		case '}', ']':
			l.close()
		case ':':
			if l.named() {
				l.isKey = false
				l.take = l.wanted()
			}
		case ',':
			if l.named() {
				l.isKey, l.take = true, nil
			}
		}
		l.bad = l.bad || l.depth == 0 && b != '}'
		l.line = true
		if b != ':' && b != ',' || !l.named() {
			l.keep(p[i : i+1])
		}
		i++
	}
}

// named reports whether the members of the object under way are looked at by name.
func (l *Lines) named() bool { return l.depth == l.level && l.depth > 0 }

// string reads on in a string, up to its end, and returns how much of p that was.
func (l *Lines) string(p []byte) (n int) {
	for quote := -1; n < len(p); {
		if l.escape {
			l.escape = false
			n++
			continue
		}
		if quote < n { // looked for once, however many backslashes stand before it
			if quote = bytes.IndexByte(p[n:], '"'); quote < 0 {
				quote = len(p)
			} else {
				quote += n
			}
		}
		if slash := bytes.IndexByte(p[n:quote], '\\'); slash >= 0 {
			l.escape = true
			n += slash + 1
			continue
		}
		if n = quote; n < len(p) {
			l.text = false
			n++
			break
		}
	}
	if l.isKey && l.named() {
		const longest = 32 // of the names that are looked for, and more
		if said := bytes.TrimSuffix(p[:n], []byte{'"'}); len(l.key)+len(said) <= longest {
			l.key = append(l.key, said...)
		} else {
			l.key = append(l.key[:0], '?')
		}
	}
	l.keep(p[:n])
	return n
}

// open begins an object or an array.
func (l *Lines) open(b byte) {
	next := 0
	switch {
	case b != '{' || l.depth != l.level:
	case l.depth == 0:
		next = inLine
	case l.level == inLine && string(l.key) == "result":
		next = inResult
	case l.level == inResult && string(l.key) == "message":
		next = inMessage
	}
	if l.depth++; next > 0 {
		l.level, l.isKey = next, true
	}
}

// close ends one.
func (l *Lines) close() {
	if l.depth == 0 {
		l.bad = true
		return
	}
	if l.depth == l.level {
		l.level--
		l.take, l.isKey = nil, false // the value ends with its object
		l.key = l.key[:0]
	}
	l.depth--
}

// wanted is where the value of the member under way belongs; nil: nowhere.
func (l *Lines) wanted() (to *[]byte) {
	switch name := string(l.key); {
	case l.level == inLine && name == "custom_id":
		to = &l.id
	case l.level == inResult && name == "type":
		to = &l.kind
	case l.level == inMessage && name == "model":
		to = &l.model
	case l.level == inMessage && name == "usage":
		to = &l.usage
	default:
		return nil
	}
	*to = (*to)[:0]
	return to
}

// keep keeps a part of the value under way, if it is wanted.
func (l *Lines) keep(p []byte) {
	if l.take == nil {
		return
	}
	if len(*l.take)+len(p) > mostValue {
		l.bad = true
		return
	}
	*l.take = append(*l.take, p...)
}
