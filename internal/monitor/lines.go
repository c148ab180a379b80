package monitor

import (
	"log/slog"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// lines counts what the app writes, by color.
type lines struct {
	mu     sync.Mutex
	colors map[string]*script
}

// A script is what one color has written.
type script struct {
	total  [3]uint64 // info, warn, error
	second [int64(Reach/time.Second) + 2]lineCell
}

type lineCell struct {
	second int64
	errors uint32
	tenths uint16 // which tenths of the second had an error
}

// Line counts a line that a color's copy of the app wrote.
func (m *Monitor) Line(color string, level slog.Level) {
	at := time.Since(m.start)
	m.lines.mu.Lock()
	defer m.lines.mu.Unlock()
	s := m.lines.colors[color]
	if s == nil {
		if len(m.lines.colors) >= maxColors {
			return
		}
		if m.lines.colors == nil {
			m.lines.colors = map[string]*script{}
		}
		s = &script{}
		m.lines.colors[strings.Clone(color)] = s
	}
	switch {
	case level < slog.LevelWarn:
		s.total[0]++
		return
	case level < slog.LevelError:
		s.total[1]++
		return
	}
	s.total[2]++
	n := int64(at / time.Second)
	c := &s.second[n%int64(len(s.second))]
	if c.second != n {
		*c = lineCell{second: n}
	}
	c.errors++
	c.tenths |= 1 << (at % time.Second / (100 * time.Millisecond))
}

// Errors counts the lines at level error that a color has written since a moment,
// as far back as Reach, and the tenths of a second in which it wrote any: a stack
// trace is many lines and one mishap.
func (m *Monitor) Errors(color string, since time.Time) (lines, bursts uint64) {
	now := m.now()
	first := max(m.second(since), now-int64(Reach/time.Second)+1)
	m.lines.mu.Lock()
	defer m.lines.mu.Unlock()
	s := m.lines.colors[color]
	if s == nil {
		return 0, 0
	}
	for _, c := range s.second {
		if c.second >= first && c.second <= now {
			lines += uint64(c.errors)
			bursts += uint64(bits.OnesCount16(c.tenths))
		}
	}
	return lines, bursts
}

// Levels tells how much the colors have written.
func (m *Monitor) Levels() (ls []telemetry.Level) {
	m.lines.mu.Lock()
	defer m.lines.mu.Unlock()
	for color, s := range m.lines.colors {
		for i, level := range []string{"info", "warn", "error"} {
			ls = append(ls, linesLevel(color, level, s.total[i]))
		}
	}
	if len(ls) == 0 {
		ls = append(ls, linesLevel("blue", "info", 0))
	}
	slices.SortFunc(ls, func(a, b telemetry.Level) int {
		return strings.Compare(a.Labels[0].Value+a.Labels[1].Value, b.Labels[0].Value+b.Labels[1].Value)
	})
	return ls
}

func linesLevel(color, level string, n uint64) telemetry.Level {
	return telemetry.Level{
		Name: "mainstay_app_lines_total", Help: "Lines that the app has written, by color and by the level that they tell; what tells none is info.",
		Labels: []telemetry.Label{{Name: "color", Value: color}, {Name: "level", Value: level}}, Value: float64(n), Counter: true,
	}
}
