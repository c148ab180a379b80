// Package capacity answers two questions about an upstream: how much work can it
// take at once, and whose turn is it when more comes? A [Valve] learns the first
// from how long work takes, and lets in no more than that; what has to wait for it
// waits in a bounded queue, in which the urgent goes before the ordinary, and
// tenants take turns. A tenant who floods leaves a part of the room to the others and
// is no reason to let in more, so that its flood costs them neither a
// place, nor their turn, nor an upstream that has become slow.
//
// Anyone may import it; it imports the standard library only.
package capacity

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"
)

// A Class says how urgent work is. Under pressure the last class is shed first.
type Class uint8

// The classes. Critical work may use the whole capacity, ordinary work all but the
// reserve, background work all but twice the reserve.
const (
	Critical Class = iota
	Ordinary
	Background
	classes
)

func (c Class) String() string {
	return [...]string{"critical", "ordinary", "background"}[min(c, Background)]
}

// The errors of [Valve.Enter], for which work is shed.
var (
	ErrFull = errors.New("the queue is full")
	ErrLate = errors.New("its turn did not come in time")
)

// A Rule shapes a Valve. It is a value; all fields must be set, but for those that
// say otherwise.
type Rule struct {
	// Max is the most work at once. Without Adapt it is the capacity; with it, the
	// capacity is found between Min and Max, beginning with Start.
	Max        int
	Adapt      bool
	Min, Start int
	// Tolerance is how many times as long as at ease work may take before the
	// capacity counts as used up; above 1.
	Tolerance float64
	// Reserve is the share of the capacity that is kept for critical work, from 0 to
	// below 0.5.
	Reserve float64
	// Queue is how much work may wait, and Wait how long; 0: none may.
	Queue int
	Wait  time.Duration
}

// Work is what wants to enter.
type Work struct {
	Class Class
	// Tenant is whose it is: tenants of one class take turns.
	Tenant string
	// Kind is any number that is the same for work that takes about equally long: it
	// is compared with its own kind.
	Kind uint64
}

// A Valve stands before one upstream. Its methods may be called from many
// goroutines.
type Valve struct {
	mu       sync.Mutex
	rule     Rule
	inFlight int
	gauge    gauge
	lines    [classes]line
	waiting  int
	shares   shares

	entered [classes]uint64
	shed    [classes]uint64
	queued  uint64
}

// New returns an open valve.
func New(rule Rule) *Valve {
	v := &Valve{rule: rule}
	v.gauge.limit = float64(rule.Start)
	v.gauge.fit(rule)
	return v
}

// Change puts another rule in force. What is inside stays; what has been learned
// too.
func (v *Valve) Change(rule Rule) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rule = rule
	v.gauge.fit(rule)
	v.dispatch()
}

// room is how much work may be inside before class c has to wait.
func (v *Valve) room(c Class) int {
	return max(int(v.gauge.now()*(1-float64(c)*v.rule.Reserve)+1e-9), 1)
}

// narrow is how much may be inside before the work of a tenant who floods has to wait,
// however urgent it is: a part of the room stays free, so that whoever comes beside it
// finds a place at once. What is inside leaves faster than others come, so that a few
// places are enough.
func (v *Valve) narrow(c Class) int {
	room := v.room(max(c, Ordinary))
	if v.gauge.trying {
		return room
	}
	free := max(int(math.Ceil(float64(room)*spare)), min(leastSpare, room/2))
	if room -= free; v.gauge.probing {
		room /= 2
	}
	return max(room, 1)
}

// fits reports whether w may enter now, for as much as is inside.
func (v *Valve) fits(w *Work) bool {
	room := v.room(w.Class)
	if v.shares.crowds(v.shares.inside[w.Tenant], room) && v.floods(w.Class, w.Tenant) {
		room = v.narrow(w.Class)
	}
	return v.inFlight < room
}

// floods reports whether a tenant floods: much of all that is inside or waits is its.
func (v *Valve) floods(c Class, tenant string) bool {
	return v.shares.floods(v.shares.inside[tenant]+v.lines[c].of(tenant), v.inFlight+v.waiting)
}

// A Pass is work's place inside. It is to be given back once, by Leave or Free;
// the zero Pass has none, and giving it back does nothing.
type Pass struct {
	valve *Valve
	work  Work
	began time.Time
	calm  bool // it entered while there was room to spare
	probe bool // it entered during a probe or a trial
}

// Enter waits for w's turn. It returns ErrFull or ErrLate if w is shed, and the
// cause if ctx ends.
func (v *Valve) Enter(ctx context.Context, w Work) (Pass, error) {
	if ctx.Err() != nil {
		return Pass{}, context.Cause(ctx)
	}
	w.Class = min(w.Class, Background)
	v.mu.Lock()
	v.shares.came(w.Tenant, time.Now())
	// Whoever waits could not enter just now: only what is less urgent, or a flood, is
	// overtaken, and never the tenant's own.
	enters := v.fits(&w) && v.lines[w.Class].of(w.Tenant) == 0
	v.gauge.came(v.floods(w.Class, w.Tenant), enters)
	if enters {
		p := v.let(w)
		v.mu.Unlock()
		return p, nil
	}
	place := v.join(w)
	v.mu.Unlock()
	if place == nil {
		return Pass{}, ErrFull
	}
	late := time.NewTimer(v.rule.Wait)
	defer late.Stop()
	select {
	case p := <-place.turn:
		if p.valve == nil {
			return Pass{}, ErrFull
		}
		return p, nil
	case <-late.C:
		return v.give(place, ErrLate)
	case <-ctx.Done():
		return v.give(place, context.Cause(ctx))
	}
}

