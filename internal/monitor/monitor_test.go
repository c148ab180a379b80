package monitor

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

func request(took time.Duration) *telemetry.Exchange {
	return &telemetry.Exchange{Plane: "edge", Color: "blue", Code: "ok", Took: took}
}

func TestASnapshotSumsUpTheWindowThatEndsNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		for second := range 120 {
			for range 10 {
				m.Record(request(20 * time.Millisecond))
			}
			if second%10 == 0 {
				x := request(time.Second)
				x.Color, x.Code, x.Blame = "green", "target_broke", telemetry.BlameUpstream
				m.Record(x)
			}
			time.Sleep(time.Second)
		}
		got := m.Snapshot(time.Minute).Planes["edge"]
		if got.Count != 59*10+5 { // the second under way has nothing yet
			t.Errorf("%d in the last minute", got.Count)
		}
		if math.Abs(got.Rate-10.1) > 0.1 || got.Errors != got.Colors["green"].Count || got.ErrorRate == 0 {
			t.Errorf("rate %v, errors %d of %v", got.Rate, got.Errors, got.ErrorRate)
		}
		if got.P50 < 19 || got.P50 > 21 || got.Colors["green"].P99 < 970 || got.Colors["green"].P99 > 1030 {
			t.Errorf("p50 %v, green's p99 %v", got.P50, got.Colors["green"].P99)
		}
		if n := got.Codes["ok"] + got.Codes["target_broke"]; n != got.Count || len(got.Codes) != 2 {
			t.Errorf("codes %v", got.Codes)
		}
	})
}

func TestJustAfterTheStartTheRateIsOverTheTimeThereWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		m.Record(request(time.Millisecond))
		if s := m.Snapshot(time.Minute); s.Planes["edge"].Count != 1 || s.Planes["edge"].Rate != 1 || s.Window != 1 {
			t.Errorf("at once: %+v over %v", s.Planes["edge"].Figures, s.Window)
		}
		time.Sleep(3500 * time.Millisecond)
		for range 6 {
			m.Record(request(time.Millisecond))
		}
		if s := m.Snapshot(time.Minute); s.Planes["edge"].Rate != 2 || s.Window != 3.5 {
			t.Errorf("after 3.5 s: rate %v over %v", s.Planes["edge"].Rate, s.Window)
		}
	})
}

func TestWhatIsOlderThanTheWindowIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		m.Record(request(time.Millisecond))
		time.Sleep(Retention - time.Second)
		if n := m.Snapshot(time.Hour).Planes["edge"].Count; n != 1 {
			t.Errorf("%d within the retention, want 1", n)
		}
		time.Sleep(2 * time.Second)
		if n := m.Snapshot(time.Hour).Planes["edge"].Count; n != 0 {
			t.Errorf("%d after the retention, want 0", n)
		}
		for range 3 { // and a slot that comes round again starts from nothing
			time.Sleep(time.Duration(seconds) * time.Second)
			m.Record(request(time.Millisecond))
			if n := m.Snapshot(0).Planes["edge"].Count; n != 1 {
				t.Errorf("%d in the second, want 1", n)
			}
		}
	})
}

