package limits

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// gate makes one in dir with the defaults as change leaves them.
func gate(t *testing.T, d Deps, change func(*Config)) *Gate {
	t.Helper()
	var c Config
	c.SetDefaults()
	if change != nil {
		change(&c)
	}
	g, err := NewGate(c, d)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// pass asks n times and returns how many were admitted.
func pass(t *testing.T, g *Gate, a Ask, n int) (passed int) {
	t.Helper()
	for range n {
		v, err := g.Admit(context.Background(), a)
		if err != nil {
			t.Fatal(err)
		}
		if v.Allowed {
			passed++
		}
	}
	return passed
}

func TestTheTopIsWhoIsNearestToALimit(t *testing.T) {
	g := gate(t, Deps{}, nil)
	pass(t, g, Ask{User: "ann", Workspace: "w", Tier: "pro"}, 500)
	pass(t, g, Ask{User: "bob"}, 90)
	pass(t, g, Ask{Address: netip.MustParseAddr("192.0.2.7")}, 103)
	var got []string
	for _, s := range g.Top(10) {
		got = append(got, fmt.Sprintf("%s %s %s %.0f%% %d", s.Key, s.Tier, s.Workspace, 100*s.Used, s.Refused))
	}
	want := []string{"address:192.0.2.7 free  100% 3", "user:bob free  90% 0", "user:ann pro w 50% 0", "workspace:w pro  50% 0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := len(g.Top(2)); n != 2 {
		t.Errorf("%d of 2", n)
	}
}

func TestNoRefusalIsLeftOutOfTheTop(t *testing.T) {
	const flooders, each = 8, 2000
	g := gate(t, Deps{}, nil)
	pass(t, g, Ask{User: "ann"}, 100) // what she has
	var flood sync.WaitGroup
	var passed atomic.Int64
	for range flooders {
		flood.Go(func() { passed.Add(int64(pass(t, g, Ask{User: "ann"}, each))) })
	}
	flood.Wait()
	refused := uint64(flooders*each - passed.Load())
	if top := g.Top(1); len(top) != 1 || top[0].Refused != refused {
		t.Errorf("%+v after %d refusals", top, refused)
	}
}

func TestWhoeverIsNearALimitIsNotWashedAwayByAFlood(t *testing.T) {
	g := gate(t, Deps{}, nil)
	pass(t, g, Ask{User: "near"}, 95)
	for i := range 20_000 {
		pass(t, g, Ask{User: fmt.Sprint("flood", i)}, 1)
	}
	n := 0
	for i := range g.seen.shards {
		n += len(g.seen.shards[i].callers)
	}
	if n > seenShards*maxSeen {
		t.Errorf("%d callers are remembered", n)
	}
	if top := g.Top(1); len(top) != 1 || top[0].Key != "user:near" {
		t.Errorf("got %+v", top)
	}
}

func TestShowTakesNothingAndResetForgets(t *testing.T) {
	ctx := context.Background()
	g := gate(t, Deps{}, func(c *Config) {
		c.Routes = []Route{{Name: "login", Path: "/login", Cost: 1, Limit: Tier{Requests: 5, Window: time.Minute}}}
		c.Overrides = map[string]Tier{"user:vip": {Requests: 7, Window: time.Minute}}
		c.Allow = []string{"user:root"}
		c.Deny = []string{"user:bad"}
	})
	ann := Ask{User: "ann", Workspace: "w", Tier: "pro", Path: "/login"}
	if n := pass(t, g, ann, 9); n != 5 {
		t.Fatalf("%d passed", n)
	}
	show := func(key string) Showing {
		t.Helper()
		s, err := g.Show(ctx, Inquiry{Key: key})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	rules := func(s Showing) (got []string) {
		for _, r := range s.Rules {
			got = append(got, fmt.Sprintf("%s %d/%d", r.Name, r.Remaining, r.Limit))
		}
		return got
	}
	for range 2 {
		s := show("user:ann")
		if diff := cmp.Diff([]string{"user 995/1000", "login 0/5"}, rules(s)); diff != "" || s.Tier != "pro" || s.Workspace != "w" || s.Refused != 4 {
			t.Errorf("%s %+v", diff, s)
		}
	}
	if diff := cmp.Diff([]string{"workspace 995/1000"}, rules(show("workspace:w"))); diff != "" {
		t.Error(diff)
	}
	if s := show("user:vip"); s.From != "file" || s.Rules[0].Limit != 7 {
		t.Errorf("%+v", s)
	}
	if a, d := show("user:root"), show("user:bad"); a.Exempt != "allow" || d.Exempt != "deny" {
		t.Errorf("%+v %+v", a, d)
	}
	if err := g.Reset(ctx, Inquiry{Key: "user:ann"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"user 1000/1000", "login 5/5"}, rules(show("user:ann"))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"workspace 995/1000"}, rules(show("workspace:w"))); diff != "" {
		t.Errorf("the workspace's: %s", diff)
	}
	for _, key := range []string{"ann", "user:", "tier:pro", "address:x"} {
		if _, err := g.Show(ctx, Inquiry{Key: key}); err == nil || !strings.Contains(err.Error(), "names no caller") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestAGrantHoldsAtOnceEndsInTimeAndIsWrittenDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, ctx := t.TempDir(), context.Background()
		g := gate(t, Deps{Dir: dir}, nil)
		rctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- g.Run(rctx) }()
		a := Ask{User: "ann"}
		pass(t, g, a, 100)
		err := g.Grant(ctx, Grant{Key: "user:ann", Requests: 150, Window: time.Hour, Until: time.Now().Add(10 * time.Minute), Who: "eve@host", Why: "launch"})
		if err != nil {
			t.Fatal(err)
		}
		if n := pass(t, g, a, 60); n > 50 || n < 40 {
			t.Errorf("%d more passed", n)
		}
		info, err := os.Stat(filepath.Join(dir, grantsFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info.Mode(), err)
		}
		again := gate(t, Deps{Dir: dir}, nil)
		if x := again.Grants(); len(x) != 1 || x[0].Requests != 150 || x[0].Who != "eve@host" {
			t.Errorf("after a restart: %+v", x)
		}
		time.Sleep(10*time.Minute + 2*time.Second)
		if x := g.Grants(); len(x) != 0 {
			t.Errorf("it has not ended: %+v", x)
		}
		if err := g.EndGrant(ctx, Inquiry{Key: "user:ann"}); !errors.Is(err, ErrNoGrant) {
			t.Errorf("got %v", err)
		}
		if err := g.Reset(ctx, Inquiry{Key: "user:ann", Who: "bob"}); err != nil {
			t.Error(err)
		}
		entries, err := g.Audit(10)
		var got []string
		for _, e := range entries {
			got = append(got, e.What+" "+e.Key+" "+e.Who+" "+e.Why)
		}
		if diff := cmp.Diff([]string{"reset user:ann bob ", "expired user:ann  ", "granted user:ann eve@host launch"}, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAForgedGrantIsRefusedAndCounted(t *testing.T) {
	ctx, g := context.Background(), gate(t, Deps{Dir: t.TempDir()}, nil)
	for _, x := range []Grant{
		{Key: "ann", Requests: 1, Window: time.Hour}, {Key: "user:ann"}, {Key: "user:ann", Requests: -1, Window: time.Hour},
		{Key: "user:ann", Requests: 1, Window: -time.Hour}, {Key: "user:ann", Requests: 1, Window: 1000 * 24 * time.Hour},
		{Key: "user:ann", Requests: 1 << 60, Window: time.Hour}, {Key: "user:ann", Requests: 1, Window: time.Hour, Until: time.Now().Add(-time.Hour)},
		{Key: "user:ann", Requests: 1, Window: time.Hour, Burst: -1}, {Key: "user:ann", AtOnce: -3},
	} {
		if err := g.Grant(ctx, x); err == nil {
			t.Errorf("%+v was granted", x)
		}
	}
	if n := g.refusedGrants.Load(); n != 9 || len(g.Grants()) != 0 {
		t.Errorf("%d were counted, %d are in force", n, len(g.Grants()))
	}
	for text, sound := range map[string]int{
		`[{"key": "user:ann", "requests": 1000000, "window_ns": 3600000000000}, {"key": "tier:pro", "requests": 1}, {"key": "user:x", "admin": true}, 7]`: 1,
		`{"user:ann": 5}`: 0, "junk": 0, `[{"key": "user:ann", "requests": -5, "window_ns": 1}]`: 0,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, grantsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		g := gate(t, Deps{Dir: dir}, nil)
		if n := len(g.Grants()); n != sound || g.refusedGrants.Load() == 0 {
			t.Errorf("%s: %d are in force, %d refused", text, n, g.refusedGrants.Load())
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, grantsFile)
	if err := os.WriteFile(path, []byte(`[{"key": "user:ann", "requests": 9, "window_ns": 3600000000000}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if g := gate(t, Deps{Dir: dir}, nil); len(g.Grants()) != 0 || g.refusedGrants.Load() != 1 {
		t.Error("a file that anybody may write was believed")
	}
}

// shelf is a board in memory.
type shelf struct {
	mu   sync.Mutex
	all  map[string][]byte // nil: it has forgotten everything
	tops map[string][]byte
	down bool
}

func (s *shelf) Grants(context.Context) (map[string][]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, false, errors.New("down")
	}
	all := map[string][]byte{}
	maps.Copy(all, s.all)
	return all, s.all == nil, nil
}

func (s *shelf) PutGrant(_ context.Context, key string, text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errors.New("down")
	}
	if s.all == nil {
		s.all = map[string][]byte{}
	}
	if delete(s.all, key); text != nil {
		s.all[key] = text
	}
	return nil
}

func (s *shelf) Tops(context.Context) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("down")
	}
	return maps.Clone(s.tops), nil
}

func (s *shelf) PutTop(_ context.Context, node string, text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errors.New("down")
	}
	if s.tops == nil {
		s.tops = map[string][]byte{}
	}
	if delete(s.tops, node); text != nil {
		s.tops[node] = text
	}
	return nil
}

func (s *shelf) set(down, forget bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down = down; forget {
		s.all = nil
	}
}

func TestGrantsAreSharedByAllNodesAndOutliveTheirBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, board := context.Background(), &shelf{}
		rctx, cancel := context.WithCancel(ctx)
		var nodes [2]*Gate
		var running sync.WaitGroup
		for i := range nodes {
			nodes[i] = gate(t, Deps{Board: board}, nil)
			running.Go(func() { _ = nodes[i].Run(rctx) })
		}
		grant := Grant{Key: "workspace:w", Requests: 5, Window: time.Hour}
		if err := nodes[0].Grant(ctx, grant); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if n := len(nodes[1].Grants()); n != 1 {
			t.Errorf("the other node knows %d grants", n)
		}
		board.set(false, true)
		time.Sleep(5 * time.Second)
		if all, lost, _ := board.Grants(ctx); lost || len(all) != 1 {
			t.Errorf("the board was not told again: %v %v", all, lost)
		}
		board.set(true, false)
		if err := nodes[0].EndGrant(ctx, Inquiry{Key: "workspace:w"}); err == nil || !strings.Contains(err.Error(), "nothing changed") {
			t.Errorf("got %v", err)
		}
		time.Sleep(5 * time.Second)
		if len(nodes[0].Grants()) != 1 || len(nodes[1].Grants()) != 1 {
			t.Error("a board that is down took grants away")
		}
		board.set(false, false)
		if err := nodes[1].EndGrant(ctx, Inquiry{Key: "workspace:w"}); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Second)
		if n := len(nodes[0].Grants()); n != 0 {
			t.Errorf("after the end the other node knows %d grants", n)
		}
		cancel()
		running.Wait()
	})
}

func TestTheAuditLogIsBoundedAndItsOwnersAlone(t *testing.T) {
	a := audit{dir: t.TempDir()}
	for i := range 4000 {
		if err := a.write(Entry{What: "granted", Key: fmt.Sprint("user:", i), Why: strings.Repeat("x", 2000)}); err != nil {
			t.Fatal(err)
		}
	}
	total := int64(0)
	for _, name := range []string{auditFile, auditFile + ".1"} {
		info, err := os.Stat(filepath.Join(a.dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v %v", name, info, err)
		}
		total += info.Size()
	}
	if total > 2*maxAudit {
		t.Errorf("it has %d bytes", total)
	}
	entries, err := a.latest(3)
	if err != nil || len(entries) != 3 || entries[0].Key != "user:3999" {
		t.Errorf("%v %v", entries, err)
	}
}

func TestAReloadThatChangesOverridesIsWrittenDown(t *testing.T) {
	g := gate(t, Deps{Dir: t.TempDir()}, func(c *Config) {
		c.Overrides = map[string]Tier{"user:a": {Requests: 1, Window: time.Hour}, "user:b": {Requests: 1, Window: time.Hour}}
	})
	var c Config
	c.SetDefaults()
	c.Overrides = map[string]Tier{"user:b": {Requests: 2, Window: time.Hour}, "user:c": {Requests: 1, Window: time.Hour}}
	commit, err := g.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	if n := pass(t, g, Ask{User: "b"}, 5); n != 2 {
		t.Errorf("%d passed the new override", n)
	}
	entries, err := g.Audit(10)
	b, _ := json.Marshal(entries)
	if len(entries) != 3 || err != nil || entries[0].What != "removed" || entries[1].What != "added" || entries[2].What != "changed" {
		t.Errorf("%s %v", b, err)
	}
}

func TestARestartOfANodeWithoutRedisForgetsNothing(t *testing.T) {
	dir := t.TempDir()
	d := Deps{Dir: dir}
	g := gate(t, d, nil)
	if n := pass(t, g, Ask{User: "ann"}, 60); n != 60 {
		t.Fatalf("%d passed", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Run(ctx); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, countersFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	if n := pass(t, gate(t, d, nil), Ask{User: "ann"}, 60); n != 40 {
		t.Errorf("%d passed after the restart, want 40", n)
	}
	if err := os.WriteFile(filepath.Join(dir, countersFile), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := pass(t, gate(t, d, nil), Ask{User: "ann"}, 60); n != 60 {
		t.Errorf("%d passed after damage", n)
	}
}

func BenchmarkGate(b *testing.B) {
	var c Config
	c.SetDefaults()
	g, err := NewGate(c, Deps{})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Admit(ctx, Ask{User: "ann", Workspace: "w", Tier: "enterprise"}); err != nil {
			b.Fatal(err)
		}
	}
}
