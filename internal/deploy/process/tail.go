package process

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	maxLine   = 8 << 10 // bytes of a line that are kept; the rest is counted
	lastLines = 20      // lines kept for an error message
	maxRate   = 1000    // lines logged in a second; the rest is counted
	pollEvery = 100 * time.Millisecond
)

// A tail reads what a copy writes into its file, line by line, and keeps the file
// from growing without end.
type tail struct {
	f   *os.File
	off int64 // read up to here
	max int64 // size that the file may have

	buf  []byte
	line []byte // begun, not ended yet
	over int    // bytes of line beyond maxLine

	mu   sync.Mutex
	ring []string // the newest lines, oldest first

	second  int64 // the second in which sent lines were logged
	sent    int
	skipped int
}

func openTail(path string, limit int64) (*tail, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // created: somebody may have removed it
	if err != nil {
		return nil, err
	}
	return &tail{f: f, max: limit}, nil
}

func (t *tail) close() { _ = t.f.Close() }

// skip moves to the end of a file that an earlier life has read, keeping its last
// lines for LastLines. What was written while nobody read stays in the file alone.
func (t *tail) skip() {
	info, err := t.f.Stat()
	if err != nil {
		return
	}
	const enough = lastLines * 200
	t.off = max(0, info.Size()-enough)
	partial := t.off > 0
	t.read(func(string, int) {})
	if partial && 0 < t.sent && t.sent <= lastLines {
		t.ring = t.ring[1:] // it began in the middle
	}
	t.sent, t.skipped = 0, 0
}

// run reads until over is closed and all that was written by then is read; then it
// closes the file.
func (t *tail) run(over <-chan struct{}, say func(line string, skipped int)) {
	defer t.close()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-over:
			t.read(say)
			if len(t.line) > 0 {
				t.endLine(say)
			}
			return
		case <-tick.C:
			t.read(say)
		}
	}
}

// read takes in all there is now. It stops at the size the file had when it began,
// so that a copy that writes faster than we read cannot keep it forever.
func (t *tail) read(say func(string, int)) {
	info, err := t.f.Stat()
	if err != nil {
		return
	}
	size := info.Size()
	if size < t.off {
		t.off = 0 // somebody truncated the file
	}
	if t.off < size && t.buf == nil {
		t.buf = make([]byte, 64<<10)
	}
	for t.off < size {
		n, err := t.f.ReadAt(t.buf[:min(int64(len(t.buf)), size-t.off)], t.off)
		t.off += int64(n)
		t.take(t.buf[:n], say)
		if n == 0 || err != nil {
			break
		}
	}
	if t.off >= t.max {
		t.shed(size)
	}
}

// shed drops what is old of the file: all but the newest quarter of max. The copy
// appends, so it never notices. Where the file system can cut off the head of a
// file (ext4, XFS) nothing is lost. Elsewhere the file is emptied, and what the
// copy writes in that very moment may be.
func (t *tail) shed(size int64) {
	const block = 1 << 20 // file systems cut whole blocks of theirs, which are smaller
	if cut := (t.off - t.max/4) &^ (block - 1); cut > 0 && cut < size {
		if unix.Fallocate(int(t.f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, cut) == nil {
			t.off -= cut
			return
		}
	}
	if t.f.Truncate(0) == nil {
		t.off = 0
	}
}

// take splits b into lines.
func (t *tail) take(b []byte, say func(string, int)) {
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		part := b
		if end >= 0 {
			part = b[:end]
		}
		room := min(len(part), maxLine-len(t.line))
		t.line = append(t.line, part[:room]...)
		t.over += len(part) - room
		if end < 0 {
			return
		}
		t.endLine(say)
		b = b[end+1:]
	}
}

// endLine keeps the line for LastLines and says it, unless there were too many.
func (t *tail) endLine(say func(string, int)) {
	text := clean(t.line)
	if t.over > 0 {
		text += fmt.Sprintf(" … (%d bytes more)", t.over)
	}
	t.line, t.over = t.line[:0], 0
	if text == "" {
		return
	}
	t.mu.Lock()
	if len(t.ring) == lastLines {
		t.ring = append(t.ring[:0], t.ring[1:]...)
	}
	t.ring = append(t.ring, text)
	t.mu.Unlock()
	if now := time.Now().Unix(); now != t.second {
		t.second, t.sent = now, 0
	}
	if t.sent++; t.sent > maxRate {
		t.skipped++
		return
	}
	skipped := t.skipped
	t.skipped = 0
	say(text, skipped)
}

func (t *tail) last() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := make([]string, len(t.ring))
	for i, l := range t.ring {
		lines[i] = short(l)
	}
	return lines
}

// short bounds a line for an error message.
func short(l string) string {
	const most = 500
	if len(l) <= most {
		return l
	}
	cut := most
	for !utf8.RuneStart(l[cut]) {
		cut--
	}
	return l[:cut] + " …"
}

// clean makes a line fit to be shown anywhere: valid UTF-8, without the escape
// sequences of colours and without control characters, so that no app can play
// tricks on the terminal of whoever reads its log.
func clean(b []byte) string {
	var s strings.Builder
	for i := 0; i < len(b); {
		if b[i] == 0x1b && i+1 < len(b) && b[i+1] == '[' {
			i += 2
			for i < len(b) && (b[i] < 0x40 || b[i] > 0x7e) {
				i++
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(b[i:])
		i += n
		switch {
		case r == '\t':
			s.WriteByte('\t')
		case r < ' ' || r >= 0x7f && r <= 0x9f || r == 0x2028 || r == 0x2029:
		default:
			s.WriteRune(r)
		}
	}
	return strings.TrimRight(s.String(), " \t")
}
