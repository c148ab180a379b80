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
