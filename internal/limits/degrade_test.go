package limits

import (
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

func TestACallerWalksDownTheLadderBeforeItIsRefused(t *testing.T) {
	var c Config
	c.SetDefaults()
	c.Tiers["free"] = Tier{Requests: 10, Window: time.Hour, AtOnce: 100}
	c.Degrade.Warn, c.Degrade.Slow, c.Degrade.Delay, c.Degrade.Waiting, c.Degrade.Cheaper = 0.5, 0.7, 3*time.Second, 5000, 0.9
	g, err := NewGate(c, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for range 11 {
		v, err := g.Admit(t.Context(), Ask{User: "u"})
		if err != nil {
			t.Fatal(err)
		}
		if !v.Allowed {
			seen = append(seen, "refused")
			continue
		}
		seen = append(seen, strings.TrimSpace(v.Step().String()+" "+v.Delay().Round(time.Second).String()+" "+v.Warning()))
	}
	want := "0s, 0s, 0s, 0s, warn 0s user;used=50, warn 0s user;used=60, slow 0s user;used=70, slow 1s user;used=80, cheaper 2s user;used=90, cheaper 3s user;used=100, refused"
	if got := strings.Join(seen, ", "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	v, _ := g.Admit(t.Context(), Ask{User: "other"})
	if all, each := v.Waiting(); v.Step() != Full || all != 5000 || each != 50 {
		t.Errorf("another caller: %v, %d and %d may wait", v.Step(), all, each)
	}
	degraded := map[string]float64{}
	for _, l := range g.Levels() {
		if l.Name == "mainstay_limits_degraded_total" {
			degraded[l.Labels[0].Value] = l.Value
		}
	}
	if degraded["warn"] != 2 || degraded["slow"] != 2 || degraded["cheaper"] != 2 {
		t.Errorf("counted %v", degraded)
	}
}

func TestWhatIsSpacedOrInShadowDegradesNobody(t *testing.T) {
	for name, tier := range map[string]Tier{
		"spaced": {Requests: 1000, Window: time.Hour, Burst: 1},
		"shadow": {Requests: 1, Window: time.Hour, Shadow: true},
	} {
		var c Config
		c.SetDefaults()
		c.Tiers["free"] = tier
		g, err := NewGate(c, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := g.Admit(t.Context(), Ask{User: "u"}); err != nil || v.Step() != Full || v.Warning() != "" || v.Delay() != 0 {
			t.Errorf("%s: %v %q %v", name, v.Step(), v.Warning(), err)
		}
	}
	var none Verdict
	if none.Step() != Full || none.Delay() != 0 || none.Warning() != "" {
		t.Error("no verdict is a step")
	}
}

func TestAnUnevenLadderIsAMistake(t *testing.T) {
	for mistake, d := range map[string]Degrade{
		"slow":    {Warn: 0.8, Slow: 0.7, Delay: 1, Waiting: 1},
		"cheaper": {Slow: 0.7, Cheaper: 0.6, Delay: 1, Waiting: 1},
		"delay":   {Delay: time.Hour, Waiting: 1},
		"waiting": {Delay: 1},
	} {
		var ps setting.Problems
		d.Stale = Stale{Memory: 64e6, Largest: 1e6}
		if d.Validate(&ps); len(ps) != 1 || ps[0].Path != mistake {
			t.Errorf("%s: %v", mistake, ps)
		}
	}
}

func TestTheStepOfKeptAnswersSaysWhatIsWrongWithIt(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"degrade.stale.for: must be between 0s and 30d; try 1h, or 0s for none":                        func(c *Config) { c.Degrade.Stale.For = -1 },
		"degrade.stale.for: is missing, so that no answer is kept though other keys are given; try 1h": func(c *Config) { c.Degrade.Stale.IfError = true },
		"degrade.stale.memory: must be between 1MB and 64GB; try 64MB":                                 func(c *Config) { c.Degrade.Stale.Memory = 1000 },
		"degrade.stale.largest: must be between 1KB and a 16th of memory; try 1MB":                     func(c *Config) { c.Degrade.Stale.Largest = 5e6 },
		"degrade.stale.routes: writes is not one of limits.routes; name one of them":                   func(c *Config) { c.Degrade.Stale.For, c.Degrade.Stale.Routes = time.Hour, []string{"writes"} },
		"degrade.stale: memory and largest cannot change while running; restart Mainstay":              func(c *Config) { c.Degrade.Stale.Memory = 32e6 },
	} {
		var c Config
		c.SetDefaults()
		g, err := NewGate(c, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		change(&c)
		if _, err := g.Prepare(c); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestTheStepOfKeptAnswersHoldsForTheClassesThatItNames(t *testing.T) {
	var c Config
	c.SetDefaults()
	c.Routes = []Route{{Name: "reads", Path: "/read/*", Cost: 1}}
	c.Allow, c.Deny = []string{"user:free"}, []string{"user:denied"}
	ask := func(a Ask) Verdict {
		t.Helper()
		g, err := NewGate(c, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		v, err := g.Admit(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := ask(Ask{User: "u", Path: "/read/a"}); v.Keeps() || v.Stale() != nil {
		t.Error("it is on without having been asked for")
	}
	c.Degrade.Stale.For = time.Hour
	if v := ask(Ask{User: "u", Path: "/a"}); !v.Keeps() || v.Stale() == nil {
		t.Error("it does not hold for all")
	}
	c.Degrade.Stale.Routes = []string{"reads"}
	for path, want := range map[string]bool{"/read/a": true, "/a": false} {
		for _, user := range []string{"u", "free"} { // who is never limited can be shed
			if v := ask(Ask{User: user, Path: path}); !v.Keeps() || (v.Stale() != nil) != want {
				t.Errorf("%s for %s: %v", path, user, v.Stale())
			}
		}
	}
	if v := ask(Ask{User: "denied", Path: "/read/a"}); v.Stale() != nil {
		t.Error("it holds for those on the deny list")
	}
	var none Verdict
	if none.Keeps() || none.Stale() != nil {
		t.Error("no verdict has a step")
	}
}
