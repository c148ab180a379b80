package deploy

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// traffic100 invents what 100 requests a second do on two colors, split as the
// edge was told last.
type traffic100 struct {
	mu    sync.Mutex
	w     *world
	rand  *rand.Rand
	like  map[string]likeness
	past  []moment
	since time.Time
}

type likeness struct {
	errors  float64       // share
	typical time.Duration // median
	noise   float64       // share of the requests that write an error into the log
	calls   float64       // Claude calls of a request
	tokens  float64       // of a call, median
}

type moment struct {
	at    time.Time
	color string
	bad   bool
	took  time.Duration
	noise bool
	cost  []int64
}

func newTraffic(w *world, seed uint64, like map[string]likeness) *traffic100 {
	return &traffic100{w: w, rand: rand.New(rand.NewPCG(seed, 7)), like: like, since: time.Now()}
}

// flow runs until ctx is done.
func (f *traffic100) flow(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ps := f.w.applied()
		f.mu.Lock()
		n := f.rand.IntN(100)
		for _, t := range ps[len(ps)-1].Targets {
			if n -= t.Weight; n < 0 {
				l := f.like[t.Color]
				took := time.Duration(float64(l.typical) * math.Exp(0.5*f.rand.NormFloat64()))
				m := moment{at: time.Now(), color: t.Color, bad: f.rand.Float64() < l.errors, took: took.Round(l.typical / 20), noise: f.rand.Float64() < l.noise}
				for range int(l.calls + f.rand.Float64()) {
					m.cost = append(m.cost, int64(l.tokens*math.Exp(f.rand.NormFloat64()))/20*20+20)
				}
				f.past = append(f.past, m)
				break
			}
		}
		f.mu.Unlock()
	}
}

func (f *traffic100) Window(color string, since time.Time) (g Figures) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g.Span = min(time.Since(since), time.Since(f.since))
	counts, costs, bursts := map[time.Duration]uint64{}, map[int64]uint64{}, map[int64]bool{}
	for _, m := range f.past {
		if m.color == color && !m.at.Before(since) {
			g.Requests.Of++
			if m.bad {
				g.Requests.Hits++
			}
			counts[m.took]++
			g.Claude.Of += uint64(len(m.cost))
			for _, c := range m.cost {
				costs[c]++
			}
			if m.noise {
				g.Log.Lines += 10
				bursts[m.at.UnixMilli()/100] = true
			}
		}
	}
	for took, n := range counts {
		g.Latency = g.Latency.Plus(Spread{{Size: int64(took), Count: n}})
	}
	for cost, n := range costs {
		g.Cost = g.Cost.Plus(Spread{{Size: cost, Count: n}})
	}
	g.Log.Bursts = uint64(len(bursts))
	return g
}

var fine = likeness{errors: 0.002, typical: 20 * time.Millisecond, noise: 0.01, calls: 0.2, tokens: 1000}

// but is the same with something changed.
func but(change func(*likeness)) likeness {
	l := fine
	change(&l)
	return l
}

// watched deploys a green with this likeness under 100 requests a second and
// returns how long after the switch, and how, it ended.
func watched(t *testing.T, seed uint64, control setting.Percent, cfg Config, r Request, green likeness) (after time.Duration, record Record, err error) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		cfg.Watch.Control = control
		h := open(t, w, dir, cfg)
		f := newTraffic(w, seed, map[string]likeness{"blue": fine, "green": green})
		h.deps.Evidence = f
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); f.flow(ctx) }()
		time.Sleep(time.Minute)
		var switched time.Time
		record, err = h.Deploy(t.Context(), r, func(p Progress) {
			if p.Step == StepSwitched && switched.IsZero() {
				switched = p.Time
			}
		})
		after = time.Since(switched)
		cancel()
		<-ended
		h.close()
	})
	return after, record, err
}

func watching() Config {
	c := configured()
	c.Watch = Watch{For: time.Minute, MinSamples: 50}
	c.Settle.Old = settleKeep
	return c
}

func TestAWorseColorIsRolledBackWithinTenSeconds(t *testing.T) {
	for name, green := range map[string]likeness{
		"answering 500":               but(func(l *likeness) { l.errors = 1 }),
		"5% 500s":                     but(func(l *likeness) { l.errors = 0.05 }),
		"3 times slower":              but(func(l *likeness) { l.typical *= 3 }),
		"80% more errors":             but(func(l *likeness) { l.errors, l.typical = 0.8, 5*time.Millisecond }),
		"errors in the log":           but(func(l *likeness) { l.noise = 0.2 }),
		"calls that cost three times": but(func(l *likeness) { l.tokens *= 3 }),
		"three times as many calls":   but(func(l *likeness) { l.calls *= 3 }),
	} {
		for _, control := range []setting.Percent{0, 0.1} {
			t.Run(name+", control "+control.String(), func(t *testing.T) {
				for seed := range uint64(5) {
					after, r, err := watched(t, seed, control, watching(), Request{}, green)
					if !errors.Is(err, ErrRolledBack) || after > 10*time.Second {
						t.Errorf("seed %d: %v after %v\n%s", seed, err, after, strings.Join(r.Evidence, "\n"))
					}
					if len(r.Evidence) != 4 || !strings.HasPrefix(r.Evidence[0], "green: ") || r.Phase != RolledBack {
						t.Errorf("record %+v", r)
					}
				}
			})
		}
	}
}

