package price

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"mainstay.dev/mainstay/claude/internal/wholefile"
	"mainstay.dev/mainstay/internal/setting"
)

// Config is the section claude.spend.
type Config struct {
	Daily   float64 `yaml:"daily" doc:"Dollars that all calls of a day (UTC) may cost together; 0: no ceiling. It survives a restart."`
	Reserve string  `yaml:"reserve" doc:"What each call sets aside of the day's money until it has ended. most: what it may cost at most (its max_tokens), so that the day ends within one call of the ceiling whatever the answers are; near the ceiling calls wait for one another. usual: what such calls usually cost, four times over, so that fewer wait and longer answers can pass the ceiling."`
	OnReach string  `yaml:"on_reach" doc:"What becomes of calls beyond it. refuse: they are answered 402 billing_error until the day ends. warn: they go on, and it is said."`
}

// Validate notes every mistake.
func (c Config) Validate(ps *setting.Problems) {
	if !(c.Daily >= 0) || c.Daily > 1e6 {
		ps.Add("daily", "must be dollars, from 0 to 1000000", "try 50")
	}
	if c.Reserve != "most" && c.Reserve != "usual" {
		ps.Add("reserve", "must be most or usual", "use most")
	}
	if c.OnReach != "refuse" && c.OnReach != "warn" {
		ps.Add("on_reach", "must be refuse or warn", "use refuse")
	}
}

// A Ceiling bounds what the calls of a day cost: each reserves what it may come to,
// and where that does not fit beside what the others have reserved it waits for them,
// first come, first served, so that the ceiling is passed by one call at most, and no
// call is refused that there was money for. Its methods may be called from many
// goroutines.
type Ceiling struct {
	path string // of the state; empty: not kept

	mu       sync.Mutex
	cfg      Config
	day      string
	number   int64 // of the day, as it was last looked at
	spent    int64 // billionths of a dollar
	reserved int64
	calls    int   // that have reserved something
	safe     int64 // what the file says was spent: never less than is
	saved    time.Time
	line     []*place // who waits, the first in front
	changed  chan struct{}
	told     bool // that the ceiling is reached
	failure  error
}

// ErrReached is returned when a day's money is spent.
var ErrReached = errors.New("the daily ceiling claude.spend.daily is reached")

// Open reads what the day has cost so far from the state in dir; an empty dir keeps none.
func Open(dir string) (*Ceiling, error) {
	c := &Ceiling{changed: make(chan struct{})}
	if dir == "" {
		return c, nil
	}
	c.path = filepath.Join(dir, "claude-spend.json")
	text, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	var s state
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err == nil && s.Nano < 0 {
		err = errors.New("it says less than nothing")
	}
	if err != nil {
		return nil, fmt.Errorf("read what Claude has cost today from %s: %w; mend or remove it", c.path, err)
	}
	c.day, c.spent, c.safe = s.Day, s.Nano, s.Nano
	return c, nil
}

// place is one in the line; no two have the same address.
type place struct{ _ int }

type state struct {
	Day  string `json:"day"` // UTC
	Nano int64  `json:"nano_usd"`
}

// Obey takes over cfg.
func (c *Ceiling) Obey(cfg Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cfg, c.told = cfg, false
	c.wake()
}

