package pgwire

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
)

// Types of the messages that a client sends.
const (
	Bind         = 'B'
	Close        = 'C'
	CopyData     = 'd'
	CopyDone     = 'c'
	CopyFail     = 'f'
	Describe     = 'D'
	Execute      = 'E'
	Flush        = 'H'
	FunctionCall = 'F'
	Parse        = 'P'
	Password     = 'p' // also SASLInitialResponse and SASLResponse
	Query        = 'Q'
	Sync         = 'S'
	Terminate    = 'X'
)

// Types of the messages that a server sends and that the pooler looks at.
const (
	Authentication  = 'R'
	BackendKeyData  = 'K'
	BindComplete    = '2'
	NoData          = 'n'
	RowDescription  = 'T'
	CloseComplete   = '3'
	CommandComplete = 'C'
	CopyBoth        = 'W'
	CopyIn          = 'G'
	DataRow         = 'D'
	EmptyQuery      = 'I'
	ErrorResponse   = 'E'
	NegotiateProto  = 'v'
	NoticeResponse  = 'N'
	Notification    = 'A'
	ParameterDesc   = 't'
	ParameterStatus = 'S'
	ParseComplete   = '1'
	PortalSuspended = 's'
	ReadyForQuery   = 'Z'
)

// Transaction states that ReadyForQuery tells.
const (
	Idle     = 'I'
	InBlock  = 'T'
	InFailed = 'E'
)

// Append appends a message.
func Append(b []byte, typ byte, body ...[]byte) []byte {
	n := 4
	for _, part := range body {
		n += len(part)
	}
	b = AppendHeader(b, typ, n-4)
	for _, part := range body {
		b = append(b, part...)
	}
	return b
}

// AppendHeader appends the header of a message whose body has n bytes.
func AppendHeader(b []byte, typ byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, typ), uint32(n+4))
}

// AppendQuery appends a simple query.
func AppendQuery(b []byte, sql string) []byte {
	b = AppendHeader(b, Query, len(sql)+1)
	return append(append(b, sql...), 0)
}

// AppendParameter appends a ParameterStatus.
func AppendParameter(b []byte, name, value string) []byte {
	b = AppendHeader(b, ParameterStatus, len(name)+len(value)+2)
	b = append(append(b, name...), 0)
	return append(append(b, value...), 0)
}

// AppendReady appends a ReadyForQuery.
func AppendReady(b []byte, state byte) []byte {
	return append(AppendHeader(b, ReadyForQuery, 1), state)
}

// A Fault is an ErrorResponse of Mainstay's own
// (https://www.postgresql.org/docs/current/protocol-error-fields.html).
type Fault struct {
	SQLState string
	Message  string
	Hint     string // the mend; may be empty
}

// AppendFatal appends the fault as an ErrorResponse after which the connection ends.
func (f Fault) AppendFatal(b []byte) []byte { return f.append(b, ErrorResponse, "FATAL") }

// AppendError appends the fault as an ErrorResponse that ends what the client asked for.
func (f Fault) AppendError(b []byte) []byte { return f.append(b, ErrorResponse, "ERROR") }

// AppendWarning appends the fault as a NoticeResponse.
func (f Fault) AppendWarning(b []byte) []byte { return f.append(b, NoticeResponse, "WARNING") }

func (f Fault) append(b []byte, typ byte, severity string) []byte {
	at := len(b)
	b = AppendHeader(b, typ, 0)
	for _, field := range [...]struct {
		code byte
		text string
	}{{'S', severity}, {'V', severity}, {'C', f.SQLState}, {'M', f.Message}, {'H', f.Hint}} {
		if field.text != "" {
			b = append(append(append(b, field.code), field.text...), 0)
		}
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b[at+1:], uint32(len(b)-at-1))
	return b
}

// Field returns one field of an ErrorResponse's or NoticeResponse's body, nil if it
// is not there. The body may be cut short.
func Field(body []byte, code byte) []byte {
	for len(body) > 0 && body[0] != 0 {
		end := bytes.IndexByte(body, 0)
		if end < 0 {
			return nil
		}
		if body[0] == code {
			return body[1:end]
		}
		body = body[end+1:]
	}
	return nil
}

// Strings splits two consecutive null-terminated strings from a body, as
// ParameterStatus holds them, and Bind's portal and statement. rest is what follows.
func Strings(body []byte) (first, second, rest []byte, ok bool) {
	first, rest, ok = String(body)
	if !ok {
		return nil, nil, nil, false
	}
	second, rest, ok = String(rest)
	return first, second, rest, ok
}

// String splits a null-terminated string from a body.
func String(body []byte) (s, rest []byte, ok bool) {
	before, after, ok := bytes.Cut(body, []byte{0})
	if !ok {
		return nil, nil, false
	}
	return before, after, true
}

