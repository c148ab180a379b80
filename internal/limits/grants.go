package limits

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

// A Grant is a limit of one caller in place of its tier's, given while running.
type Grant struct {
	Key      string        `json:"key"`
	Claude   bool          `json:"claude,omitempty"` // of calls to Claude, in place of limits.claude
	Requests int           `json:"requests"`
	Window   time.Duration `json:"window_ns"`
	Burst    int           `json:"burst,omitempty"`
	AtOnce   int           `json:"at_once,omitempty"`
	Until    time.Time     `json:"until,omitzero"` // absent: until it is ended
	Who      string        `json:"who,omitempty"`
	Why      string        `json:"why,omitempty"`
	Given    time.Time     `json:"given"`
}

func (g *Grant) tier() Tier {
	return Tier{Requests: g.Requests, Window: g.Window, Burst: g.Burst, AtOnce: g.AtOnce}
}

func (g *Grant) words() string {
	s := fmt.Sprintf("%d in %s", g.Requests, short(g.Window))
	if g.Claude {
		s += " of Claude"
	}
	if g.Burst > 0 {
		s += fmt.Sprintf(", burst %d", g.Burst)
	}
	if g.AtOnce > 0 {
		s += fmt.Sprintf(", %d at once", g.AtOnce)
	}
	if !g.Until.IsZero() {
		s += " until " + g.Until.UTC().Format(time.RFC3339)
	}
	return s
}

// A Board is where the nodes share their grants. Both calls end with ctx.
type Board interface {
	// Grants returns all grants by key, each as it was put. lost tells that nothing
	// was ever put: the board is new, or has forgotten.
	Grants(ctx context.Context) (all map[string][]byte, lost bool, err error)
	// PutGrant sets a caller's grant, or removes it if it is nil.
	PutGrant(ctx context.Context, key string, grant []byte) error
	// Tops returns what each node has put last of who is near a limit there, and PutTop
	// sets this node's, or removes it if it is nil.
	Tops(ctx context.Context) (map[string][]byte, error)
	PutTop(ctx context.Context, node string, top []byte) error
}

// The bounds of grants.
const (
	grantsFile = "limits-grants.json"
	maxGrants  = 1000
	grantTick  = time.Second
	boardEvery = 3 // ticks
	boardLimit = time.Second
)

// granting holds the grants in force.
type granting struct {
	mu  sync.Mutex // guards changes
	all map[grantee]Grant
}

// Grants lists what was given, by key.
func (g *Gate) Grants() []Grant {
	g.granting.mu.Lock()
	defer g.granting.mu.Unlock()
	all := []Grant{}
	for _, x := range g.granting.all {
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b Grant) int { return strings.Compare(a.Key, b.Key) })
	return all
}

func (g *Gate) grant(who grantee) (Grant, bool) {
	g.granting.mu.Lock()
	defer g.granting.mu.Unlock()
	x, ok := g.granting.all[who]
	return x, ok
}

// sound checks a grant and returns whose it is.
func sound(x *Grant, now time.Time) (grantee, error) {
	caller, err := ParseCaller(x.Key)
	who := grantee{caller, x.Claude}
	if err != nil {
		return who, fmt.Errorf("%q %w", clip(x.Key), err)
	}
	x.Key, x.Who, x.Why = caller.String(), shorten(x.Who), shorten(x.Why)
	var ps setting.Problems
	if t := x.tier(); x.Claude && caller.Kind == perAddress {
		ps.Add("", "is an address, and calls to Claude are counted for users and workspaces", "name one of those")
	} else {
		t.compile(&ps, "", callers...)
	}
	if !x.Until.IsZero() && !x.Until.After(now) {
		ps.Add("", "ends before it begins", "give a length of time from now")
	}
	return who, ps.Err()
}

// Grant gives a caller a limit of its own, at once and on all nodes.
func (g *Gate) Grant(ctx context.Context, x Grant) error {
	x.Given, x.Until = time.Now().UTC().Truncate(time.Second), x.Until.UTC().Round(0)
	who, err := sound(&x, x.Given)
	if err != nil {
		g.refusedGrants.Add(1)
		return fmt.Errorf("grant refused: %w", err)
	}
	return g.change(ctx, who, &x, Entry{What: "granted", Key: x.Key, Who: x.Who, Why: x.Why, After: x.words()})
}