// wake tells those who wait that something has changed.
func (c *Ceiling) wake() {
	if len(c.line) == 0 {
		return
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Ceiling) limit() int64 { return int64(c.cfg.Daily * dollar) }

// turn begins a new day when it is time.
func (c *Ceiling) turn() {
	const seconds = 24 * 60 * 60
	now := time.Now()
	number := now.Unix() / seconds
	if number == c.number { // writing the day out for each call would cost more than the call's place
		return
	}
	c.number = number
	if today := now.UTC().Format(time.DateOnly); today != c.day {
		c.day, c.spent, c.safe, c.told = today, 0, 0, false
	}
}

// A Stake is what a call has reserved. The zero Stake has reserved nothing.
type Stake struct {
	of    *Ceiling
	nano  int64
	First bool // it is the first one of the day beyond the ceiling
}

// Reserve sets aside what a call may cost, waits for others where there is not enough
// for all, and returns [ErrReached] when the money is spent.
func (c *Ceiling) Reserve(ctx context.Context, nano int64) (*Stake, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.turn(); c.limit() == 0 {
		return c.stake(nano, false), nil
	}
	me := new(place)
	c.line = append(c.line, me)
	defer func() {
		c.line = slices.DeleteFunc(c.line, func(who *place) bool { return who == me })
		c.wake()
	}()
	for {
		c.turn()
		limit := c.limit()
		switch {
		case limit == 0 || c.spent < limit && (c.cfg.OnReach == "warn" || c.line[0] == me && (c.calls == 0 || c.spent+c.reserved+nano <= limit)):
			return c.stake(nano, false), nil
		case c.spent >= limit && c.cfg.OnReach == "warn":
			return c.stake(nano, true), nil
		case c.spent >= limit:
			first := !c.told
			c.told = true
			return &Stake{First: first}, ErrReached
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// Grow sets aside more for a call that costs more than it seemed to; it waits for
// nobody.
func (s *Stake) Grow(nano int64) {
	if s == nil || s.of == nil {
		return
	}
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.nano += nano
	s.of.reserved += nano
}

func (c *Ceiling) stake(nano int64, over bool) *Stake {
	s := &Stake{of: c, nano: nano, First: over && !c.told}
	c.told = c.told || over
	c.calls++
	c.reserved += nano
	c.secure()
	return s
}

// secure writes down what the day may have cost by now, when that is more than what is
// written, or so much less that a crash would cost too much of the day.
func (c *Ceiling) secure() {
	const steps, often = 200, 10 * time.Second // of a day's money: how often there is something to write
	switch most := c.spent + c.reserved; {
	case most > c.safe, c.safe-most > c.limit()/20 && time.Since(c.saved) > often:
		c.save(most + c.limit()/steps)
	}
}

// Settle says what the call has cost; once.
func (s *Stake) Settle(nano int64) {
	if s == nil || s.of == nil {
		return
	}
	c := s.of
	s.of = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn()
	c.calls--
	c.reserved -= s.nano
	c.spent += nano
	c.secure()
	c.wake()
}

// Book adds what was spent without having been reserved, as by a batch, whose cost is
// known when its results are fetched. A nil Ceiling has no books.
func (c *Ceiling) Book(nano int64) {
	if c == nil || nano == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn()
	c.spent += nano
	c.secure()
	c.wake()
}

// Close writes down exactly what was spent.
func (c *Ceiling) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn()
	if c.safe != c.spent {
		c.save(c.spent)
	}
	return c.failure
}

// Asks reports whether there is a ceiling at all, and whether calls have to reserve what
// they may cost at most.
func (c *Ceiling) Asks() (any, most bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Daily > 0, c.cfg.Reserve == "most" && c.cfg.OnReach != "warn"
}

// Stands returns what was spent today and what may be, in dollars, and what was wrong
// with writing it down last. The nil Ceiling has no limit.
func (c *Ceiling) Stands() (spent, limit float64, failure error) {
	if c == nil {
		return 0, 0, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn()
	return float64(c.spent) / dollar, c.cfg.Daily, c.failure
}

// save writes the state so that it is there as a whole or not at all.
func (c *Ceiling) save(nano int64) {
	c.safe, c.saved = nano, time.Now()
	if c.path == "" || c.limit() == 0 {
		return
	}
	c.failure = replace(c.path, state{c.day, nano})
}

func replace(path string, s state) error {
	text, err := json.Marshal(s)
	if err == nil {
		err = wholefile.Replace(path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep what Claude has cost today: %w", err)
	}
	return nil
}
