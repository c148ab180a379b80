// Package output makes what a copy of the app writes fit to be logged and shown:
// split into lines, bounded in length, rate and number, free of control
// characters. Only the drivers of internal/deploy import it.
package output

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// MaxLine is how many bytes of a line are kept; the rest is counted.
	MaxLine = 8 << 10
	// LastLines is how many lines are kept for an error message.
	LastLines = 20
	// MaxRate is how many lines are said in a second; the rest is counted.
	MaxRate = 1000
)

// A Journal is the output of one copy. Last may be called from any goroutine, all
// else from one at a time.
type Journal struct {
	// Say gets every line that is not beyond MaxRate, with its level. skipped
	// counts the lines before it that were.
	Say func(line string, level slog.Level, skipped int)
	// Count, if it is not nil, gets the level of every line.
	Count func(level slog.Level)

	mu   sync.Mutex
	ring []string // the newest lines, oldest first

	second  int64 // the second in which sent lines were said
	sent    int
	skipped int
}

// Keep notes a line for Last without saying it. more counts the bytes of the line
// that are not in b. An empty line is passed over.
func (j *Journal) Keep(b []byte, more int) (line string) {
	line = clean(b)
	if more > 0 {
		line += fmt.Sprintf(" … (%d bytes more)", more)
	}
	if line == "" {
		return ""
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.ring) == LastLines {
		j.ring = append(j.ring[:0], j.ring[1:]...)
	}
	j.ring = append(j.ring, line)
	return line
}

// Add keeps a line and says it.
func (j *Journal) Add(b []byte, more int) {
	line := j.Keep(b, more)
	if line == "" {
		return
	}
	level := Level(line)
	if j.Count != nil {
		j.Count(level)
	}
	if now := time.Now().Unix(); now != j.second {
		j.second, j.sent = now, 0
	}
	if j.sent++; j.sent > MaxRate {
		j.skipped++
		return
	}
	skipped := j.skipped
	j.skipped = 0
	j.Say(line, level, skipped)
}

// Last returns the newest lines, oldest first, each short enough for an error
// message.
func (j *Journal) Last() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := make([]string, len(j.ring))
	for i, l := range j.ring {
		lines[i] = short(l)
	}
	return lines
}

// A Splitter makes lines out of a stream. It holds at most MaxLine bytes.
type Splitter struct {
	line []byte // begun, not ended yet
	over int    // bytes of line beyond MaxLine
}

// Take splits b and gives add every line that has ended; what it gives is valid
// until add returns.
func (s *Splitter) Take(b []byte, add func(line []byte, more int)) {
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		part := b
		if end >= 0 {
			part = b[:end]
		}
		room := min(len(part), MaxLine-len(s.line))
		s.line = append(s.line, part[:room]...)
		s.over += len(part) - room
		if end < 0 {
			return
		}
		s.end(add)
		b = b[end+1:]
	}
}

// Flush ends a line that the stream has left without an end.
func (s *Splitter) Flush(add func(line []byte, more int)) {
	if len(s.line) > 0 {
		s.end(add)
	}
}

func (s *Splitter) end(add func([]byte, int)) {
	add(s.line, s.over)
	s.line, s.over = s.line[:0], 0
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
