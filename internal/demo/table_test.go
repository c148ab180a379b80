package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/load"
)

// found makes a measurement out of round figures.
func found() *measurement {
	begin := time.Unix(0, 0)
	add := func(t *load.Tally, kind string, n int, latency time.Duration, v load.Verdict, cause string) {
		for range n {
			t.Add(load.Outcome{Kind: kind, Due: begin, Sent: begin, Done: begin.Add(latency), Verdict: v, Cause: cause})
		}
	}
	m := &measurement{opts: Options{Seed: 7, Slices: 3, Slice: 10 * time.Second, FaultRate: 0.05}, rate: 70, capacity: 100}
	for i, key := range []string{"before", "after"} {
		r := &result{
			side: &side{key: key, title: key, program: &program{name: "the app"}},
			all:  load.NewTally(), deploys: load.NewTally(), took: 30 * time.Second,
			windows: []time.Duration{time.Second, 2 * time.Second, 3 * time.Second},
		}
		add(r.all, "contact", 1000, time.Duration(20-10*i)*time.Millisecond, load.OK, "")
		add(r.all, analyze, 95+5*i, 150*time.Millisecond, load.OK, "")
		m.sides = append(m.sides, r)
	}
	before := m.sides[0]
	add(before.all, analyze, 5, time.Millisecond, load.HTTPError, claudeCause)
	add(before.all, "contact", 10, time.Millisecond, load.TransportError, "refused")
	add(before.deploys, "contact", 10, time.Millisecond, load.TransportError, "refused")
	add(before.deploys, analyze, 1, time.Millisecond, load.HTTPError, claudeCause)
	return m
}

func TestTheFiguresCountWhatTheirNamesSay(t *testing.T) {
	m := found()
	want := figures{
		P50: 20.015, P95: 20.015, P99: 20.015, RPS: 36.5, ErrorRate: 0.013514, ClaudeErrorRate: 0.05,
		DeployFailed: 10, Requests: 1110,
	}
	if diff := cmp.Diff(want, m.sides[0].figures()); diff != "" {
		t.Error(diff)
	}
	want = figures{P50: 10.007, P95: 10.007, P99: 10.007, RPS: 36.67, Requests: 1100}
	if diff := cmp.Diff(want, m.sides[1].figures()); diff != "" {
		t.Error(diff)
	}
}

func TestTheReportHasTheKeysThatProgramsRelyOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "demo.json")
	if err := writeReport(path, found()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Before, After map[string]float64 }
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := []string{"claude_error_rate", "deploy_failed", "error_rate", "p50_ms", "p95_ms", "p99_ms", "requests", "rps"}
	for _, side := range []map[string]float64{got.Before, got.After} {
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(side))); diff != "" {
			t.Error(diff)
		}
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("left %v beside the report", files)
	}
	if err := writeReport(filepath.Join(t.TempDir(), "nowhere", "demo.json"), found()); err == nil {
		t.Error("a report in a folder that is not there was written")
	}
}

func TestATableInAFileIsPlainAndAligned(t *testing.T) {
	var out bytes.Buffer
	newScreen(&out).table(found())
	got := out.String()
	if strings.Contains(got, "\x1b") {
		t.Error("there are escape sequences in a file")
	}
	for _, want := range []string{
		"                                  before            after\n",
		"  API p95                        20.0 ms          10.0 ms   2.0 times faster\n",
		"  failed requests                 1.35 %           0.00 %   none left\n",
		"  failed in deploys              10 in 3           0 in 3   none left\n",
		"    before  1.00 s, 2.00 s, 3.00 s (failed: 10 refused)\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the table lacks %q:\n%s", want, got)
		}
	}
	for line := range strings.Lines(got) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
			t.Errorf("a line of %d characters: %s", n, line)
		}
	}
}

func TestTheLivePartIsDrawnOver(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, live: true}
	s.draw("one", "two")
	s.draw("three")
	s.say("kept")
	s.draw()
	if got, want := out.String(), "one\ntwo\n\x1b[2A\x1b[Jthree\n\x1b[1A\x1b[Jkept\n"; got != want {
		t.Errorf("wrote %q, want %q", got, want)
	}
}

func TestAStepThatFailsSaysSo(t *testing.T) {
	var out bytes.Buffer
	broken := errors.New("broken")
	if err := newScreen(&out).step("PostgreSQL", func() (string, error) { return "", broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if got := out.String(); !strings.HasPrefix(got, "  failed  PostgreSQL") {
		t.Errorf("said %q", got)
	}
}

func TestWhatMakesTheFiguresDoubtfulIsSaid(t *testing.T) {
	m := found()
	if got := m.doubts(); len(got) != 0 {
		t.Errorf("doubts without a reason: %v", got)
	}
	m.loadavg = 1000
	begin := time.Unix(0, 0)
	m.sides[1].all.Add(load.Outcome{Kind: "contact", Due: begin, Sent: begin, Done: begin, Verdict: load.Saturated})
	for range 100 {
		m.sides[1].all.Add(load.Outcome{Kind: "contact", Due: begin, Sent: begin.Add(time.Second), Done: begin.Add(time.Second)})
	}
	m.sides[0].undone = []error{errors.New("deploy: no")}
	m.sides[0].side.program.crashes = 2
	got := strings.Join(m.doubts(), "\n")
	for _, want := range []string{"busy", "1 requests were never sent", "the load generator itself was late", "deploy: no", "started again, 2 times"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
}

func TestTheLiveTableFitsATerminal(t *testing.T) {
	m := found()
	lines := append(m.notes(), liveHeader)
	for _, r := range m.sides {
		r.side.title = "unitehub, behind Mainstay"
		lines = append(lines, liveRow(r))
	}
	for _, line := range lines {
		for _, part := range wrap(line) {
			if n := len([]rune(part)); n > width {
				t.Errorf("%d characters: %s", n, part)
			}
		}
	}
	if a, b := len(liveHeader), len(liveRow(m.sides[0])); a != b {
		t.Errorf("the header has %d characters, a row %d", a, b)
	}
}
