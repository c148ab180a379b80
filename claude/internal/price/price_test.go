package price

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

func TestACallCostsWhatItsTokensCostToTheToken(t *testing.T) {
	table := Compile(map[string]Price{"house": {Input: 7, Output: 9, Batch: 0.25}, "claude-opus-5": {Input: 1, Output: 2}})
	for _, c := range []struct {
		u    Usage
		want int64
	}{
		{Usage{Model: "claude-sonnet-4-5-20250929", Input: 1, Output: 1}, 3000 + 15000},
		{Usage{Model: "claude-sonnet-4-5", Input: 1000, CacheRead: 100_000, CacheWrite: 2000, CacheHour: 500, Output: 10}, 1000*3000 + 100_000*300 + 1500*3750 + 500*6000 + 10*15000},
		{Usage{Model: "claude-sonnet-4-5", Input: 200_001, Output: 1}, 200_001*6000 + 22500},
		{Usage{Model: "claude-sonnet-4-5", Input: 100, Output: 10, Batch: true}, (100*3000 + 10*15000) / 2},
		{Usage{Model: "claude-haiku-5-5", Input: 3, CacheRead: 7, Output: 1}, 3*100 + 7*10 + 500},
		{Usage{Model: "claude-haiku-5-5", CacheRead: 100_001}, 100_001 * 50},
		{Usage{Model: "claude-fable-5-1-20260901", CacheRead: 4}, 4 * 250},
		{Usage{Model: "claude-3-haiku-20240307", CacheRead: 1, CacheWrite: 1}, 30 + 300},
		{Usage{Model: "us.anthropic.claude-opus-4-8-v1:0", Output: 1}, 25000},
		{Usage{Model: "claude-opus-4-1@20250805", Output: 1}, 75000},
		{Usage{Model: "claude-opus-5", Input: 1, Output: 1}, 3000},
		{Usage{Model: "house-2", Input: 1}, 7000},
		{Usage{Model: "house-2", Input: 4, Searches: 1, Batch: true}, 7000 + search},
	} {
		if got, ok := table.Cost(c.u); !ok || got != c.want {
			t.Errorf("%+v: %d, %v, want %d", c.u, got, ok, c.want)
		}
	}
	for _, model := range []string{"", "claude", "gpt-9", "claude-opus-45", "notclaude-opus-5", "claude-sonnet-6"} {
		if got, ok := table.Cost(Usage{Model: model, Input: 1}); ok || got != 0 {
			t.Errorf("%s costs %d", model, got)
		}
	}
}

func TestTheBooksTellApartWhoItWasFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Ledger
		for n := range 10 {
			l.Add(Entry{Usage: Usage{Model: "m", Input: 10, CacheRead: 90, Output: 5}, Color: []string{"blue", "green"}[n%2], User: fmt.Sprint("u", n%5), Workspace: "w", Nano: 1e9})
		}
		if !l.Add(Entry{Usage: Usage{Model: "new"}, Unpriced: true}) || l.Add(Entry{Usage: Usage{Model: "new"}, Unpriced: true}) {
			t.Error("an unknown model is told of once")
		}
		time.Sleep(30 * time.Minute)
		b := l.Books()
		if b.Dollars != 10 || len(b.Models) != 2 || b.Models[0].Dollars != 5 || len(b.Users) != 5 || b.Workspaces[0].Calls != 10 || b.Cached != 0.9 || b.PerHour != 20 || b.Unpriced["new"] != 2 {
			t.Errorf("%+v", b)
		}
		if l.Answer("m", 1000) != 21 || l.Answer("m", 7) != 7 || l.Answer("other", 900) != 900 || l.Answer("other", 0) == 0 {
			t.Error("what an answer may come to")
		}
		time.Sleep(time.Hour)
		if b := l.Books(); b.PerHour != 0 || b.Dollars != 10 {
			t.Errorf("%+v", b)
		}
		for n := range 3 * mostNames {
			l.Add(Entry{Usage: Usage{Model: fmt.Sprint(n)}, User: fmt.Sprint(n), Nano: 1})
			l.Add(Entry{Usage: Usage{Model: fmt.Sprint(n)}, Unpriced: true})
		}
		if len(l.users) > mostNames+1 || len(l.models) > mostModels+1 || len(l.unpriced) > mostModels+1 {
			t.Errorf("%d %d %d", len(l.users), len(l.models), len(l.unpriced))
		}
	})
}

