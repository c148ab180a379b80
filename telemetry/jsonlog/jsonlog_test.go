package jsonlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

var start = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// wrote runs do with a sink and returns the lines it wrote: by slog's own handler and by
// ours they must say the same.
func wrote(t *testing.T, which Which, do func(*Sink)) (lines []map[string]any) {
	t.Helper()
	lines = wroteBy(t, which, do, func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) })
	if diff := cmp.Diff(lines, wroteBy(t, which, do, func(w io.Writer) slog.Handler { return NewHandler(w, slog.LevelInfo) })); diff != "" {
		t.Errorf("slog's lines and ours (-slog +ours):\n%s", diff)
	}
	return lines
}

func wroteBy(t *testing.T, which Which, do func(*Sink), handler func(io.Writer) slog.Handler) (lines []map[string]any) {
	t.Helper()
	var out bytes.Buffer
	do(New(slog.New(handler(&out)), which))
	for text := range strings.Lines(out.String()) {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		lines = append(lines, line)
	}
	return lines
}

func request() *telemetry.Exchange {
	x := &telemetry.Exchange{
		Plane: "edge", ID: "r-1", Route: "app", Color: "blue", Caller: "203.0.113.7", Code: "upstream_reset", Blame: telemetry.BlameUpstream,
		Err: errors.New("read reply: connection reset"), Start: start, Took: 1234567 * time.Nanosecond, Waited: 2 * time.Millisecond,
		FirstByte: time.Millisecond, BytesIn: 5, BytesOut: 7,
		HTTP: telemetry.HTTP{Method: "GET", Host: "example.com", Path: "/a", Proto: "HTTP/1.1", Status: 502, Target: "127.0.0.1:3000"},
	}
	x.Trace.Continue("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "")
	x.Trace.SpanID = [8]byte{1, 2, 3, 4, 5, 6, 7, 8}
	x.Try(telemetry.Attempt{Cause: "refused"})
	x.Try(telemetry.Attempt{Cause: "reset", Waited: 251 * time.Millisecond})
	x.Try(telemetry.Attempt{})
	return x
}

func TestARequestIsOneLineWithAllThatIsKnown(t *testing.T) {
	got := wrote(t, All, func(s *Sink) { s.Record(request()) })
	want := []map[string]any{{
		"time": "2026-11-23T10:00:00.001234567Z", "level": "ERROR", "msg": "request",
		"plane": "edge", "id": "r-1", "route": "app", "method": "GET", "host": "example.com", "path": "/a", "proto": "HTTP/1.1",
		"status": 502.0, "target": "127.0.0.1:3000", "code": "upstream_reset", "blame": "upstream", "color": "blue",
		"caller": "203.0.113.7", "took_ms": 1.234, "waited_ms": 2.0, "first_byte_ms": 1.0, "bytes_in": 5.0, "bytes_out": 7.0,
		"attempts": 3.0, "causes": "refused,reset", "waits_ms": "0,251,0",
		"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "0102030405060708",
		"err": "read reply: connection reset",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestAQueryAndACallHaveTheirOwnMessageAndNoEmptyKeys(t *testing.T) {
	got := wrote(t, All, func(s *Sink) {
		s.Record(&telemetry.Exchange{Plane: "pooler", Route: "app", Code: "ok", Start: start,
			DB: telemetry.DB{Database: "app", User: "u", Command: "SELECT", Rows: 3, Queries: 1}})
		s.Record(&telemetry.Exchange{Plane: "claude", Code: "ok", Start: start, HTTP: telemetry.HTTP{Stream: true},
			GenAI: telemetry.GenAI{Model: "m", InputTokens: 1, CacheReadTokens: 2, CacheWriteTokens: 3, OutputTokens: 4, StopReason: "end_turn", UpstreamID: "req_1", ErrorType: "e", Saved: "retry"}})
	})
	want := []map[string]any{
		{"time": "2026-11-23T10:00:00Z", "level": "INFO", "msg": "query", "plane": "pooler", "route": "app", "code": "ok", "took_ms": 0.0,
			"database": "app", "user": "u", "command": "SELECT", "rows": 3.0, "queries": 1.0},
		{"time": "2026-11-23T10:00:00Z", "level": "INFO", "msg": "call", "plane": "claude", "code": "ok", "took_ms": 0.0, "stream": true,
			"model": "m", "input_tokens": 1.0, "cache_read_tokens": 2.0, "cache_write_tokens": 3.0, "output_tokens": 4.0,
			"stop_reason": "end_turn", "upstream_id": "req_1", "error_type": "e", "saved_by": "retry"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestWhichChoosesExchangesAndNeverSilencesEvents(t *testing.T) {
	blames := []telemetry.Blame{telemetry.BlameNone, telemetry.BlameClient, telemetry.BlameMainstay, telemetry.BlameUpstream}
	for which, want := range map[Which]int{All: 5, Errors: 3, None: 1} {
		lines := wrote(t, None, func(s *Sink) {
			s.Choose(which)
			for _, b := range blames {
				s.Record(&telemetry.Exchange{Plane: "edge", Blame: b, Start: start})
			}
			s.Emit(telemetry.Event{Time: start, Part: "app", Name: "switched"})
		})
		if len(lines) != want {
			t.Errorf("%v wrote %d lines, want %d", which, len(lines), want)
		}
	}
}

func TestParseWhichReadsWhatStringWrites(t *testing.T) {
	for _, w := range []Which{All, Errors, None} {
		if got, err := ParseWhich(w.String()); err != nil || got != w {
			t.Errorf("%v was read as %v, %v", w, got, err)
		}
	}
	if _, err := ParseWhich("some"); err == nil || !strings.Contains(err.Error(), "all, errors and none") {
		t.Errorf("got %v", err)
	}
}

func TestAnEventIsALineWithItsAttributesAndWithoutSecrets(t *testing.T) {
	got := wrote(t, All, func(s *Sink) {
		s.Emit(telemetry.Event{Time: start, Part: "deploy", Name: "switched", Color: "green", Level: slog.LevelWarn, Text: "green serves now",
			Attrs: []slog.Attr{slog.String("version", "1.4"), slog.Any("key", setting.Secret("hunter2"))}})
		s.Emit(telemetry.Event{Part: "deploy", Name: "quiet", Level: slog.LevelDebug})
	})
	want := []map[string]any{{"time": "2026-11-23T10:00:00Z", "level": "WARN", "msg": "event", "part": "deploy", "event": "switched",
		"color": "green", "text": "green serves now", "version": "1.4", "key": setting.Masked}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestLinesOfManyGoroutinesDoNotMix(t *testing.T) {
	for name, handler := range map[string]func(io.Writer) slog.Handler{
		"slog": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
		"ours": func(w io.Writer) slog.Handler { return NewHandler(w, slog.LevelInfo) },
	} {
		t.Run(name, func(t *testing.T) { mixes(t, handler) })
	}
}

func mixes(t *testing.T, handler func(io.Writer) slog.Handler) {
	lines := wroteBy(t, All, func(s *Sink) {
		var wg sync.WaitGroup
		for _, plane := range []string{"edge", "pooler", "claude", "edge"} {
			wg.Go(func() {
				for range 200 {
					x := telemetry.Begin(plane)
					x.ID, x.Route = plane, plane
					x.End(s)
				}
			})
		}
		wg.Wait()
	}, handler)
	if len(lines) != 800 {
		t.Fatalf("%d lines, want 800", len(lines))
	}
	for _, l := range lines {
		if l["plane"] != l["id"] || l["plane"] != l["route"] {
			t.Fatalf("a mixed line: %v", l)
		}
	}
}

func TestALineCostsFewAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector empties pools at random; the plain run counts")
	}
	x := request()
	x.Attempts, x.Tries, x.Err = nil, 0, nil
	s := New(slog.New(NewHandler(io.Discard, slog.LevelInfo)), All)
	if n := allocations(func() { s.Record(x) }); n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
	q := NewQueue(io.Discard, asJSON)
	defer q.Close()
	s = sinkOf(q)
	if n := allocations(func() { s.Record(x) }); n > 0 {
		t.Errorf("%v allocations for a line that is queued, want none", n)
	}
	s = New(slog.New(slog.NewJSONHandler(io.Discard, nil)), All)
	if n := allocations(func() { s.Record(x) }); n > 5 {
		t.Errorf("%v allocations by slog, want at most 5", n)
	}
	s.Choose(Errors)
	x.Blame = telemetry.BlameNone
	if n := allocations(func() { s.Record(x) }); n > 0 {
		t.Errorf("%v allocations for a line that is not written", n)
	}
}

// allocations is the least of several measurements: a collection in the middle of
// one empties the pools, which is no cost of ours.
func allocations(do func()) float64 {
	least := testing.AllocsPerRun(50, do)
	for range 5 {
		least = min(least, testing.AllocsPerRun(50, do))
	}
	return least
}

func BenchmarkRecord(b *testing.B) {
	record := func(name string, h slog.Handler, lost func() int64) {
		b.Run(name, func(b *testing.B) {
			s := New(slog.New(h), All)
			x := request()
			before := lost()
			b.ReportAllocs()
			for b.Loop() {
				s.Record(x)
			}
			b.ReportMetric(float64(lost()-before)/float64(b.N), "lost/op")
		})
	}
	none := func() int64 { return 0 }
	record("slog", slog.NewJSONHandler(io.Discard, nil), none)
	record("ours", asJSON(io.Discard), none)
	record("ours into a pipe", asJSON(pipe(b)), none)
	for name, to := range map[string]io.Writer{"queued": io.Discard, "queued into a pipe": pipe(b)} {
		q := NewQueue(to, asJSON)
		defer q.Close()
		record(name, asJSON(q), q.Dropped)
	}
}

// At 30,000 lines a second: what who logs waits for each.
func BenchmarkPaced(b *testing.B) {
	q := NewQueue(pipe(b), asJSON)
	defer q.Close()
	for name, h := range map[string]slog.Handler{"into a pipe": asJSON(pipe(b)), "queued into a pipe": asJSON(q)} {
		b.Run(name, func(b *testing.B) {
			s := New(slog.New(h), All)
			x := request()
			var took time.Duration
			for b.Loop() {
				for rest := time.Now(); time.Since(rest) < 33*time.Microsecond; {
				}
				at := time.Now()
				s.Record(x)
				took += time.Since(at)
			}
			b.ReportMetric(float64(took)/float64(b.N), "record-ns/op")
		})
	}
}

// pipe is one that is read.
func pipe(b *testing.B) *os.File {
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	b.Cleanup(func() { w.Close() })
	return w
}

func asJSON(w io.Writer) slog.Handler { return NewHandler(w, slog.LevelInfo) }

// Our lines are slog's, byte for byte, whatever an exchange holds.
func FuzzALineIsSlogs(f *testing.F) {
	f.Add("r-1", "203.0.113.7", "read: reset", int64(1234567), int64(5), int64(120_000), true)
	f.Add("\"\\\n\r\t\x00\x1f\x7f", "a\u2028b\u2029", "\xff\xfe \ufffd é 😀 <>&", int64(0), int64(-1), int64(1), false)
	f.Add("", "", "", int64(-5_000_000), int64(1)<<62, int64(1e15), true)
	f.Add("", "", "", int64(1)<<62, int64(-1)<<63, int64(999), true)
	f.Fuzz(func(t *testing.T, a, b, c string, took, n, cost int64, stream bool) {
		x := request()
		x.ID, x.Caller, x.Err, x.Took, x.Waited, x.BytesIn = a, b, errors.New(c), time.Duration(took), time.Duration(n), n
		x.HTTP.Path, x.HTTP.Stream, x.GenAI.CostNanoUSD, x.GenAI.Model, x.DB.Client = c, stream, cost, a+b, time.Duration(cost)
		var slogs, ours bytes.Buffer
		New(slog.New(slog.NewJSONHandler(&slogs, nil)), All).Record(x)
		New(slog.New(NewHandler(&ours, slog.LevelInfo)), All).Record(x)
		if slogs.String() != ours.String() {
			t.Errorf("slog: %s\nours: %s", slogs.String(), ours.String())
		}
	})
}

func TestTheHandlerIsSlogsForAllElse(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(NewHandler(&out, slog.LevelWarn))
	log.Info("not told")
	log.With("a", 1).WithGroup("g").Warn("told", "b", 2)
	New(log.With("part", "x"), All).Record(&telemetry.Exchange{Plane: "edge", Blame: telemetry.BlameUpstream, Start: start})
	want := `"level":"WARN","msg":"told","a":1,"g":{"b":2}}`
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.HasSuffix(lines[0], want) || !strings.Contains(lines[1], `"part":"x","plane":"edge"`) {
		t.Errorf("%q", lines)
	}
}
