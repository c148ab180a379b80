package pace

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
)

// says is the head of an answer: name=limit/left.
func says(limits ...string) http.Header {
	h := http.Header{}
	for _, l := range limits {
		name, rest, _ := strings.Cut(l, "=")
		limit, left, _ := strings.Cut(rest, "/")
		h.Set("anthropic-ratelimit-"+name+"-limit", limit)
		h.Set("anthropic-ratelimit-"+name+"-remaining", left)
	}
	return h
}

func lane() *Lane {
	var p Pacer
	var c Config
	c.SetDefaults()
	c.Headroom = 0
	p.Obey(c)
	return p.Lane("key:1", "sonnet-4")
}

func wait(t *testing.T, l *Lane, a Ask) *Ticket {
	t.Helper()
	ticket, err := l.Wait(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func TestWhatIsLeftMayGoAtOnceAndTheRestAsItGrowsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		wait(t, l, Ask{}).Told(200, says("requests=60/5"), 0)
		began := time.Now()
		for n := range 8 {
			wait(t, l, Ask{})
			if want := time.Duration(max(0, n-4)) * time.Second; time.Since(began).Round(time.Millisecond) != want {
				t.Errorf("call %d went after %v, not %v", n, time.Since(began), want)
			}
		}
	})
}

func TestTokensCountAsEstimatedAndThenAsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		big := Ask{Bytes: 35_000, MaxTokens: 100} // 10,000 tokens
		first := wait(t, l, big)
		first.Told(200, says("input-tokens=60000/5000", "output-tokens=6000/6000"), 0)
		began := time.Now()
		second := wait(t, l, big)
		if time.Since(began) < 4*time.Second || time.Since(began) > 6*time.Second {
			t.Errorf("went after %v", time.Since(began))
		}
		second.Settle(&Usage{Input: 100, Output: 10}) // nearly all of it came from the cache
		began = time.Now()
		wait(t, l, big).Settle(&Usage{Input: 100, Output: 10})
		if d := time.Since(began); d != 0 {
			t.Errorf("what was not used was given back, and still it took %v", d)
		}
		for range 50 {
			wait(t, l, big).Settle(&Usage{Input: 100, Output: 10})
		}
		if l.ratio > 0.1 {
			t.Errorf("the estimate did not learn: %v", l.ratio)
		}
	})
}

func TestBeforeTheFirstAnswerOnlySomeGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var went []*Ticket
		for range 100 {
			wg.Go(func() {
				ticket, err := l.Wait(t.Context(), Ask{})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				went = append(went, ticket)
			})
		}
		synctest.Wait()
		if len(went) != coldStart {
			t.Errorf("%d went", len(went))
		}
		went[0].Told(200, http.Header{}, 0) // this API tells of no limits
		wg.Wait()
		if len(went) != 100 {
			t.Errorf("%d went", len(went))
		}
	})
}

func TestARefusalStopsTheLaneForAsLongAsItAsksAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		ticket := wait(t, l, Ask{})
		ticket.Told(429, says("requests=600/300"), 7*time.Second)
		ticket.Return(true)
		began := time.Now()
		wait(t, l, Ask{})
		if time.Since(began) != 7*time.Second {
			t.Errorf("%v", time.Since(began))
		}
		// There was room, and still it was refused: the limit is kept by the second.
		if most := l.limits[requests].most; most != 10 {
			t.Errorf("%v may be saved up", most)
		}
		wait(t, l, Ask{}).Told(429, http.Header{}, 1000*time.Hour)
		began = time.Now()
		wait(t, l, Ask{})
		if time.Since(began) != longestBlock {
			t.Errorf("%v", time.Since(began))
		}
	})
}

func TestWithoutKnownLimitsRefusalsLetFewerGoAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		var all []*Ticket
		for range 8 {
			all = append(all, wait(t, l, Ask{}))
		}
		all[0].Told(429, http.Header{}, time.Second)
		for _, ticket := range all {
			ticket.Return(true)
		}
		time.Sleep(time.Second)
		for range 4 {
			wait(t, l, Ask{})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := l.Wait(ctx, Ask{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a fifth went: %v", err)
		}
	})
}

