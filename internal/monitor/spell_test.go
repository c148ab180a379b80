package monitor

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

func TestASpellHoldsWhatAColorDidSinceAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		record := func(color string, took time.Duration, blame telemetry.Blame) {
			m.Record(&telemetry.Exchange{Plane: "edge", Color: color, Took: took, Blame: blame})
		}
		record("blue", time.Second, telemetry.BlameUpstream)
		time.Sleep(10 * time.Second)
		since := time.Now()
		record("blue", 10*time.Millisecond, telemetry.BlameNone)
		record("blue", 10*time.Millisecond, telemetry.BlameUpstream)
		record("blue", 20*time.Millisecond, telemetry.BlameClient)
		record("green", time.Millisecond, telemetry.BlameNone)
		s := m.Since("edge", "blue", since)
		if s.Count != 3 || s.Errors != 1 || len(s.Latency) != 2 || s.Latency[0].Count != 2 || s.Latency[0].Took >= s.Latency[1].Took {
			t.Errorf("got %+v", s)
		}
		if s := m.Since("edge", "blue", since.Add(-time.Hour)); s.Count != 4 {
			t.Errorf("from before the start: %+v", s)
		}
		if s := m.Since("edge", "red", since); s.Count != 0 {
			t.Errorf("an unknown color: %+v", s)
		}
		if s := m.Since("moon", "blue", since); s.Count != 0 {
			t.Errorf("an unknown plane: %+v", s)
		}
		time.Sleep(time.Hour)
		if s := m.Since("edge", "blue", since); s.Count != 0 {
			t.Errorf("after the retention: %+v", s)
		}
	})
}

func TestASpellReachesTenMinutesBackThoughCellsWereReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		for range 15 * 60 {
			m.Record(&telemetry.Exchange{Plane: "edge", Color: "blue", Took: 10 * time.Millisecond, Blame: telemetry.BlameUpstream})
			m.Record(&telemetry.Exchange{Plane: "claude", Color: "blue", GenAI: telemetry.GenAI{InputTokens: 100, OutputTokens: 20}})
			time.Sleep(time.Second)
		}
		s := m.Since("edge", "blue", time.Now().Add(-time.Hour))
		// Blocks of ten seconds that are not wholly within are left out.
		if s.Count < 580 || s.Count > 600 || s.Errors != s.Count || len(s.Latency) != 1 || s.Latency[0].Count != s.Count || s.Span != Reach {
			t.Errorf("%d of 600, %d errors, latency %v, span %v", s.Count, s.Errors, s.Latency, s.Span)
		}
		if c := m.Since("claude", "blue", time.Now().Add(-time.Minute)).Cost; len(c) != 1 || c[0].Count != 60 || c[0].Took < 580*time.Microsecond || c[0].Took > 620*time.Microsecond {
			t.Errorf("cost %v", c)
		}
		m.Record(&telemetry.Exchange{Plane: "claude", Color: "green", GenAI: telemetry.GenAI{InputTokens: 100, OutputTokens: 20, CostNanoUSD: 50e6}})
		if c := m.Since("claude", "green", time.Now().Add(-time.Minute)).Cost; len(c) != 1 || c[0].Took < 48*time.Millisecond || c[0].Took > 52*time.Millisecond {
			t.Errorf("five cents are told as %v", c)
		}
		// Nobody writes any more: the ring is not replaced, and fades all the same.
		time.Sleep(8 * time.Minute)
		if s := m.Since("edge", "blue", time.Now().Add(-time.Hour)); s.Count < 110 || s.Count > 120 {
			t.Errorf("after a silence: %d of 120", s.Count)
		}
	})
}

func TestErrorsInTheLogAreCountedByColorAsLinesAndAsBursts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		since := time.Now()
		for range 3 {
			for range 20 { // a stack trace
				m.Line("green", slog.LevelError)
			}
			m.Line("green", slog.LevelInfo)
			m.Line("green", slog.LevelWarn)
			time.Sleep(250 * time.Millisecond)
		}
		if lines, bursts := m.Errors("green", since); lines != 60 || bursts != 3 {
			t.Errorf("%d lines, %d bursts", lines, bursts)
		}
		if lines, _ := m.Errors("blue", since); lines != 0 {
			t.Errorf("blue: %d", lines)
		}
		if ls := m.Levels(); len(ls) != 3 || ls[0].Labels[1].Value != "error" || ls[0].Value != 60 {
			t.Errorf("levels %+v", ls)
		}
		time.Sleep(time.Hour)
		if lines, _ := m.Errors("green", since); lines != 0 {
			t.Errorf("an hour later: %d", lines)
		}
	})
}

func TestFailedRequestsAreKnownForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		for i := range 30 * 60 { // 30 hours
			blame := telemetry.BlameNone
			if i >= 29*60 {
				blame = telemetry.BlameMainstay
			}
			m.Record(&telemetry.Exchange{Plane: "edge", Color: "blue", Blame: blame})
			m.Record(&telemetry.Exchange{Plane: "pooler", Color: "blue", Blame: telemetry.BlameMainstay})
			time.Sleep(time.Minute)
		}
		failed, all, known := m.Failed(2 * time.Hour)
		if failed < 59 || failed > 60 || all < 119 || all > 120 || known != 2*time.Hour {
			t.Errorf("%d of %d in %v", failed, all, known)
		}
		if _, all, known := m.Failed(48 * time.Hour); all > 24*60 || known < 24*time.Hour {
			t.Errorf("%d in %v", all, known)
		}
	})
}
