package events

// scanner finds where an event stream is between two events: after an empty line,
// and where nothing has come yet (HTML Living Standard, 9.2.5). Lines end with LF,
// CR or both.
type scanner struct {
	begun bool // the line has a byte
	open  bool // the event has a line
	cr    bool // the last byte was a CR
	col   int  // of the line's bytes seen, up to 3; 4: they are not "id:"
	id    bool // an event said its id
}

// between reports whether the stream may end here, or say something of its own.
func (s *scanner) between() bool { return !s.begun && !s.open }

// feed takes bytes, up to the end of the first event if stop is set, and returns
// how many.
func (s *scanner) feed(p []byte, stop bool) int {
	for i, c := range p {
		if c == '\n' && s.cr {
			s.cr = false // the line has ended with the CR already
			if stop && s.between() {
				return i + 1
			}
			continue
		}
		s.cr = c == '\r'
		switch {
		case c != '\n' && c != '\r':
			s.begun, s.open = true, true
			s.name(c)
		case s.begun:
			s.begun, s.col = false, 0
		default:
			s.open = false
			if half := s.cr && i+1 < len(p) && p[i+1] == '\n'; stop && !half {
				return i + 1
			}
		}
	}
	return len(p)
}

// name looks for the field id.
func (s *scanner) name(c byte) {
	const want = "id:"
	switch {
	case s.col >= len(want):
	case c != want[s.col]:
		s.col = len(want) + 1
	default:
		if s.col++; s.col == len(want) {
			s.id = true
		}
	}
}