// Tag splits a CommandComplete's body: the command and the number of rows that its
// last word tells ("INSERT 0 5", "SELECT 3", "CREATE TABLE").
func Tag(body []byte) (command []byte, rows int64) {
	tag, _, ok := String(body)
	if !ok {
		tag = body
	}
	i := bytes.IndexByte(tag, ' ')
	if i < 0 || tag[len(tag)-1] < '0' || tag[len(tag)-1] > '9' {
		return tag, 0
	}
	for _, c := range tag[bytes.LastIndexByte(tag, ' ')+1:] {
		if c < '0' || c > '9' || rows > 1<<58 {
			return tag, 0
		}
		rows = rows*10 + int64(c-'0')
	}
	return tag[:i], rows
}

// PlainAnswer reports whether b is all that a server says to one command, to its end outside of a
// transaction, and nothing but that: rows, what they are like, that the command is complete, and at most one ParseComplete, first
// (parsed). tag is the body of the CommandComplete.
func PlainAnswer(b []byte) (tag []byte, parsed, ok bool) {
	for at := 0; len(b)-at >= HeaderSize; {
		n := uint64(binary.BigEndian.Uint32(b[at+1:])) + 1
		if n < HeaderSize || n > uint64(len(b)-at) {
			return nil, false, false
		}
		end := at + int(n)
		switch b[at] {
		case DataRow, BindComplete, RowDescription, NoData:
		case ParseComplete:
			if at > 0 {
				return nil, false, false
			}
			parsed = true
		case CommandComplete:
			if tag != nil {
				return nil, false, false
			}
			tag = b[at+HeaderSize : end]
		case ReadyForQuery:
			return tag, parsed, tag != nil && end == len(b) && n == HeaderSize+1 && b[end-1] == Idle
		default:
			return nil, false, false
		}
		at = end
	}
	return nil, false, false
}

// Split takes the first of several messages that are whole, as Append makes them: its
// type, its length with the header, and its body.
func Split(b []byte) (typ byte, n int, body []byte) {
	n = 1 + int(binary.BigEndian.Uint32(b[1:]))
	return b[0], n, b[HeaderSize:n]
}

// Holds reports whether bytes begin with a whole message, for [Split].
func Holds(b []byte) bool {
	_, n, ok, err := decodeHeader(b)
	return ok && err == nil && len(b) >= HeaderSize+n
}

// FirstNumber is the first number in a text, in whatever language; 0 if there is none.
func FirstNumber(text []byte) uint32 {
	from := bytes.IndexAny(text, "0123456789")
	if from < 0 {
		return 0
	}
	to := from
	for to < len(text) && '0' <= text[to] && text[to] <= '9' {
		to++
	}
	n, err := strconv.ParseUint(string(text[from:to]), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// ParameterTypes are the oids of the types of parameters that a Parse names, behind its text. 0 is one
// that PostgreSQL is to find out.
func ParameterTypes(rest []byte) (oids []uint32) {
	for rest = rest[min(2, len(rest)):]; len(rest) >= 4; rest = rest[4:] {
		oids = append(oids, binary.BigEndian.Uint32(rest))
	}
	return oids
}

// Unanswered returns the first message of a client's cycle that is not answered by what the server has
// said to it, whole messages all, and how many bytes come before it; 0 if there is none.
func Unanswered(cycle, answer []byte) (typ byte, body []byte, before int) {
	ends := map[byte]string{Parse: "1", Bind: "2", Close: "3", Describe: "Tn", Execute: "CIs"}
	for Holds(cycle[before:]) {
		typ, size, body := Split(cycle[before:])
		for answered := false; !answered; {
			if !Holds(answer) {
				return typ, body, before
			}
			one, n, _ := Split(answer)
			answer = answer[n:]
			answered = strings.IndexByte(ends[typ], one) >= 0
		}
		before += size
	}
	return 0, nil, before
}

// Columns takes a DataRow's first columns; nil stands for null.
func Columns(body []byte, columns [][]byte) bool {
	if len(body) < 2 || int(binary.BigEndian.Uint16(body)) < len(columns) {
		return false
	}
	body = body[2:]
	for i := range columns {
		var ok bool
		if columns[i], body, ok = value(body); !ok {
			return false
		}
	}
	return true
}

// value takes a length and as many bytes.
func value(b []byte) (v, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; n == 1<<32-1 {
		return nil, b, true
	}
	if uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

// Values calls yield for each of a Bind's values that is not null, given what follows
// its names, as far as it is there.
func Values(b []byte, yield func([]byte)) {
	if len(b) < 2 {
		return
	}
	formats := 2 * int(binary.BigEndian.Uint16(b))
	if len(b) < 4+formats {
		return
	}
	b = b[2+formats:]
	count := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	for range count {
		v, rest, ok := value(b)
		if !ok {
			return
		}
		if v != nil {
			yield(v)
		}
		b = rest
	}
}

// Bound is how many values a Bind has, given what follows its names; ok is false if that cannot be told.
func Bound(b []byte) (n int, ok bool) {
	if len(b) < 2 {
		return 0, false
	}
	at := 2 + 2*int(binary.BigEndian.Uint16(b))
	if len(b) < at+2 {
		return 0, false
	}
	return int(binary.BigEndian.Uint16(b[at:])), true
}