// ErrNoGrant tells that there is nothing to end.
var ErrNoGrant = errors.New("has no grant")

// EndGrant takes a grant back.
func (g *Gate) EndGrant(ctx context.Context, q Inquiry) error {
	caller, err := ParseCaller(q.Key)
	if err != nil {
		return fmt.Errorf("%q %w", clip(q.Key), err)
	}
	who := grantee{caller, q.Claude}
	if _, ok := g.grant(who); !ok {
		return fmt.Errorf("%s %w", who, ErrNoGrant)
	}
	return g.change(ctx, who, nil, Entry{What: "ended", Key: caller.String(), Who: q.Who, Why: q.Why})
}

// change puts a grant in force, or out of it: on the board first, since a grant
// that one node alone knows would hold for some requests and not for others.
func (g *Gate) change(ctx context.Context, who grantee, x *Grant, e Entry) error {
	g.granting.mu.Lock()
	defer g.granting.mu.Unlock()
	next := maps.Clone(g.granting.all)
	if old, ok := next[who]; ok {
		e.Before = old.words()
	}
	var text []byte
	if delete(next, who); x != nil {
		if len(next) >= maxGrants {
			return fmt.Errorf("there are %d grants already; end some, or write them into limits.overrides", maxGrants)
		}
		next[who] = *x
		text, _ = json.Marshal(x) // text, numbers and times: cannot fail
	}
	if g.deps.Board != nil {
		ctx, cancel := context.WithTimeout(ctx, boardLimit)
		defer cancel()
		if err := g.deps.Board.PutGrant(ctx, who.String(), text); err != nil {
			return fmt.Errorf("tell the other nodes by Redis, nothing changed: %w", err)
		}
	}
	g.enforce(next)
	err := g.keep()
	g.told("limits_"+e.What, "The limits of a caller were changed.", e)
	return err
}

// enforce puts a set of grants in force. What does not compile was refused before.
func (g *Gate) enforce(all map[grantee]Grant) {
	compiled := make(grants, len(all))
	for who, x := range all {
		var ps setting.Problems
		t := x.tier()
		kinds := callers
		if who.claude {
			kinds = []string{claudeUser, claudeWorkspace}
		}
		compiled[who] = t.compile(&ps, "", kinds...)
	}
	g.granting.all = all
	g.granted.Store(&compiled)
}

