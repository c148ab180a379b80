package demo

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"
)

// A screen is where the demo shows itself. On a terminal it has color and a live
// part at its foot that is drawn over; anywhere else it is plain lines.
type screen struct {
	out  io.Writer
	live bool

	mu    sync.Mutex // over what follows, and the order of writes
	drawn int        // lines of the live part that stand there now
}

func newScreen(out io.Writer) *screen {
	return &screen{out: out, live: isTerminal(out)}
}

// isTerminal tells whether out shows what is written to a person.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("CI") == ""
}

// The terminal's ways to speak; all of them vanish where there is no terminal.
const (
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	plain = "\x1b[0m"
)

// in shows text in a style, after the width has been settled.
func (s *screen) in(style, text string) string {
	if !s.live || os.Getenv("NO_COLOR") != "" {
		return text
	}
	return style + text + plain
}

// say prints a line above the live part.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	// Nobody can be told that the terminal is gone.
	_, _ = fmt.Fprintf(s.out, format+"\n", args...)
}

// draw replaces the live part. Without a terminal there is none.
func (s *screen) draw(lines ...string) {
	if !s.live {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	for _, line := range lines {
		_, _ = fmt.Fprintln(s.out, line)
	}
	s.drawn = len(lines)
}

// wipe removes the live part; mu is held.
func (s *screen) wipe() {
	if s.drawn > 0 {
		_, _ = fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.drawn)
		s.drawn = 0
	}
}

// refresh calls show every period until the function that it returns is called.
func (s *screen) refresh(period time.Duration, show func()) (stop func()) {
	if !s.live {
		return func() {}
	}
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			show()
			select {
			case <-quit:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(quit)
		done.Wait()
	}
}

// heading is the first thing a person sees.
func (s *screen) heading(o Options) {
	s.say("")
	s.say("  %s  what changes when the same app stands behind it", s.in(bold, "Mainstay"))
	s.say("  %s", s.in(dim, fmt.Sprintf("%d CPUs, %s/%s, seed %d", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, o.Seed)))
	s.say("")
}

// step does one step of the preparation and says how it went.
func (s *screen) step(name string, do func() (detail string, err error)) error {
	began := time.Now()
	stop := s.while(name)
	detail, err := do()
	stop()
	took := fmt.Sprintf("%5.1f s", time.Since(began).Seconds())
	if err != nil {
		s.say("  %s  %-26s %s", s.in(red, "failed"), name, s.in(dim, took))
		return err
	}
	s.say("  %s  %-26s %s  %s", s.in(green, "ready"), name, s.in(dim, took), detail)
	return nil
}

// while shows that something is under way until the function that it returns is
// called.
func (s *screen) while(name string) (stop func()) {
	began := time.Now()
	quit := s.refresh(200*time.Millisecond, func() {
		s.draw(fmt.Sprintf("  %s    %-26s %s", s.in(dim, "…"), name, s.in(dim, fmt.Sprintf("%5.1f s", time.Since(began).Seconds()))))
	})
	return func() {
		quit()
		s.draw()
	}
}
