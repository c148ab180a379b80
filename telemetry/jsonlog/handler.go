package jsonlog

import (
	"io"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"mainstay.dev/mainstay/telemetry"
)

// A Handler is slog's handler for JSON, to which a [Sink] writes its lines without slog's
// attributes, in a quarter of the time. They are the same byte for byte. It may be used from many
// goroutines at once; each line is one Write.
type Handler struct {
	*slog.JSONHandler
	w io.Writer
}

// NewHandler returns one that writes to w what is at least at level. Whoever logs waits for w,
// and for the others who do, unless w is a [Queue].
func NewHandler(w io.Writer, level slog.Leveler) *Handler {
	if _, shared := w.(*Queue); !shared {
		w = &lines{w: w}
	}
	return &Handler{slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}), w}
}

// lines lets slog's handler and the sinks take turns.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// buffers are for lines; one that a line has made large is not kept.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

const maxBuffer = 16 << 10

// record writes the line of x.
func (h *Handler) record(x *telemetry.Exchange, level slog.Level) {
	room := buffers.Get().(*[]byte)
	l := line{buf: (*room)[:0], json: true}
	l.buf = append(l.buf, `{"time":"`...)
	l.buf = x.Start.Add(x.Took).AppendFormat(l.buf, time.RFC3339Nano)
	l.buf = append(append(l.buf, `","level":"`...), level.String()...)
	l.buf = append(append(append(l.buf, `","msg":"`...), message(x.Plane)...), '"')
	l.exchange(x)
	l.buf = append(l.buf, "}\n"...)
	_, _ = h.w.Write(l.buf) // what cannot be written is lost, as it is with any logger
	if *room = l.buf; cap(l.buf) <= maxBuffer {
		buffers.Put(room)
	}
}

func (l *line) key(key string) {
	l.buf = append(append(append(l.buf, `,"`...), key...), `":`...)
}

// appendString appends a string as JSON, as slog does: what JavaScript takes for the end of
// a line is escaped too, and bytes that are no UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		r, size := rune(c), 1
		if c >= utf8.RuneSelf {
			if r, size = utf8.DecodeRuneInString(s[i:]); r != '\u2028' && r != '\u2029' && (r != utf8.RuneError || size > 1) {
				i += size
				continue
			}
		}
		b = appendEscaped(append(b, s[from:i]...), r)
		i += size
		from = i
	}
	return append(append(b, s[from:]...), '"')
}

// appendEscaped appends a character of the basic plane that does not stand for itself.
func appendEscaped(b []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	switch r {
	case '"', '\\':
		return append(b, '\\', byte(r))
	case '\n':
		return append(b, `\n`...)
	case '\r':
		return append(b, `\r`...)
	case '\t':
		return append(b, `\t`...)
	}
	return append(b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
}

// appendFloat appends a finite number as encoding/json does.
func appendFloat(b []byte, f float64) []byte {
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	b = strconv.AppendFloat(b, f, format, -1, 64)
	if n := len(b); format == 'e' && n >= 4 && b[n-4] == 'e' && (b[n-3] == '-' || b[n-3] == '+') && b[n-2] == '0' {
		b[n-2] = b[n-1] // e-09 is e-9
		b = b[:n-1]
	}
	return b
}

// appendMilliseconds appends what [milliseconds] returns, for what is not negative.
func appendMilliseconds(b []byte, d time.Duration) []byte {
	us := d.Microseconds()
	if us < 0 || us >= 1<<50 { // where floating point rounds
		return appendFloat(b, milliseconds(d))
	}
	b = strconv.AppendInt(b, us/1000, 10)
	rest := us % 1000
	if rest == 0 {
		return b
	}
	b = append(b, '.', byte('0'+rest/100), byte('0'+rest/10%10), byte('0'+rest%10))
	for b[len(b)-1] == '0' {
		b = b[:len(b)-1]
	}
	return b
}