func TestEveryPlaneIsThereBeforeAnythingHappened(t *testing.T) {
	s := New().Snapshot(time.Minute)
	for _, name := range []string{"edge", "pooler", "claude"} {
		p, ok := s.Planes[name]
		if !ok || p.Count != 0 || p.P99 != 0 || p.ErrorRate != 0 {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
}

func TestQuantilesAreWithinSixPercent(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() float64{
		"log-normal": func() float64 { return math.Exp(rng.NormFloat64()*1.5 + 9) },
		"uniform":    func() float64 { return 1 + rng.Float64()*1e6 },
		"fast":       func() float64 { return 5 + rng.Float64()*100 },
		"slow":       func() float64 { return 1e8 + rng.Float64()*1e9 },
	} {
		m := New()
		var all []time.Duration
		for range 5000 {
			d := time.Duration(draw()) * time.Microsecond
			all = append(all, d)
			m.Record(request(d))
		}
		slices.Sort(all)
		got := m.Snapshot(Retention).Planes["edge"]
		for q, v := range map[float64]float64{0.5: got.P50, 0.95: got.P95, 0.99: got.P99} {
			want := milliseconds(all[int(math.Ceil(q*5000))-1])
			if math.Abs(v-want)/want > 0.06 {
				t.Errorf("%s: quantile %v is %v, want %v ± 6%%", name, q, v, want)
			}
		}
	}
}

func TestEveryDurationFallsIntoTheBucketWhoseMiddleIsNear(t *testing.T) {
	last := -1
	for us := int64(0); us < 1<<33; us += 1 + us/50 {
		d := time.Duration(us) * time.Microsecond
		i := bucket(d)
		if i < last || i >= buckets {
			t.Fatalf("%v is in bucket %d after %d", d, i, last)
		}
		last = i
		if err := math.Abs(float64(middle(i)-d)) / float64(max(d, 1)); us <= longest && us > 0 && err > 0.033 {
			t.Fatalf("%v is %.1f%% off as %v", d, 100*err, middle(i))
		}
	}
	for _, d := range []time.Duration{-1, math.MinInt64, math.MaxInt64} {
		if i := bucket(d); i < 0 || i >= buckets {
			t.Errorf("%v is in bucket %d", d, i)
		}
	}
}

func TestStreamsAndTunnelsAreCountedAndInNoQuantile(t *testing.T) {
	m := New()
	m.Record(request(10 * time.Millisecond))
	for _, h := range []telemetry.HTTP{{Upgraded: "websocket"}, {Stream: true}} {
		x := request(time.Hour)
		x.HTTP = h
		m.Record(x)
	}
	got := m.Snapshot(time.Minute).Planes["edge"]
	if got.Count != 3 || got.Lasting != 2 || got.P99 > 11 {
		t.Errorf("count %d, lasting %d, p99 %v", got.Count, got.Lasting, got.P99)
	}
}

func TestWaitsAttemptsCausesAndTokensAreSummedUp(t *testing.T) {
	m := New()
	for range 10 {
		x := &telemetry.Exchange{Plane: "claude", Color: "blue", Code: "ok", Took: 2 * time.Second, FirstByte: time.Second, Waited: 100 * time.Millisecond,
			BytesIn: 3, BytesOut: 4, GenAI: telemetry.GenAI{Model: "m", InputTokens: 1, CacheReadTokens: 2, CacheWriteTokens: 3, OutputTokens: 4}}
		x.Try(telemetry.Attempt{Cause: "overloaded"})
		x.Try(telemetry.Attempt{Cause: "reset"})
		x.Try(telemetry.Attempt{})
		m.Record(x)
	}
	f := m.Snapshot(time.Minute).Planes["claude"].Figures
	f.P50, f.P95, f.P99, f.WaitP95, f.FirstByteP50, f.FirstByteP95 = math.Round(f.P50/100), math.Round(f.P95/100), math.Round(f.P99/100), math.Round(f.WaitP95/10), math.Round(f.FirstByteP50/100), math.Round(f.FirstByteP95/100)
	want := Figures{
		Count: 10, Rate: 10, P50: 20, P95: 20, P99: 20, FirstByteP50: 10, FirstByteP95: 10, Waited: 10, WaitP95: 10,
		Attempts: 30, Retries: 20, Causes: map[string]uint64{"overloaded": 10, "reset": 10}, Codes: map[string]uint64{"ok": 10},
		BytesIn: 30, BytesOut: 40, Tokens: &Tokens{Input: 10, CacheRead: 20, CacheWrite: 30, Output: 40},
	}
	if diff := cmp.Diff(want, f); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestColorsAndWordsAreBoundedAndNothingIsLost(t *testing.T) {
	m := New()
	buf := []byte("word-0000")
	for i := range 1000 {
		copy(buf[5:], fmt.Sprintf("%04d", i))
		x := request(time.Millisecond)
		x.Color = unsafe.String(&buf[0], len(buf)) // reused, as planes do
		x.Code = x.Color
		x.Try(telemetry.Attempt{Cause: x.Color})
		m.Record(x)
	}
	got := m.Snapshot(time.Minute).Planes["edge"]
	if len(got.Colors) > maxColors+1 || len(got.Codes) > maxWords || len(got.Causes) > maxWords {
		t.Errorf("%d colors, %d codes, %d causes", len(got.Colors), len(got.Codes), len(got.Causes))
	}
	if got.Count != 1000 || got.Codes["word-0001"] != 1 || got.Codes[other] != 1000-maxWords+1 {
		t.Errorf("count %d, codes %v", got.Count, got.Codes)
	}
}

func TestASeriesHasOnePointForEachWholeStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		for second := range 23 {
			for range second {
				m.Record(request(time.Duration(second) * time.Millisecond))
			}
			time.Sleep(time.Second)
		}
		points := m.Series("edge", 20*time.Second, 5*time.Second)
		var counts []uint64
		for i, p := range points {
			counts = append(counts, p.Count)
			if want := m.start.Add(time.Duration(5*i) * time.Second); !p.Time.Equal(want) {
				t.Errorf("point %d begins at %v, want %v", i, p.Time, want)
			}
		}
		if diff := cmp.Diff([]uint64{0 + 1 + 2 + 3 + 4, 5 + 6 + 7 + 8 + 9, 10 + 11 + 12 + 13 + 14, 15 + 16 + 17 + 18 + 19}, counts); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if p := points[3]; p.Rate != 17 || p.P99 < 18 || p.P99 > 20 {
			t.Errorf("last point %+v", p)
		}
		m.Record(&telemetry.Exchange{Plane: "claude", Code: "ok", HTTP: telemetry.HTTP{Stream: true}, Took: time.Hour, FirstByte: time.Second})
		time.Sleep(time.Second)
		if p := m.Series("claude", time.Second, time.Second)[0]; p.Count != 1 || p.P95 != 0 || p.FirstByteP95 < 970 || p.FirstByteP95 > 1030 {
			t.Errorf("a stream's point %+v", p)
		}
		if n := len(m.Series("edge", time.Hour, time.Second)); n != 24 {
			t.Errorf("%d points of one second, want 24", n)
		}
		if m.Series("no such plane", time.Hour, time.Second) != nil {
			t.Error("an unknown plane has points")
		}
	})
}

func TestSeriesReachBackForTheWholeRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		for range 2 * int(Retention/time.Second) {
			m.Record(request(time.Millisecond))
			time.Sleep(time.Second)
		}
		points := m.Series("edge", Retention, 5*time.Second)
		if len(points) != 60 {
			t.Fatalf("%d points, want 60", len(points))
		}
		for i, p := range points {
			if p.Count != 5 {
				t.Errorf("point %d has %d, want 5", i, p.Count)
			}
		}
	})
}

func TestTheLatestEventsAreKeptNewestFirst(t *testing.T) {
	m := New()
	for i := range maxEvents + 50 {
		m.Emit(telemetry.Event{Part: "app", Name: "restarted", Text: fmt.Sprint(i)})
	}
	got := m.Events()
	if len(got) != maxEvents || got[0].Text != fmt.Sprint(maxEvents+49) || got[maxEvents-1].Text != "50" || got[0].Number != maxEvents+50 {
		t.Errorf("%d events, from %q to %q", len(got), got[0].Text, got[len(got)-1].Text)
	}
	if got[0].Time.IsZero() {
		t.Error("an event has no time")
	}
}

func TestAnEventsAttributesAreBoundedTextWithoutSecrets(t *testing.T) {
	m := New()
	type config struct{ Key setting.Secret }
	attrs := []slog.Attr{
		slog.Any("secret", setting.Secret("hunter2")), slog.Any("config", config{"hunter2"}),
		slog.Duration("took", time.Second), slog.Group("group", slog.Int("n", 3)), slog.String("long", strings.Repeat("x", 1<<20)),
	}
	for i := range 100 {
		attrs = append(attrs, slog.Int(fmt.Sprint("more", i), i))
	}
	m.Emit(telemetry.Event{Name: "n", Text: strings.Repeat("\xff", 1<<20), Attrs: attrs})
	e := m.Events()[0]
	if len(e.Attrs) > maxAttrs || len(e.Attrs["long"]) > maxText+10 || len(e.Text) > maxText+10 {
		t.Errorf("%d attributes, the longest %d, text %d", len(e.Attrs), len(e.Attrs["long"]), len(e.Text))
	}
	if e.Attrs["took"] != "1s" || e.Attrs["group.n"] != "3" || e.Attrs["secret"] != setting.Masked {
		t.Errorf("%v", e.Attrs)
	}
	if text := fmt.Sprint(e); strings.Contains(text, "hunter2") {
		t.Errorf("a secret shows: %.300s", text)
	}
}

func TestConcurrentRecordsLoseNothing(t *testing.T) {
	m := New()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				x := request(time.Duration(i) * time.Microsecond)
				x.Color = []string{"blue", "green"}[g%2]
				m.Record(x)
				if i%100 == 0 {
					m.Snapshot(time.Minute)
					m.Series("edge", time.Minute, time.Second)
					m.Emit(telemetry.Event{Name: "n"})
					m.Events()
				}
			}
		})
	}
	wg.Wait()
	if n := m.Snapshot(Retention).Planes["edge"].Count; n != 4000 {
		t.Errorf("%d counted, want 4000", n)
	}
}

func TestRecordDoesNotAllocateWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		x := request(time.Millisecond)
		m.Record(x)
		if n := testing.AllocsPerRun(100, func() { m.Record(x) }); n > 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	m := New()
	x := request(3 * time.Millisecond)
	b.ReportAllocs()
	for b.Loop() {
		m.Record(x)
	}
}

// full is a monitor whose whole retention is busy in all planes.
func full() *Monitor {
	m := New()
	for _, plane := range []string{"edge", "pooler", "claude"} {
		for _, color := range []string{"blue", "green"} {
			for s := range seconds {
				c := m.planes[plane].lane(color).cell(s)
				for i := range 100 {
					x := request(time.Duration(i*i) * time.Microsecond)
					c.record(m.planes[plane], x)
				}
			}
		}
	}
	m.start = m.start.Add(-Retention)
	return m
}

func BenchmarkSnapshotOfABusyMinute(b *testing.B) {
	m := full()
	b.ReportAllocs()
	for b.Loop() {
		m.Snapshot(time.Minute)
	}
}

func BenchmarkSeriesOfFiveBusyMinutes(b *testing.B) {
	m := full()
	b.ReportAllocs()
	for b.Loop() {
		m.Series("edge", Retention, 5*time.Second)
	}
}
