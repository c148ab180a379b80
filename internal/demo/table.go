package demo

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// The live table has a line for each side; the same columns serve the lines that
// are printed where there is no terminal.
const liveHeader = "             p50       p95       p99    failed  Claude failed  in deploys"

// width is what fits on a terminal of 80 columns beside the margin; the live part
// must keep within it, or drawing over it would leave remains.
const width = 76

func liveRow(r *result) string {
	f := r.figures()
	if f.Requests == 0 {
		return fmt.Sprintf("%-6s  %s", r.side.key, "waits for its turn")
	}
	deploys := "-"
	if r.deploys.Summary(nil).Requests > 0 {
		deploys = fmt.Sprint(f.DeployFailed)
	}
	return fmt.Sprintf("%-6s %9s %9s %9s %9s %14s %11s", r.side.key,
		shortMS(f.P50), shortMS(f.P95), shortMS(f.P99), percent(f.ErrorRate), percent(f.ClaudeErrorRate), deploys)
}

// begin announces the slices.
func (s *screen) begin(m *measurement) {
	s.say("")
	s.say("  %d slices of %s, before and after in turn; a deploy in the middle of each", 2*m.opts.Slices, m.opts.Slice)
	s.say("")
	if !s.live {
		s.say("         %s", liveHeader)
	}
}

// follow shows a slice until the function that it returns is called: on a terminal
// the whole table, live; elsewhere its side's line at the end.
func (s *screen) follow(m *measurement, now *result, n int) (stop func()) {
	slice := 2*n + 1
	if now == m.sides[1] {
		slice++
	}
	began := time.Now()
	stopped := s.refresh(500*time.Millisecond, func() {
		lines := []string{"  " + s.in(dim, liveHeader)}
		for _, r := range m.sides {
			style := plain
			if r == now {
				style = bold
			}
			lines = append(lines, "  "+s.in(style, liveRow(r)))
		}
		done := (float64(slice-1) + min(1, float64(time.Since(began))/float64(m.opts.Slice))) / float64(2*m.opts.Slices)
		lines = append(lines, "", "  "+progress(done, 24)+s.in(dim, fmt.Sprintf("  slice %d of %d: %s", slice, 2*m.opts.Slices, now.side.title)))
		s.draw(lines...)
	})
	return func() {
		stopped()
		if !s.live {
			s.say("  %2d/%-2d  %s", slice, 2*m.opts.Slices, liveRow(now))
		}
	}
}

// end takes the live table away.
func (s *screen) end() { s.draw() }