// let counts work that enters now.
func (v *Valve) let(w Work) Pass {
	v.inFlight++
	v.shares.enter(w.Tenant)
	v.entered[w.Class]++
	v.gauge.peak = max(v.gauge.peak, v.inFlight)
	calm := float64(v.inFlight) <= v.gauge.limit*calmUse
	return Pass{valve: v, work: w, began: time.Now(), calm: calm, probe: v.gauge.probing || v.gauge.trying}
}

// join puts w in the queue, if need be in the place of what is less urgent, or of
// a tenant who has more waiting than w's. Nil: there is no place for it.
func (v *Valve) join(w Work) *place {
	if v.rule.Queue <= 0 || v.rule.Wait <= 0 {
		v.shed[w.Class]++
		return nil
	}
	if v.waiting >= v.rule.Queue {
		last := v.displace(w)
		if last == nil {
			v.shed[w.Class]++
			return nil
		}
		v.drop(last)
		last.turn <- Pass{}
	}
	v.waiting++
	v.queued++
	return v.lines[w.Class].add(w)
}

// displace finds whose place w may have: one that is less urgent, or of a tenant who
// has more waiting; if need be one that is more urgent, of a tenant who floods.
func (v *Valve) displace(w Work) *place {
	flood := v.floods(w.Class, w.Tenant)
	own, below := v.lines[w.Class].of(w.Tenant), w.Class
	if flood {
		below = max(below, Ordinary) // it is urgent for nobody else
	}
	for c := Background; c > below; c-- {
		if p := v.lines[c].longest(0); p != nil {
			return p
		}
	}
	for c := range w.Class {
		if p := v.lines[c].longest(own + 1); p != nil && !flood && v.floods(c, p.work.Tenant) {
			return p
		}
	}
	return v.lines[w.Class].longest(own + 1)
}

// drop takes p, which is shed, from its line.
func (v *Valve) drop(p *place) {
	v.lines[p.work.Class].remove(p)
	v.waiting--
	v.shed[p.work.Class]++
}

// give gives up a place, unless its turn has come at the same moment.
func (v *Valve) give(p *place, err error) (Pass, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case pass := <-p.turn:
		if pass.valve == nil {
			return Pass{}, ErrFull
		}
		return pass, nil
	default:
	}
	if v.drop(p); !errors.Is(err, ErrLate) {
		v.shed[p.work.Class]-- // it went by itself
	}
	return Pass{}, err
}

// dispatch lets in who may enter now, the urgent first.
func (v *Valve) dispatch() {
	for c := range classes {
		for v.lines[c].waiting > 0 && v.inFlight < v.room(c) {
			p := v.lines[c].next(v.fits)
			if p == nil {
				break // the flood alone waits
			}
			v.waiting--
			pass := v.let(p.work)
			pass.calm = false // it had to wait
			p.turn <- pass
		}
	}
}

// depart takes a place back.
func (v *Valve) depart(w *Work) {
	v.inFlight--
	v.shares.leave(w.Tenant)
}

// Inside reports whether p is a place that has not been given back.
func (p *Pass) Inside() bool { return p.valve != nil }

// Since is how long ago its work entered; 0 if it is not inside.
func (p *Pass) Since() time.Duration {
	if p.valve == nil {
		return 0
	}
	return time.Since(p.began)
}

// Leave gives the place back and tells how long the upstream took for the work, and
// whether it managed it. What the upstream is not to be judged by, such as work that
// was given up or that lasts as long as somebody likes, goes by Free.
func (p *Pass) Leave(took time.Duration, managed bool) {
	v := p.valve
	if v == nil {
		return
	}
	p.valve = nil
	v.mu.Lock()
	defer v.mu.Unlock()
	v.depart(&p.work)
	if v.rule.Adapt {
		v.gauge.note(p, took, managed, time.Now(), v)
	}
	v.dispatch()
}

// Free gives the place back and tells nothing.
func (p *Pass) Free() {
	v := p.valve
	if v == nil {
		return
	}
	p.valve = nil
	v.mu.Lock()
	defer v.mu.Unlock()
	v.depart(&p.work)
	v.dispatch()
}

// Stats is how a valve stands.
type Stats struct {
	Limit    int             `json:"limit"` // the capacity as it counts now
	InFlight int             `json:"in_flight"`
	Waiting  int             `json:"waiting"`
	Queued   uint64          `json:"queued"` // had to wait, since the start
	Flood    bool            `json:"flood"`  // most of what waits is of a tenant who wants more than its share
	Entered  [classes]uint64 `json:"entered"`
	Shed     [classes]uint64 `json:"shed"`
}

// Stats may be called at any time.
func (v *Valve) Stats() Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	return Stats{int(v.gauge.limit), v.inFlight, v.waiting, v.queued, v.waiting > 0 && v.gauge.flood, v.entered, v.shed}
}
