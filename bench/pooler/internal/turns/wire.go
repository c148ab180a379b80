package turns

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
)

// statement is pgbench -S's, and accounts how many rows pgbench -i -s 10 makes.
const (
	statement = "SELECT abalance FROM pgbench_accounts WHERE aid = "
	accounts  = 1_000_000
)

// named is what the prepared statement is called, as pgbench calls its first.
const named = "P_0"

// maxMessage is more than any answer to the statement can have. A length beyond it is
// taken for a stream that has gone wrong.
const maxMessage = 1 << 20

// A message is one of the protocol's, without its length.
type message struct {
	kind byte
	body []byte // part of what was read
}

// next takes the first message off data, if all of it is there. Of one that is not, rest
// is data as it was, to be gone on with when more is read.
func next(data []byte) (m message, rest []byte, whole bool, err error) {
	if len(data) < 5 {
		return m, data, false, nil
	}
	size := int64(binary.BigEndian.Uint32(data[1:])) // of the body and itself
	if size < 4 || size > maxMessage {
		return m, data, false, fmt.Errorf("a message %q of %d bytes is none of PostgreSQL's", data[0], size)
	}
	if int64(len(data)) < 1+size {
		return m, data, false, nil
	}
	return message{data[0], data[5 : 1+size]}, data[1+size:], true, nil
}

// An answer is what has come of one, up to its ReadyForQuery.
type answer struct {
	rows     int
	complete bool
}

// take counts a message in, and reports whether it was the last.
func (a *answer) take(m message) (last bool, err error) {
	switch m.kind {
	case 'D':
		// one column: its count, and its length, which is -1 of a null
		if len(m.body) < 7 || binary.BigEndian.Uint16(m.body) != 1 || int32(binary.BigEndian.Uint32(m.body[2:])) < 1 {
			return false, fmt.Errorf("the row %q has not the one column that was asked for", m.body)
		}
		a.rows++
	case 'C':
		a.complete = true
	case 'E':
		return false, refusal(m.body)
	case 'Z':
		if len(m.body) != 1 || m.body[0] != 'I' {
			return false, fmt.Errorf("ready for a query, but in the state %q", m.body)
		}
		return true, nil
	case '1', '2', 'T', 'N', 'S': // parsed, bound, described, a notice, a parameter
	default:
		return false, fmt.Errorf("a message %q was not asked for", m.kind)
	}
	return false, nil
}

// check tells what the answer lacks.
func (a *answer) check() error {
	if a.rows != 1 || !a.complete {
		return fmt.Errorf("an answer ended with %d rows (complete: %v) where there is one", a.rows, a.complete)
	}
	return nil
}

// refusal is the text of an ErrorResponse
// (https://www.postgresql.org/docs/current/protocol-error-fields.html).
func refusal(body []byte) error {
	fields := map[byte]string{}
	for len(body) > 1 {
		kind := body[0]
		end := 1
		for end < len(body) && body[end] != 0 {
			end++
		}
		fields[kind] = string(body[1:end])
		body = body[min(end+1, len(body)):]
	}
	return fmt.Errorf("%s %s: %s", fields['S'], fields['C'], fields['M'])
}

// A writer makes the messages of transactions, in the way of a plan.
type writer struct {
	protocol string
	sampled  float64 // part of the queries; negative: they have no comment
	random   *rand.Rand
	buf      []byte
}

// begin starts a message; end puts its length in.
func (w *writer) begin(kind byte) (at int) {
	at = len(w.buf)
	w.buf = append(w.buf, kind, 0, 0, 0, 0)
	return at
}

func (w *writer) end(at int) {
	binary.BigEndian.PutUint32(w.buf[at+1:], uint32(len(w.buf)-at-1))
}

func (w *writer) text(s string) { w.buf = append(append(w.buf, s...), 0) }

// transaction is what asks for a random row. The next call overwrites it.
func (w *writer) transaction() []byte {
	w.buf = w.buf[:0]
	aid := 1 + w.random.Int64N(accounts)
	if w.protocol == "simple" {
		at := w.begin('Q')
		w.buf = strconv.AppendInt(append(w.buf, statement...), aid, 10)
		w.comment()
		w.text(";")
		w.end(at)
		return w.buf
	}
	name := ""
	if w.protocol == "prepared" {
		name = named
	} else {
		w.parse(name)
	}
	w.bind(name, aid)
	at := w.begin('D')
	w.text("P")
	w.end(at)
	at = w.begin('E')
	w.buf = append(w.buf, 0, 0, 0, 0, 0) // the unnamed portal, all its rows
	w.end(at)
	w.end(w.begin('S'))
	return w.buf
}

func (w *writer) parse(name string) {
	at := w.begin('P')
	w.text(name)
	w.buf = append(w.buf, statement...)
	w.text("$1;")
	w.buf = append(w.buf, 0, 0) // no types
	w.end(at)
}

// bind gives the statement its parameter as a text, as pgbench does.
func (w *writer) bind(name string, aid int64) {
	at := w.begin('B')
	w.text("") // the portal
	w.text(name)
	w.buf = append(w.buf, 0, 0, 0, 1) // no formats, one value
	size := len(w.buf)
	w.buf = append(w.buf, 0, 0, 0, 0)
	w.buf = strconv.AppendInt(w.buf, aid, 10)
	binary.BigEndian.PutUint32(w.buf[size:], uint32(len(w.buf)-size-4))
	w.buf = append(w.buf, 0, 0) // no formats
	w.end(at)
}

// comment is that of an app with tracing: another trace each time, sampled or not.
func (w *writer) comment() {
	if w.sampled < 0 {
		return
	}
	w.buf = append(w.buf, " /*traceparent='00-4bf92f3577b34da6"...)
	const digits = "0123456789abcdef"
	for n, i := w.random.Uint64()|1, 0; i < 16; i++ { // no trace is of zeros
		w.buf = append(w.buf, digits[n&15])
		n >>= 4
	}
	flag := byte('0')
	if w.random.Float64() < w.sampled {
		flag = '1'
	}
	w.buf = append(append(w.buf, "-00f067aa0ba902b7-0"...), flag)
	w.buf = append(w.buf, "'*/"...)
}

// startup opens a session of the user and the database that are both called bench.
func (w *writer) startup() []byte {
	w.buf = append(w.buf[:0], 0, 0, 0, 0, 0, 3, 0, 0)
	for _, s := range []string{"user", "bench", "database", "bench", ""} {
		w.text(s)
	}
	binary.BigEndian.PutUint32(w.buf, uint32(len(w.buf)))
	return w.buf
}

// prepare makes the named statement.
func (w *writer) prepare() []byte {
	w.buf = w.buf[:0]
	w.parse(named)
	w.end(w.begin('S'))
	return w.buf
}
