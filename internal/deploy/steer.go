package deploy

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"

	"mainstay.dev/mainstay/internal/traffic"
)

// present reports whether s has a copy that requests could be sent to.
func (s *slot) present() bool {
	return s != nil && s.inst != nil && (s.state == Healthy || s.state == Unhealthy)
}

func (s *slot) fit() bool { return s.present() && s.state == Healthy }

// weights says how the traffic is split: as the deploy wants it while both colors
// are fit, else to the one that is. Neither gets any while nothing runs.
func (d *Deployer) weights() (live, old int) {
	switch {
	case !d.live.present() && !d.old.present():
		return 0, 0
	case !d.old.present(), !d.old.fit() && d.live.present():
		return 100, 0
	case !d.live.fit():
		return 0, 100
	}
	return d.share, 100 - d.share
}

// parts turns shares of two colors into weights of each of their servers.
func (d *Deployer) parts(live, old int) (int, int) {
	if live > 0 && old > 0 {
		return live * len(d.old.serving()), old * len(d.live.serving())
	}
	return live, old
}

// serving are the addresses of s that get requests: those that are fit, or all if
// none is.
func (s *slot) serving() []string {
	at := addresses(s.inst)
	if fit := slices.DeleteFunc(slices.Clone(at), func(a string) bool { return s.out[a] != nil }); len(fit) > 0 {
		return fit
	}
	return at
}

// plan is what the edge must do as things stand. Deployer.mu is held.
func (d *Deployer) plan() traffic.Plan {
	cfg := d.policy.Load()
	p := traffic.Plan{Mode: traffic.Serve}
	live, old := d.weights()
	shared := live > 0 && old > 0
	live, old = d.parts(live, old)
	for _, of := range []struct {
		slot   *slot
		weight int
		backup bool
	}{{d.live, live, live == 0}, {d.old, old, old == 0}, {d.next, 0, false}} {
		s := of.slot
		if !s.present() || s == d.next && !cfg.Preview.on() && d.mirror == 0 {
			continue
		}
		ts := s.targets(of.weight, of.backup && s.fit())
		for i := range ts {
			if s == d.next && d.nameOf(s) != s.color { // another target for the edge than the one with traffic will be
				ts[i].ID, ts[i].Color = ts[i].ID+".next", d.nameOf(s)
			}
		}
		p.Targets = append(p.Targets, ts...)
	}
	if live+old == 0 {
		p.Mode = traffic.Hold
	}
	if shared {
		p.Sticky = traffic.Sticky{By: cfg.Switch.Sticky.By, Name: cfg.Switch.Sticky.Name}
	}
	if s := d.previewed(); s != nil && cfg.Preview.on() {
		p.Preview = traffic.Preview{Color: d.nameOf(s), Header: cfg.Preview.Header, Secret: cfg.Preview.Secret, Host: cfg.Preview.Host}
	}
	if d.mirror > 0 && d.next.present() {
		p.Mirror = traffic.Mirror{Color: d.nameOf(d.next), Requests: d.mirror}
	}
	if d.maintenance {
		p.Mode, p.Page = traffic.Maintenance, cfg.page
	}
	return p
}

// nameOf is what the edge calls a color: a next one that shares it with the standby
// is called next until that is gone.
func (d *Deployer) nameOf(s *slot) string {
	if s == d.next && d.old != nil && d.old.color == s.color {
		return "next"
	}
	return s.color
}

// targets are the servers of s. One that is not fit gets nothing.
func (s *slot) targets(weight int, backup bool) (ts []traffic.Target) {
	serving := s.serving()
	for i, address := range addresses(s.inst) {
		t := traffic.Target{ID: s.id, Address: address, Color: s.color, Version: s.release.Version}
		if i > 0 {
			t.ID = fmt.Sprintf("%s.%d", s.id, i+1)
		}
		if slices.Contains(serving, address) {
			t.Weight, t.Backup = weight, backup
		}
		ts = append(ts, t)
	}
	return ts
}

// previewed is the color that chosen requests may see: the new one while a deploy
// is at work, before and after it got some of the traffic.
func (d *Deployer) previewed() *slot {
	if d.next.present() {
		return d.next
	}
	if d.current != nil && d.live.present() && d.share < 100 {
		return d.live
	}
	return nil
}

// steer makes the edge obey how things stand. It does nothing if the edge does
// so already; then drain is nil.
func (d *Deployer) steer() (drain func(context.Context) error, err error) {
	d.routing.Lock()
	defer d.routing.Unlock()
	d.mu.Lock()
	p := d.plan()
	live, old := d.weights()
	d.mu.Unlock()
	if reflect.DeepEqual(p, d.applied) || d.applied.Mode == "" && p.Mode == traffic.Hold {
		return nil, nil
	}
	drain, err = d.deps.Edge.Apply(p)
	if err != nil {
		return nil, fmt.Errorf("tell the edge where requests go: %w", err)
	}
	before := d.applied
	d.applied = p
	d.tellDiversion(before, p, live, old)
	return drain, nil
}

// steerOrSay steers where going on without is better than not going on.
func (d *Deployer) steerOrSay() {
	if _, err := d.steer(); err != nil {
		d.deps.Log.Error("the edge did not take the new plan; it goes on with the one before", "err", err)
	}
}

// tellDiversion says when the traffic left a color because that is not fit, and
// when it came back.
func (d *Deployer) tellDiversion(before, now traffic.Plan, liveWeight, oldWeight int) {
	d.mu.Lock()
	live, old, share := d.live, d.old, d.share
	diverted := share > 0 && old != nil && oldWeight > 0 && liveWeight == 0
	was := d.diverted
	d.diverted = diverted
	d.mu.Unlock()
	switch {
	case diverted && !was:
		d.emit(slog.LevelWarn, "diverted", old.color, fmt.Sprintf("%s is not fit; every new request goes to %s", live.color, old.color), slog.String("from", live.color))
	case was && !diverted && liveWeight > 0:
		d.emit(slog.LevelInfo, "diversion_ended", live.color, live.color+" is fit again and has its share of the traffic back")
	case now.Mode == traffic.Hold && before.Mode == traffic.Serve:
		d.emit(slog.LevelWarn, "held", live.color, "no copy of the app runs; requests wait, bounded by edge.hold, until one does")
	}
}