func TestFlowsShareTheLineByTheirWeightsAndDeadlinesGoFirstWithinThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		wait(t, l, Ask{}).Told(200, says("requests=60/0"), 0)
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		ask := func(name string, a Ask) {
			wg.Go(func() {
				if _, err := l.Wait(t.Context(), a); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
			})
			synctest.Wait()
		}
		for range 20 {
			ask("flood", Ask{Flow: "flood"})
		}
		for range 4 {
			ask("small", Ask{Flow: "small"})
		}
		for range 4 {
			ask("high", Ask{Flow: "high", Weight: 4})
		}
		ask("late", Ask{Flow: "due", Deadline: time.Now().Add(time.Hour)})
		ask("soon", Ask{Flow: "due", Deadline: time.Now().Add(time.Minute)})
		wg.Wait()
		at := func(name string) int { return slices.Index(order, name) }
		last := func(name string) int { return len(order) - 1 - slices.Index(reversed(order), name) }
		if at("soon") > at("late") || last("high") > 8 || last("small") > 14 || last("flood") != len(order)-1 {
			t.Error(order)
		}
		if l.line.n != 0 || len(l.line.flows) != 0 {
			t.Errorf("%d wait in %d flows", l.line.n, len(l.line.flows))
		}
	})
}

func reversed(s []string) []string {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

func TestWhoLeavesMakesRoomAndAFullLineRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		l.rules = &rules{share: 1, most: 1}
		wait(t, l, Ask{}).Told(200, says("requests=60/0"), 0)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		left := make(chan error)
		go func() { _, err := l.Wait(ctx, Ask{}); left <- err }()
		synctest.Wait()
		if _, err := l.Wait(t.Context(), Ask{}); !errors.Is(err, ErrFull) {
			t.Error(err)
		}
		if err := <-left; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		began := time.Now()
		wait(t, l, Ask{})
		if time.Since(began) != 500*time.Millisecond {
			t.Errorf("%v", time.Since(began))
		}
	})
}

func TestOthersWhoUseTheSameLimitAreSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		wait(t, l, Ask{}).Told(200, says("requests=600/600"), 0)
		wait(t, l, Ask{}).Told(200, says("requests=600/10"), 0)
		if level := l.limits[requests].level; level > 10 {
			t.Errorf("%v left", level)
		}
		time.Sleep(10 * time.Second)
		wait(t, l, Ask{}).Told(200, says("requests=600/590"), 0)
		if level := l.limits[requests].level; level < 100 {
			t.Errorf("%v left", level)
		}
	})
}

func TestMoreThanCanEverBeSavedUpGoesWhenAllIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lane()
		wait(t, l, Ask{}).Told(200, says("input-tokens=6000/6000"), 0)
		began := time.Now()
		wait(t, l, Ask{Bytes: 1e6})
		wait(t, l, Ask{Bytes: 100})
		if d := time.Since(began); d < time.Minute {
			t.Errorf("the debt was worked off in %v", d)
		}
	})
}

func TestTheClassOfAModelIsItsFamilyAndGeneration(t *testing.T) {
	for model, want := range map[string]string{
		"claude-sonnet-4-5-20250929": "sonnet-4", "claude-opus-4-1": "opus-4", "claude-3-5-haiku-latest": "haiku-3", "claude-opus-5": "opus-5",
		"us.anthropic.claude-sonnet-4-5-20250929-v1:0": "sonnet-4", "claude-fable-5": "claude-fable-5", "": "", "gpt": "gpt", "claude-sonnet": "sonnet",
	} {
		if got := Class(model); got != want {
			t.Errorf("%s: %q, want %q", model, got, want)
		}
	}
}

func TestHeadersThatMakeNoSenseAreNoLimits(t *testing.T) {
	for _, c := range []string{"requests=-5/3", "requests=0/0", "requests=x/3", "requests=NaN/NaN", "requests=5/-1", "requests=1e99/1", "requests=5"} {
		if limit, left, ok := read(says(c), standard[requests]); ok {
			t.Errorf("%s: %v %v", c, limit, left)
		}
	}
	if _, left, ok := read(says("input-tokens=50000/7000"), standard[input]); !ok || left != 6500 {
		t.Errorf("rounded to thousands: %v", left)
	}
}

func TestTheLanesAreBoundedAndTheIdleOnesGo(t *testing.T) {
	var p Pacer
	busy, err := p.Lane("busy", "m").Wait(t.Context(), Ask{})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 * mostLanes {
		if p.Lane(strconv.Itoa(n), "m") == nil {
			t.Fatal("no lane")
		}
	}
	if len(p.lanes) > mostLanes || p.lanes[[2]string{"busy", "m"}] == nil {
		t.Errorf("%d lanes", len(p.lanes))
	}
	busy.Settle(nil)
	busy.Settle(nil) // a second time says nothing
	(*Ticket)(nil).Told(200, nil, 0)
	(*Ticket)(nil).Settle(nil)
	(*Ticket)(nil).Return(true)
}