func open(t *testing.T, dir string, daily float64) *Ceiling {
	t.Helper()
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	c.Obey(Config{Daily: daily, OnReach: "refuse", Reserve: "most"})
	return c
}

func TestFiftyAtOnceStopWithinOneCallOfTheCeiling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const call = 1_000_000_007 // a dollar and a bit
		c := open(t, t.TempDir(), 20)
		var went, refused atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 4 {
					s, err := c.Reserve(t.Context(), 3*call) // they may come to more than they do
					if err != nil {
						if !errors.Is(err, ErrReached) {
							t.Error(err)
						}
						refused.Add(1)
						return
					}
					time.Sleep(time.Second)
					went.Add(1)
					s.Settle(call)
					s.Settle(call)
				}
			})
		}
		wg.Wait()
		if spent, _, err := c.Stands(); went.Load() != 20 || refused.Load() < 46 || spent < 20 || spent > 21.1 || err != nil {
			t.Errorf("%d went, %d were refused, %v spent: %v", went.Load(), refused.Load(), spent, err)
		}
	})
}

func TestWhatADayHasCostSurvivesARestartAndACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := open(t, dir, 100)
		for range 7 {
			s, err := c.Reserve(t.Context(), 2e9)
			if err != nil {
				t.Fatal(err)
			}
			s.Settle(1e9)
		}
		crashed := open(t, dir, 100)
		if spent, _, _ := crashed.Stands(); spent < 7 || spent > 7+2+0.51 {
			t.Errorf("%v after a crash", spent)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		again := open(t, dir, 100)
		if spent, limit, _ := again.Stands(); spent != 7 || limit != 100 {
			t.Errorf("%v of %v after a restart", spent, limit)
		}
		time.Sleep(24 * time.Hour)
		if spent, _, _ := again.Stands(); spent != 0 {
			t.Errorf("%v the next day", spent)
		}
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != 1 {
			t.Errorf("%v %v", files, err)
		}
	})
}

func TestWhatWasOnlyReservedIsNotHeldAgainstTheDayForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := open(t, dir, 100)
		var stakes []*Stake
		for range 9 {
			s, err := c.Reserve(t.Context(), 10e9)
			if err != nil {
				t.Fatal(err)
			}
			stakes = append(stakes, s)
		}
		if spent, _, _ := open(t, dir, 100).Stands(); spent < 90 {
			t.Errorf("%v after a crash while nine are under way", spent)
		}
		for _, s := range stakes {
			s.Settle(1e8)
		}
		time.Sleep(time.Minute)
		s, err := c.Reserve(t.Context(), 1e9)
		if err != nil {
			t.Fatal(err)
		}
		s.Settle(1e8)
		if spent, _, _ := open(t, dir, 100).Stands(); spent < 1 || spent > 3 {
			t.Errorf("%v after a crash when they have ended", spent)
		}
	})
}

