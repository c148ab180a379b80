package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/deploy"
)

// live shows a deploy on a terminal as one block that is drawn anew in its place:
// the phases with ticks, who has the traffic, what the watch sees, and the time.
// Its methods may be called from several goroutines.
type live struct {
	out   *os.File
	began time.Time

	mu       sync.Mutex
	at       deploy.Phase
	target   string
	said     map[deploy.Phase]string
	traffic  string
	evidence []string
	drawn    int // lines of the block on the screen
}

// The way of a deploy that goes well.
var way = []deploy.Phase{deploy.Preparing, deploy.Warming, deploy.Verifying, deploy.Switching, deploy.Watching, deploy.Settled}

func newLive(out *os.File) *live {
	return &live{out: out, began: time.Now(), said: map[deploy.Phase]string{}}
}

// follow looks at the status every second until ctx ends.
func (v *live) follow(ctx context.Context, status func(context.Context) (admin.Status, error)) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if st, err := status(ctx); err == nil {
			v.look(st)
		}
		v.draw(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (v *live) step(p deploy.Progress) {
	v.mu.Lock()
	if p.Phase != "" {
		v.at = p.Phase
	}
	if p.Target != "" {
		v.target = p.Target
	}
	v.said[v.at] = p.Text
	v.mu.Unlock()
	v.draw(p.Time)
}

func (v *live) look(st admin.Status) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.traffic = ""
	for _, c := range []*deploy.Copy{st.App.Live, st.App.Old} {
		if c != nil {
			v.traffic += fmt.Sprintf("%s %d%% (%s)   ", c.ID, c.Share, c.State)
		}
	}
	if st.App.Deploying != nil {
		v.evidence = st.App.Deploying.Evidence
	}
}

// block is what is to be seen at a moment.
func (v *live) block(now time.Time) []string {
	title := "deploy"
	if v.target != "" {
		title += " of " + v.target
	}
	lines := []string{fmt.Sprintf("%s · %s", title, age(now.Sub(v.began)))}
	before := true
	for _, p := range way {
		mark := "✓"
		switch {
		case p == v.at && p.Final():
		case p == v.at:
			mark, before = "●", false
		case !before || v.at == "" || v.at.Final() && v.at != deploy.Settled && v.said[p] == "":
			mark = " "
		}
		lines = append(lines, strings.TrimRight(fmt.Sprintf("  %s %-10s %s", mark, p, v.said[p]), " "))
	}
	if v.at.Final() && v.at != deploy.Settled {
		lines = append(lines, fmt.Sprintf("  ✗ %-10s %s", v.at, v.said[v.at]))
	}
	if v.traffic != "" {
		lines = append(lines, "  traffic      "+strings.TrimSpace(v.traffic))
	}
	for _, e := range v.evidence {
		lines = append(lines, "  watch        "+e)
	}
	return lines
}

func (v *live) draw(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	width := 80
	if size, err := unix.IoctlGetWinsize(int(v.out.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		width = int(size.Col)
	}
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", v.drawn)
	}
	lines := v.block(now)
	for _, line := range lines {
		if r := []rune(strings.ReplaceAll(line, "\n", " ")); len(r) >= width {
			line = string(r[:width-2]) + "…"
		} else {
			line = string(r)
		}
		b.WriteString(line + "\n")
	}
	v.drawn = len(lines)
	_, _ = io.WriteString(v.out, b.String()) // a terminal that is gone shows nothing
}
