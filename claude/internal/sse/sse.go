// Package sse reads an event stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)
// while it passes by: it is fed the bytes as they come, in pieces of any size, and
// tells where whole events end and what they say. It changes and keeps nothing of
// the stream. Only the Claude plane may import it.
package sse

import "bytes"

// DefaultLimit is how much data of one event is kept, in bytes, when the events of
// a [Scanner] do not lie in one piece.
const DefaultLimit = 256 << 10

// An Event is one event that ended within the bytes just fed. Both fields are
// borrowed until the function that got it returns.
type Event struct {
	Name []byte // of the event field; empty if it had none
	Data []byte // its data lines, joined by line feeds
	// Cut says that Data is missing, because it was longer than the limit.
	Cut bool
}

// A Scanner reads one stream. The zero value is ready; it belongs to one goroutine.
type Scanner struct {
	// Limit is how much data of one event is kept, in bytes; 0: DefaultLimit.
	Limit int

	name    []byte
	data    []byte // joined data lines, when they do not lie in one piece
	whole   []byte // the only data line so far, when it lies in the bytes being fed
	line    []byte // a line that began in an earlier piece
	tooLong bool   // of the event under way
	lineCut bool   // of the line under way: it is longer than the limit
	hasData bool
	begun   bool // something of an event has been seen since the last blank line
	afterCR bool // the next byte, if a line feed, belongs to the line end before it
	started bool // past the place where a byte order mark may stand
}

// Feed reads the next bytes of the stream and calls found for each event that ends
// in them. It returns how many of them lead up to the end of the last line end
// after which the stream stands between two events; 0 means that it stands nowhere
// between two events within p.
func (s *Scanner) Feed(p []byte, found func(Event)) (whole int) {
	for i := 0; i < len(p); {
		if s.afterCR {
			s.afterCR = false
			if p[i] == '\n' {
				i++
				if !s.begun && len(s.line) == 0 {
					whole = i
				}
				continue
			}
		}
		n := lineEnd(p[i:])
		if n < 0 {
			s.keepLine(p[i:])
			break
		}
		s.takeLine(p[i:i+n], found)
		s.afterCR = p[i+n] == '\r'
		i += n + 1
		if !s.begun {
			whole = i
		}
	}
	s.keepWhole()
	return whole
}

// Between reports whether the stream stands between two events.
func (s *Scanner) Between() bool { return !s.begun && len(s.line) == 0 && !s.lineCut }

func lineEnd(p []byte) int {
	lf := bytes.IndexByte(p, '\n')
	if lf >= 0 {
		p = p[:lf]
	}
	if cr := bytes.IndexByte(p, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

func (s *Scanner) limit() int {
	if s.Limit > 0 {
		return s.Limit
	}
	return DefaultLimit
}

// keepLine saves the beginning of a line whose end has not come yet.
func (s *Scanner) keepLine(p []byte) {
	s.begun = true
	if s.lineCut = s.tooMuch(p); s.lineCut {
		p = p[:min(len(p), max(0, fieldEnd-len(s.line)))]
	}
	s.line = append(s.line, p...)
}

// fieldEnd is how much of a line that is too long is looked at: enough to know
// which field it is.
const fieldEnd = 16

// tooMuch reports whether the line under way is too long with p.
func (s *Scanner) tooMuch(p []byte) bool {
	return s.lineCut || len(s.line)+len(p) > s.limit()+len("data: ")
}

// keepWhole saves a data line that lies in bytes which are about to be reused.
func (s *Scanner) keepWhole() {
	if s.whole != nil {
		s.data = append(s.data[:0], s.whole...)
		s.whole = nil
	}
}

func (s *Scanner) takeLine(line []byte, found func(Event)) {
	cut := s.tooMuch(line)
	if len(s.line) > 0 {
		if cut {
			line = line[:min(len(line), max(0, fieldEnd-len(s.line)))]
		}
		s.line = append(s.line, line...)
		line = s.line
		defer func() { s.line, s.lineCut = s.line[:0], false }()
	}
	if cut {
		line = line[:min(len(line), fieldEnd)]
	}
	if !s.started {
		s.started = true
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	if len(line) == 0 {
		s.dispatch(found)
		return
	}
	s.begun = true
	field, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch {
	case string(field) == "event":
		s.name = append(s.name[:0], value[:min(len(value), 128)]...)
	case string(field) == "data":
		s.takeData(value, cut)
	}
}

func (s *Scanner) takeData(value []byte, cut bool) {
	switch {
	case s.tooLong || cut || len(s.data)+len(s.whole)+len(value) >= s.limit():
		s.tooLong = true
	case !s.hasData:
		s.hasData = true
		if len(s.line) > 0 { // value lies in a buffer of ours that the next line reuses
			s.data = append(s.data[:0], value...)
		} else {
			s.whole = value
		}
	default:
		s.keepWhole()
		s.data = append(append(s.data, '\n'), value...)
	}
}

// dispatch ends an event. One without data is no event to a browser, but it is told
// all the same: what matters here is what passed by.
func (s *Scanner) dispatch(found func(Event)) {
	if s.begun && found != nil && (s.hasData || s.tooLong || len(s.name) > 0) {
		e := Event{Name: s.name, Data: s.data, Cut: s.tooLong}
		if s.whole != nil {
			e.Data = s.whole
		}
		if s.tooLong {
			e.Data = nil
		}
		found(e)
	}
	s.name, s.data, s.whole = s.name[:0], s.data[:0], nil
	s.hasData, s.tooLong, s.begun = false, false, false
}