func progress(share float64, width int) string {
	full := int(share * float64(width))
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

// table prints what was found, and how.
func (s *screen) table(m *measurement) {
	before, after := m.sides[0], m.sides[1]
	b, a := before.figures(), after.figures()
	row := func(name, left, right, change string) {
		s.say("  %-22s %15s  %15s   %s", name, left, right, change)
	}
	s.say("")
	s.say("  %s", s.in(bold, fmt.Sprintf("%-22s %15s  %15s", "", "before", "after")))
	s.say("  %s", s.in(dim, fmt.Sprintf("%-22s %15s  %15s", "unitehub", "bare", "behind Mainstay")))
	s.say("  %s", s.in(dim, strings.Repeat("-", width)))
	row("API p50", shortMS(b.P50), shortMS(a.P50), s.ratio(b.P50, a.P50))
	row("API p95", shortMS(b.P95), shortMS(a.P95), s.ratio(b.P95, a.P95))
	row("API p99", shortMS(b.P99), shortMS(a.P99), s.ratio(b.P99, a.P99))
	row("failed requests", percent(b.ErrorRate), percent(a.ErrorRate), s.verdict(b.ErrorRate, a.ErrorRate))
	row("failed Claude calls", percent(b.ClaudeErrorRate), percent(a.ClaudeErrorRate), s.verdict(b.ClaudeErrorRate, a.ClaudeErrorRate))
	row("failed in deploys", before.inDeploys(), after.inDeploys(),
		s.verdict(float64(b.DeployFailed), float64(a.DeployFailed)))
	row("answered well", fmt.Sprintf("%.1f/s", b.RPS), fmt.Sprintf("%.1f/s", a.RPS), "")
	row("requests", fmt.Sprint(b.Requests), fmt.Sprint(a.Requests), "")
	s.say("")
	for _, note := range m.notes() {
		for _, line := range wrap(note) {
			s.say("  %s", s.in(dim, line))
		}
	}
	for _, doubt := range m.doubts() {
		for _, line := range wrap("doubt: " + doubt) {
			s.say("  %s", s.in(red, line))
		}
	}
	s.say("")
}

// inDeploys says how many requests failed in how many deploys, and whether some of
// those came to no end.
func (r *result) inDeploys() string {
	all := len(r.windows)
	text := fmt.Sprintf("%d in %d", r.figures().DeployFailed, all-len(r.undone))
	if len(r.undone) > 0 {
		text += fmt.Sprintf(" of %d", all)
	}
	return text
}

// notes say how the figures came about, a paragraph each.
func (m *measurement) notes() []string {
	source := "as asked for"
	if m.capacity > 0 {
		source = fmt.Sprintf("%.0f%% of the %.0f/s that the bare app can do", 100*m.rate/m.capacity, m.capacity)
	}
	notes := []string{
		fmt.Sprintf("Load: the same requests to both (seed %d), %.0f/s, %s; open loop, so latency runs from when a request was due. %s of %s each, in turn.",
			m.opts.Seed, m.rate, source, several(m.opts.Slices, "slice"), m.opts.Slice),
		fmt.Sprintf("Claude: a fake, about %s an answer; %s of its calls fail (529, 429, 500, 502, 504, reset). The API's percentiles are without the requests that call it, which took:",
			claudeLatency, percent(m.opts.FaultRate)),
	}
	for _, r := range m.sides {
		s := r.all.Summary(isClaude)
		notes = append(notes, fmt.Sprintf("  %-7s p50 %s, p95 %s (%d of %d answered)", r.side.key, short(s.P50), short(s.P95), s.OK, s.Requests))
	}
	notes = append(notes, "Deploys: before by SIGTERM, then start; after by `mainstay deploy`. They took:")
	for _, r := range m.sides {
		var each []string
		for _, w := range r.windows {
			each = append(each, short(w))
		}
		notes = append(notes, fmt.Sprintf("  %-7s %s%s", r.side.key, strings.Join(each, ", "), causes(r.deploys.Summary(nil).Causes)))
	}
	return notes
}

// wrap breaks a paragraph into lines that fit. One that fits stays as it is, with
// the spaces at its head.
func wrap(text string) (lines []string) {
	if utf8.RuneCountInString(text) <= width {
		return []string{text}
	}
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// several is "1 slice" or "3 slices".
func several(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// causes says why requests failed during deploys, Claude's own faults apart.
func causes(of map[string]int64) string {
	var parts []string
	for _, cause := range sortedKeys(of) {
		if cause != claudeCause {
			parts = append(parts, fmt.Sprintf("%d %s", of[cause], cause))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (failed: " + strings.Join(parts, ", ") + ")"
}

// ratio compares two latencies; less than a twentieth apart is no difference that
// this demo can tell.
func (s *screen) ratio(before, after float64) string {
	switch {
	case before <= 0 || after <= 0:
		return ""
	case after < before*0.95:
		return s.in(green, fmt.Sprintf("%.1f times faster", before/after))
	case after > before*1.05:
		return s.in(red, fmt.Sprintf("%.1f times slower", after/before))
	}
	return s.in(dim, "no change")
}

// verdict compares two figures of which less is better.
func (s *screen) verdict(before, after float64) string {
	switch {
	case after == 0 && before > 0:
		return s.in(green, "none left")
	case after < before:
		return s.in(green, "fewer")
	case after > before:
		return s.in(red, "more")
	}
	return s.in(dim, "no change")
}

func short(d time.Duration) string { return shortMS(d.Seconds() * 1000) }

// shortMS shows milliseconds with three digits that mean something.
func shortMS(ms float64) string {
	switch {
	case ms == 0:
		return "-"
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.2f s", ms/1000)
}

func percent(share float64) string { return fmt.Sprintf("%.2f %%", 100*share) }
