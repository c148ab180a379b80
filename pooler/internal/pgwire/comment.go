package pgwire

import "bytes"

// CommentWindow is how much of a statement's end [Traceparent] needs to see: a
// comment that begins earlier is not found.
const CommentWindow = 1024

// Traceparent is the text of a W3C trace context, as in the HTTP header.
type Traceparent [55]byte

var traceKey = []byte("traceparent='")

// FindTraceparent reads the trace context from the comment at the end of a
// statement's text, as sqlcommenter writes it
// (https://google.github.io/sqlcommenter/spec/): key='value' pairs, values
// URL-encoded, quotes in them escaped by a backslash. The text is without its
// terminating null; a semicolon and white space may follow the comment.
func FindTraceparent(text []byte) (tp Traceparent, ok bool) {
	text = text[max(0, len(text)-CommentWindow):]
	for len(text) > 0 && (text[len(text)-1] == ';' || isSpace(text[len(text)-1])) {
		text = text[:len(text)-1]
	}
	if len(text) < len("/**/") || text[len(text)-1] != '/' || text[len(text)-2] != '*' {
		return tp, false
	}
	for text = behindLastOpening(text[:len(text)-2]); ; {
		i := bytes.Index(text, traceKey)
		if i < 0 {
			return tp, false
		}
		value := text[i+len(traceKey):]
		if i == 0 || text[i-1] == ',' || isSpace(text[i-1]) {
			return decodeTraceparent(value)
		}
		text = value
	}
}

// behindLastOpening is what follows the last /* of text, empty if there is none. It is
// a few times as quick as bytes.LastIndex.
func behindLastOpening(text []byte) []byte {
	for i := len(text) - 1; i > 0; i-- {
		if text[i] == '*' && text[i-1] == '/' {
			return text[i+1:]
		}
	}
	return nil
}

// decodeTraceparent undoes the URL encoding up to the closing quote.
func decodeTraceparent(value []byte) (tp Traceparent, ok bool) {
	if bytes.IndexByte(value[:min(len(value), len(tp)+1)], '\'') == len(tp) && bytes.IndexByte(value[:len(tp)], '%') < 0 {
		copy(tp[:], value) // as it mostly is: nothing in it needs the encoding
		return tp, true
	}
	n := 0
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case c == '\'':
			return tp, n == len(tp)
		case n == len(tp):
			return tp, false
		case c == '%':
			if i+2 >= len(value) || unhex(value[i+1])|unhex(value[i+2]) > 15 {
				return tp, false
			}
			c = unhex(value[i+1])<<4 | unhex(value[i+2])
			i += 2
		}
		tp[n] = c
		n++
	}
	return tp, false
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