func TestAStateThatCannotBeReadIsToldAndOneThatCannotBeWrittenToo(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"{", `{"day":"2026-01-01","nano_usd":-1}`} {
		if err := os.WriteFile(filepath.Join(dir, "claude-spend.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "claude-spend.json") {
			t.Errorf("%s: %v", text, err)
		}
	}
	c := open(t, filepath.Join(dir, "missing"), 1)
	s, err := c.Reserve(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	s.Settle(1)
	if _, _, failure := c.Stands(); failure == nil {
		t.Error("nobody is told")
	}
}

func TestACeilingCanWarnOnlyAndAWaitForMoneyEndsWithItsCall(t *testing.T) {
	c := open(t, "", 1)
	a, err := c.Reserve(t.Context(), 1e9)
	if err != nil || a.First {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Reserve(ctx, 1e9); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.Obey(Config{Daily: 1, OnReach: "warn"})
	b, err := c.Reserve(ctx, 1e9)
	if err != nil || b.First {
		t.Errorf("a warning made a call wait: %v", err)
	}
	a.Settle(2e9)
	for _, want := range []bool{true, false} {
		if s, err := c.Reserve(t.Context(), 1e9); err != nil || s.First != want {
			t.Errorf("%+v %v", s, err)
		}
	}
	var ps setting.Problems
	Config{Daily: -1, OnReach: "x"}.Validate(&ps)
	Price{Input: -1, LongAbove: -1}.Validate("m", &ps)
	if len(ps) != 5 {
		t.Error(ps)
	}
}

// However unlike one another calls are, and however many there are at once, the day ends
// within one of them.
func TestNoMixOfCallsPassesTheCeilingByMoreThanOneOfThem(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			const daily, most = 5, 500_000_000 // half a dollar
			c := open(t, "", daily)
			dice := rand.New(rand.NewPCG(seed, 7))
			var mu sync.Mutex
			var wg sync.WaitGroup
			var refused, late atomic.Int64
			for range 50 {
				wg.Go(func() {
					for range 40 {
						ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
						s, err := c.Reserve(ctx, most)
						cancel()
						if err != nil {
							if !errors.Is(err, ErrReached) {
								late.Add(1)
							}
							refused.Add(1)
							return
						}
						time.Sleep(time.Second)
						cost := int64(5_000_000) // half a cent
						mu.Lock()
						if dice.IntN(10) == 0 {
							cost = most
						}
						mu.Unlock()
						s.Settle(cost)
					}
				})
			}
			wg.Wait()
			spent, _, _ := c.Stands()
			if spent > daily+0.5 || spent < daily && refused.Load() > 0 || late.Load() > 0 {
				t.Errorf("seed %d: %v spent, %d refused, %d late", seed, spent, refused.Load(), late.Load())
			}
		})
	}
}

func TestALargeCallIsNotPassedByForEverAndOneThatGrowsKeepsOthersOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, "", 10)
		small := func() *Stake {
			s, err := c.Reserve(t.Context(), 6e9)
			if err != nil {
				t.Error(err)
			}
			return s
		}
		first := small()
		first.Grow(1e9)
		done := make(chan time.Time, 2)
		go func() {
			s, err := c.Reserve(t.Context(), 9e9)
			if err != nil {
				t.Error(err)
			}
			done <- time.Now()
			s.Settle(0)
		}()
		synctest.Wait()
		go func() {
			s := small()
			done <- time.Now()
			s.Settle(0)
		}()
		time.Sleep(time.Second)
		if len(done) != 0 {
			t.Error("there was no room")
		}
		begun := time.Now()
		first.Settle(0)
		if at := <-done; at.Sub(begun) != 0 {
			t.Error("it waits")
		}
		<-done
	})
}

func TestTheMostThatARequestMayComeToIsToldFromWhatItHolds(t *testing.T) {
	picture := `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + strings.Repeat("A", 4_000_000) + `"}}`
	paper := strings.Replace(picture, "image/png", "application/pdf", 1)
	for _, c := range []struct {
		request  string
		from, to int64
		hour     bool
	}{
		{`{"a":"hello"}`, 6, 8, false},
		{picture, 5000, 5100, false},
		{picture + picture, 10_000, 10_100, false},
		{paper, 1_000_000, 1_000_000, false},
		{`{"cache_control":{"ttl":"1h"}}`, 10, 20, true},
		{`"image/png","data":"never ends`, 10, 20, false},
		{"", 1, 1, false},
	} {
		if n, hour := Input([]byte(c.request)); n < c.from || n > c.to || hour != c.hour {
			t.Errorf("%.40s: %d %v", c.request, n, hour)
		}
	}
}