// keep writes the grants down, whole or not at all.
func (g *Gate) keep() error {
	if g.deps.Dir == "" {
		return nil
	}
	list := slices.SortedFunc(maps.Values(g.granting.all), func(a, b Grant) int { return strings.Compare(a.Key, b.Key) })
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	return replace(g.deps.Dir, grantsFile, true, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// loadGrants reads what was written down. A file that others may write is not
// believed: it could hold anything.
func (g *Gate) loadGrants() error {
	g.granting.all = map[grantee]Grant{}
	if g.deps.Dir == "" {
		return nil
	}
	path := filepath.Join(g.deps.Dir, grantsFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the grants: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 || !info.Mode().IsRegular() || info.Size() > 4*maxAudit {
		g.forged(path + " can be written by others than its owner, or is no file of ours; the grants in it are not in force")
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the grants: %w", err)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		g.forged(path + " is damaged; the grants in it are not in force")
		return nil
	}
	g.enforce(g.sift(list))
	return nil
}

// sift takes the grants that are sound, and counts the others.
func (g *Gate) sift(list []json.RawMessage) map[grantee]Grant {
	all, now := map[grantee]Grant{}, time.Now()
	for _, text := range list {
		var x Grant
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&x); err != nil || len(all) >= maxGrants {
			g.forged("a grant is not understood, and not in force")
			continue
		}
		if !x.Until.IsZero() && !x.Until.After(now) {
			continue // it is over
		}
		who, err := sound(&x, now)
		if err != nil {
			g.forged("a grant makes no sense, and is not in force: " + err.Error())
			continue
		}
		all[who] = x
	}
	return all
}

// forged tells of a grant that nobody gave by the way there is.
func (g *Gate) forged(what string) {
	g.refusedGrants.Add(1)
	g.deps.Log.Error("a grant of limits was refused", "why", what)
}

// tend ends grants whose time is over and follows the other nodes, until ctx ends.
func (g *Gate) tend(ctx context.Context) {
	tick := time.NewTicker(grantTick)
	defer tick.Stop()
	for n := 0; ; n++ {
		if g.deps.Board != nil && n%boardEvery == 0 {
			g.follow(ctx)
			g.shareTop(ctx)
		}
		g.expire()
		select {
		case <-ctx.Done():
			g.withdrawTop(context.WithoutCancel(ctx))
			return
		case <-tick.C:
		}
	}
}

func (g *Gate) expire() {
	g.granting.mu.Lock()
	defer g.granting.mu.Unlock()
	next, now := maps.Clone(g.granting.all), time.Now()
	for who, x := range next {
		if !x.Until.IsZero() && !x.Until.After(now) {
			delete(next, who)
			g.told("limits_expired", "A grant has ended.", Entry{What: "expired", Key: x.Key, Before: x.words()})
		}
	}
	if len(next) < len(g.granting.all) {
		g.enforce(next)
		if err := g.keep(); err != nil {
			g.deps.Log.Error("the grants were not written down", "err", err)
		}
	}
}

// follow takes over what other nodes have granted, or tells a board that has
// forgotten everything what this one knows.
func (g *Gate) follow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, boardLimit)
	defer cancel()
	texts, lost, err := g.deps.Board.Grants(ctx)
	if err != nil {
		return // as before, until Redis answers
	}
	g.granting.mu.Lock()
	defer g.granting.mu.Unlock()
	if lost {
		for who, x := range g.granting.all {
			text, _ := json.Marshal(x) // as above
			if g.deps.Board.PutGrant(ctx, who.String(), text) != nil {
				return // the next turn goes on
			}
		}
		return
	}
	list := make([]json.RawMessage, 0, len(texts))
	for _, text := range texts {
		list = append(list, text)
	}
	next := g.sift(list)
	if reflect.DeepEqual(next, g.granting.all) {
		return
	}
	g.enforce(next)
	if err := g.keep(); err != nil {
		g.deps.Log.Error("the grants were not written down", "err", err)
	}
}

// told writes a change into the audit log and tells it.
func (g *Gate) told(name, text string, e Entry) {
	e.Time = time.Now().UTC()
	if err := g.audit.write(e); err != nil {
		g.deps.Log.Error("the audit log was not written", "err", err)
	}
	g.deps.Sink.Emit(telemetry.Event{Time: e.Time, Part: "limits", Name: name, Level: slog.LevelInfo, Text: text,
		Attrs: []slog.Attr{slog.String("key", e.Key), slog.String("who", e.Who), slog.String("why", e.Why), slog.String("before", e.Before), slog.String("after", e.After)}})
}

// Audit returns the latest changes of limits, newest first, at most n.
func (g *Gate) Audit(n int) ([]Entry, error) { return g.audit.latest(n) }

// compared writes down what a reload has changed in the overrides of the file.
func (g *Gate) compared(old, next map[string]Tier) {
	for _, key := range slices.Sorted(maps.Keys(next)) {
		was, had := old[key]
		switch {
		case !had:
			g.told("limits_override", "An override was added to the file.", Entry{What: "added", Key: key, Who: "the file", After: fmt.Sprintf("%+v", next[key])})
		case !reflect.DeepEqual(was, next[key]):
			g.told("limits_override", "An override of the file was changed.", Entry{What: "changed", Key: key, Who: "the file", Before: fmt.Sprintf("%+v", was), After: fmt.Sprintf("%+v", next[key])})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(old)) {
		if _, still := next[key]; !still {
			g.told("limits_override", "An override was taken out of the file.", Entry{What: "removed", Key: key, Who: "the file", Before: fmt.Sprintf("%+v", old[key])})
		}
	}
}