func TestPrioritiesAreGivenByTheFileAndLoweredByTheCall(t *testing.T) {
	var c Config
	c.SetDefaults()
	c.Priorities = map[string]string{"@green": "low", "key:1": "high"}
	for _, x := range []struct{ caller, color, asked, want string }{
		{"key:2", "blue", "", "normal"}, {"key:2", "green", "", "low"}, {"key:1", "green", "", "high"},
		{"key:1", "blue", "LOW", "low"}, {"key:2", "blue", "high", "normal"}, {"key:2", "blue", "soon", "normal"},
	} {
		if _, got := c.Weight(x.caller, x.color, x.asked); got != x.want {
			t.Errorf("%+v: %s", x, got)
		}
	}
	var ps setting.Problems
	Config{Headroom: 1, Queue: 0, Priorities: map[string]string{"@x": "urgent"}}.Validate(&ps)
	var paths []string
	for _, p := range ps {
		paths = append(paths, p.Path)
	}
	if d := cmp.Diff([]string{"headroom", "queue", "priorities.@x"}, paths); d != "" {
		t.Error(d)
	}
}

func TestKeysOfOneOrganisationShareALaneAsSoonAsThatIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pacer
		a, b, c := p.Lane("key:a", "opus-5"), p.Lane("key:b", "opus-5"), p.Lane("key:c", "opus-5")
		wait(t, a, Ask{}).Told(200, says("requests=60/0"), 0)
		p.Owned("key:a", "acme", "", a)
		p.Owned("key:a", "acme", "", a)
		p.Owned("key:c", "acme", "lab", c)
		if p.Lane("key:a", "opus-5") != a || a.standing().Key != "org:acme" || c.standing().Key != "org:acme/lab" {
			t.Errorf("%+v %+v", a.standing(), c.standing())
		}
		p.Owned("key:b", "acme", "", b)
		if p.Lane("key:b", "opus-5") != a || p.Lane("key:b", "haiku-4") != p.Lane("key:a", "haiku-4") || p.Lane("key:c", "opus-5") != c {
			t.Error("they do not share")
		}
		began := time.Now()
		wait(t, p.Lane("key:b", "opus-5"), Ask{})
		if took := time.Since(began); took < 900*time.Millisecond {
			t.Errorf("what one has used up the other has not: %v", took)
		}
		p.Owned("key:b", "globex", "", p.Lane("key:b", "opus-5")) // it was moved
		if p.Lane("key:b", "opus-5") == a || p.Lane("key:a", "opus-5") != a {
			t.Error("it was not moved alone")
		}
		for i := range 2 * mostLanes {
			key := fmt.Sprint("key:", i)
			l := p.Lane(key, "x")
			p.Owned(key, "acme", strings.Repeat("w", 300*(i%2)), l)
		}
		if len(p.owners) > mostLanes || len(p.lanes) > mostLanes {
			t.Errorf("%d owners, %d lanes", len(p.owners), len(p.lanes))
		}
	})
}

func TestFastModeHasLimitsOfItsOwnAndThePriorityTierIsShownOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pacer
		fast, usual := p.Lane("k", Fast("opus-5")), p.Lane("k", "opus-5")
		h := says("requests=60/0", "input-tokens=100000/0")
		for name, v := range map[string]string{
			"anthropic-fast-output-tokens-limit": "6000", "anthropic-fast-output-tokens-remaining": "6000",
			"anthropic-priority-input-tokens-limit": "10000", "anthropic-priority-input-tokens-remaining": "2500",
		} {
			h.Set(name, v)
		}
		wait(t, fast, Ask{}).Told(200, h, 0)
		wait(t, usual, Ask{}).Told(200, says("input-tokens=100000/90000"), 0)
		s := fast.standing()
		if len(s.Limits) != 2 || s.Limits[0].Name != "output-tokens" || s.Limits[1].Name != "priority-input-tokens" || s.Limits[1].Used != 0.75 {
			t.Errorf("%+v", s)
		}
		if u := usual.standing(); len(u.Limits) != 1 || u.Limits[0].Left < 80_000 {
			t.Errorf("%+v", u)
		}
		if Used(p.Standings(), "priority-input-tokens") != 0.75 || len(Limits()) != 5 {
			t.Error("it is not shown")
		}
		began := time.Now()
		for range 5 {
			wait(t, fast, Ask{}) // the standard limits, and what is left of the Priority Tier, keep it not
		}
		if time.Since(began) != 0 {
			t.Error("it waited")
		}
	})
}
