package ratelimit_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/ratelimit"
)

func kinds(key string) []ratelimit.Check {
	return []ratelimit.Check{
		{Key: key, Limit: ratelimit.Limit{Max: 50, Window: time.Hour}, Cost: 3},
		{Key: key, Limit: ratelimit.Limit{Max: 5000, Window: 24 * time.Hour}, Cost: 3},
		{Key: key, Limit: ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 600, Window: time.Minute, Burst: 60}, Cost: 3},
		{Key: key, Limit: ratelimit.Limit{Algorithm: ratelimit.Concurrency, Max: 50, Window: time.Minute}, Cost: 1},
	}
}

func peek(t *testing.T, m *ratelimit.Memory, checks []ratelimit.Check) []ratelimit.Result {
	t.Helper()
	look := append([]ratelimit.Check(nil), checks...)
	for i := range look {
		look[i].Cost = 0
	}
	results := make([]ratelimit.Result, len(checks))
	if _, err := m.Take(context.Background(), look, results); err != nil {
		t.Fatal(err)
	}
	return results
}

// A store that was away for a while knows what it would have known by then.
func TestARestartGivesNobodyASecondHelping(t *testing.T) {
	for _, away := range []time.Duration{0, 2 * time.Second, 59 * time.Minute, 25 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			old := ratelimit.NewMemory(0)
			for i := range 500 {
				if _, err := old.Take(context.Background(), kinds(fmt.Sprint("k", i%20)), nil); err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			var saved bytes.Buffer
			if err := old.Save(&saved); err != nil {
				t.Fatal(err)
			}
			time.Sleep(away)
			fresh := ratelimit.NewMemory(0)
			if err := fresh.Load(&saved, away); err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				checks := kinds(fmt.Sprint("k", i))
				want, got := peek(t, old, checks[:3]), peek(t, fresh, checks[:3])
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("after %s: %s", away, diff)
				}
				if r := peek(t, fresh, checks[3:]); r[0].Remaining != 50 {
					t.Errorf("%d of 50 may run at once: a lease outlived its holder", r[0].Remaining)
				}
			}
		})
	}
}

func TestWhatWasSavedAndDamagedIsToldAndHarmsNobody(t *testing.T) {
	old := ratelimit.NewMemory(0)
	for i := range 50 {
		_, _ = old.Take(context.Background(), kinds(fmt.Sprint(i)), nil)
	}
	var saved bytes.Buffer
	if err := old.Save(&saved); err != nil {
		t.Fatal(err)
	}
	text := saved.String()
	for _, damaged := range []string{"", "x", text[:7], text[:len(text)-1], strings.Replace(text, "ratelim\x01", "ratelim\x02", 1), text + "tail", text[:8] + text[9:]} {
		m := ratelimit.NewMemory(0)
		if err := m.Load(strings.NewReader(damaged), 0); err == nil {
			t.Errorf("%.20q was accepted", damaged)
		}
		peek(t, m, kinds("1"))
	}
	if err := ratelimit.NewMemory(0).Load(strings.NewReader(text), -time.Hour); err != nil {
		t.Errorf("a clock that went back: %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	old := ratelimit.NewMemory(0)
	_, _ = old.Take(context.Background(), kinds("k"), nil)
	var saved bytes.Buffer
	_ = old.Save(&saved)
	f.Add(saved.Bytes())
	f.Add([]byte("ratelim\x01"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := ratelimit.NewMemory(1 << 20)
		_ = m.Load(bytes.NewReader(text), time.Second)
		if _, err := m.Take(context.Background(), kinds("k"), nil); err != nil {
			t.Error(err)
		}
		if s := m.Stats(); s.Bytes > 1<<20 {
			t.Errorf("%d bytes", s.Bytes)
		}
	})
}