// A watch of a minute looks sixty times; equal colors must pass nearly always.
func TestAnEqualColorPassesTheWatch(t *testing.T) {
	failed := 0
	const rounds = 40
	for seed := range uint64(rounds) {
		if _, r, err := watched(t, 100+seed, []setting.Percent{0, 0.1, 0.5}[seed%3], watching(), Request{}, fine); err != nil {
			failed++
			t.Logf("seed %d: %v\n%s", seed, err, strings.Join(r.Evidence, "\n"))
		}
	}
	if failed > 1 {
		t.Errorf("%d of %d watches of equal colors were not passed", failed, rounds)
	}
}

func TestTheLimitsOfTheFileCountWhateverTheOldColorDoes(t *testing.T) {
	cfg := watching()
	cfg.Watch.MaxErrorRate, cfg.Watch.MaxP95 = 0.01, 25*time.Millisecond // the old color's own is near 45 ms
	_, _, err := watched(t, 1, 0.1, cfg, Request{}, fine)
	if !errors.Is(err, ErrRolledBack) || !strings.Contains(err.Error(), "app.watch.max_p95") {
		t.Errorf("got %v", err)
	}
	cfg.Watch.MaxP95 = 0
	_, _, err = watched(t, 1, 0.5, cfg, Request{}, but(func(l *likeness) { l.errors = 0.03 }))
	if !errors.Is(err, ErrRolledBack) {
		t.Errorf("got %v", err)
	}
}

func TestAWorseColorOfAOneWayDeployIsFrozenWithTheEvidence(t *testing.T) {
	_, r, err := watched(t, 1, 0.1, watching(), Request{OneWay: true}, but(func(l *likeness) { l.errors = 0.2 }))
	if !errors.Is(err, ErrFrozen) || r.Phase != Frozen || len(r.Evidence) == 0 {
		t.Errorf("got %v, %+v", err, r)
	}
}

func TestAnOldColorThatBecomesWorseItselfIsJudgedByTheSameTimeAlone(t *testing.T) {
	then, now := Ratio{Hits: 2, Of: 10_000}, Ratio{Hits: 100, Of: 1000} // the database went down for both
	if l := (look{cfg: Watch{MinSamples: 50}, fresh: Figures{Requests: Ratio{Hits: 900, Of: 9000}}, then: Figures{Requests: then}, now: Figures{Requests: now}}); l.judge() != "" {
		t.Error(l.judge())
	}
	if l := (look{cfg: Watch{MinSamples: 50}, fresh: Figures{Requests: Ratio{Hits: 900, Of: 9000}}, then: Figures{Requests: then}, now: Figures{Requests: Ratio{Hits: 0, Of: 1000}}}); l.judge() == "" {
		t.Error("nothing was noticed")
	}
	few := look{cfg: Watch{MinSamples: 50}, fresh: Figures{Requests: Ratio{Hits: 49, Of: 49}}, then: Figures{Requests: then}}
	if few.judge() != "" {
		t.Error("judged by 49 samples")
	}
	claude := look{cfg: Watch{MinSamples: 50}, fresh: Figures{Claude: Ratio{Hits: 10, Of: 20}}, then: Figures{Claude: Ratio{Hits: 1, Of: 200}}}
	if why := claude.judge(); !strings.Contains(why, "Claude calls") {
		t.Errorf("got %q", why)
	}
}

func TestAWatchThatAKillHasCutShortStillKnowsWhatTheOldColorDidBefore(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		cfg := watching() // no control: there is no other evidence of the old color
		h := open(t, w, dir, cfg)
		f := newTraffic(w, 1, map[string]likeness{"blue": fine, "green": but(func(l *likeness) { l.errors = 0.004 })})
		h.deps.Evidence = f
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); f.flow(ctx) }()
		time.Sleep(20 * time.Second)
		done := h.launch(Request{})
		time.Sleep(30 * time.Second)
		cancel()
		<-ended
		h.kill()
		<-done
		h = openWith(t, w, dir, cfg, newTraffic(w, 1, nil)) // a monitor that knows nothing yet
		time.Sleep(time.Second)
		text := h.Status().Deploying.Text
		if !strings.Contains(text, "compared with what blue did in the last 20s before the switch") {
			t.Errorf("it says %q", text)
		}
		time.Sleep(time.Hour)
		r := h.History()[0]
		if r.Phase != Settled || len(r.Evidence) != 3 || !strings.HasPrefix(r.Evidence[2], "blue before the switch: ") || strings.Contains(r.Evidence[2], ": 0 requests") {
			t.Errorf("record %+v", r)
		}
		h.close()
	})
}

func TestAWatchWithoutAPastSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, watching())
		h.deps.Evidence = newTraffic(w, 1, nil)
		done := h.launch(Request{})
		time.Sleep(10 * time.Second)
		if text := h.Status().Deploying.Text; !strings.Contains(text, "it is not known what blue did before") {
			t.Errorf("it says %q", text)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		h.close()
	})
}
