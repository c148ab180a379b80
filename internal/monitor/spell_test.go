package monitor

import (
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
