package bedrock

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/claude/internal/words"
)

// A message of an event stream
// (https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html): its
// length and that of its headers, their checksum; headers, payload; a checksum of all.
const (
	prelude     = 12
	tail        = 4
	mostMessage = 16 << 20 // bytes; AWS allows 24 MB, and no event of Claude's is so long
	mostHeaders = 128 << 10
)

// errDamaged begins what is said of a stream that is none.
var errDamaged = errors.New("the event stream is damaged")

// events is the body of Bedrock's stream, as the Messages API would have written it.
type events struct {
	from io.ReadCloser
	id   string // of the request, for errors

	in  []byte // read and not decoded yet
	out []byte // decoded and not taken yet
	buf [8 << 10]byte
	err error
}

// Read gives the events that have come as the text of an event stream; it waits for one.
func (s *events) Read(p []byte) (int, error) {
	for len(s.out) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if n, err := s.decode(); err != nil {
			s.err = err
		} else if n == 0 {
			s.read()
		}
	}
	n := copy(p, s.out)
	if s.out = s.out[n:]; len(s.out) == 0 {
		s.out = nil
	}
	return n, nil
}

// Close closes what is read from.
func (s *events) Close() error { return s.from.Close() }

// read takes in what comes next.
func (s *events) read() {
	n, err := s.from.Read(s.buf[:])
	s.in = append(s.in, s.buf[:n]...)
	switch {
	case n > 0: // what err says, the next read says again
	case errors.Is(err, io.EOF) && len(s.in) > 0:
		s.err = io.ErrUnexpectedEOF
	default:
		s.err = err
	}
}

// decode decodes all messages that are there, as long as nothing is to be taken of them;
// n is how many bytes they had.
func (s *events) decode() (n int, err error) {
	for len(s.out) == 0 {
		m, length, err := cut(s.in[n:])
		if err != nil {
			return n, err
		}
		if length == 0 {
			break
		}
		n += length
		if s.out, err = m.text(s.id); err != nil {
			return n, err
		}
		if m.kind != "event" { // nothing follows
			s.err = io.EOF
			break
		}
	}
	s.in = append(s.in[:0], s.in[n:]...)
	return n, nil
}

// A message is one of an event stream; its payload is borrowed.
type message struct {
	kind    string // event, exception or error
	name    string // of the event or the exception
	said    string // what an error says
	payload []byte
}

// cut takes the first message off p; n is its length, 0 when it is not all there.
func cut(p []byte) (m message, n int, err error) {
	if len(p) < prelude {
		return m, 0, nil
	}
	total, headers := binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])
	switch {
	case crc32.ChecksumIEEE(p[:8]) != binary.BigEndian.Uint32(p[8:]):
		return m, 0, fmt.Errorf("%w: the checksum of a message's beginning is wrong", errDamaged)
	case total > mostMessage || headers > mostHeaders || uint64(headers)+prelude+tail > uint64(total):
		return m, 0, fmt.Errorf("%w: a message claims %d bytes, %d of them headers", errDamaged, total, headers)
	case uint64(len(p)) < uint64(total):
		return m, 0, nil
	}
	n = int(total)
	if crc32.ChecksumIEEE(p[:n-tail]) != binary.BigEndian.Uint32(p[n-tail:]) {
		return m, 0, fmt.Errorf("%w: the checksum of a message is wrong", errDamaged)
	}
	m.payload = p[prelude+headers : n-tail]
	return m, n, m.readHeaders(p[prelude : prelude+headers])
}

// sizes are those of the values of headers, by their type; -1: two bytes say it.
var sizes = [...]int{0, 0, 1, 2, 4, 8, -1, -1, 8, 16}

const textType = 7

// readHeaders reads the headers of a message.
func (m *message) readHeaders(p []byte) error {
	for len(p) > 0 {
		end := 1 + int(p[0])
		if p[0] == 0 || len(p) <= end || int(p[end]) >= len(sizes) {
			return fmt.Errorf("%w: a header is not one", errDamaged)
		}
		name, kind := string(p[1:end]), p[end]
		p = p[end+1:]
		size := sizes[kind]
		if size < 0 {
			if len(p) < 2 {
				return fmt.Errorf("%w: the header %q is cut", errDamaged, name)
			}
			size, p = int(binary.BigEndian.Uint16(p)), p[2:]
		}
		if len(p) < size {
			return fmt.Errorf("%w: the header %q is cut", errDamaged, name)
		}
		if kind == textType {
			m.header(name, string(p[:size]))
		}
		p = p[size:]
	}
	return nil
}

func (m *message) header(name, value string) {
	switch name {
	case ":message-type":
		m.kind = value
	case ":event-type", ":exception-type", ":error-code":
		m.name = value
	case ":error-message":
		m.said = value
	}
}

// text is the message as an event of the Messages API's stream; empty: it is none.
func (m *message) text(id string) ([]byte, error) {
	switch m.kind {
	case "event":
		if m.name != "chunk" {
			return nil, nil // something new
		}
	case "exception", "error":
		if said := words.Excerpt(m.payload); said != "" {
			m.said = said
		}
		_, kind := told(m.name, 500)
		return compose("error", words.Error(kind, m.name+": "+m.said, id)), nil
	default:
		return nil, fmt.Errorf("%w: a message is of the type %q", errDamaged, m.kind)
	}
	var packed []byte
	peek.Members(m.payload, func(key, value []byte) {
		if string(key) == "bytes" && len(value) > 1 && value[0] == '"' {
			packed = value[1 : len(value)-1]
		}
	})
	data := make([]byte, base64.StdEncoding.DecodedLen(len(packed)))
	n, err := base64.StdEncoding.Decode(data, packed)
	if data = data[:n]; err != nil || n == 0 {
		return nil, fmt.Errorf("%w: a chunk holds no bytes", errDamaged)
	}
	if bytes.ContainsAny(data, "\r\n") { // which would be the end of a line
		var line bytes.Buffer
		if json.Compact(&line, data) != nil || bytes.ContainsAny(line.Bytes(), "\r\n") {
			return nil, fmt.Errorf("%w: a chunk is no JSON", errDamaged)
		}
		data = line.Bytes()
	}
	name := ""
	peek.Members(data, func(key, value []byte) {
		if string(key) == "type" {
			name = peek.Text(value)
		}
	})
	if name == "" || bytes.ContainsAny([]byte(name), "\r\n") {
		return nil, fmt.Errorf("%w: a chunk is no event of Claude's", errDamaged)
	}
	return compose(name, data), nil
}

func compose(name string, data []byte) []byte {
	out := make([]byte, 0, len(name)+len(data)+len("event: \ndata: \n\n"))
	out = append(append(append(out, "event: "...), name...), "\ndata: "...)
	return append(append(out, data...), "\n\n"...)
}
