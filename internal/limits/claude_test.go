package limits

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

func tokens(c *Config) {
	c.Claude = Claude{Cost: "tokens", Limit: Tier{Requests: 10_000, Window: time.Hour}}
}

func TestCallsThatRunAtOnceTakeNoMoreTokensThanAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(t, Deps{}, tokens)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- g.Run(ctx) }()
		var all sync.WaitGroup
		var took, began atomic.Int64
		for range 100 { // together ten times what there is
			all.Go(func() {
				v, err := g.Admit(t.Context(), Ask{User: "ann", Workspace: "w", Claude: true, Cost: 1000})
				if err != nil || !v.Allowed {
					return
				}
				began.Add(1)
				time.Sleep(time.Second)
				took.Add(900)
				g.SettleTokens(&v, 900)
			})
		}
		all.Wait()
		if began.Load() != 10 || took.Load() > 10_000 {
			t.Errorf("%d calls began and took %d tokens of 10000", began.Load(), took.Load())
		}
		synctest.Wait()
		// What was not needed has come back: enough for one more, and a bit.
		v, err := g.Admit(t.Context(), Ask{User: "ann", Workspace: "w", Claude: true, Cost: 900})
		if err != nil || !v.Allowed || v.Nearest().Remaining != 100 {
			t.Errorf("%+v %v", v, err)
		}
		// A call that may need more than is left begins with that.
		last, err := g.Admit(t.Context(), Ask{User: "ann", Workspace: "w", Claude: true, Cost: 1e6})
		if err != nil || !last.Allowed || last.Nearest().Remaining != 0 {
			t.Errorf("%+v %v", last, err)
		}
		none, err := g.Admit(t.Context(), Ask{User: "ann", Workspace: "w", Claude: true, Cost: 5})
		if retry, ok := none.RetryAfter(); err != nil || none.Allowed || !ok || retry > 3660 || retry < 3590 {
			t.Errorf("%+v %v", none, err)
		}
		// Nobody else is held back, and a larger need than the limit itself is none.
		if v, err := g.Admit(t.Context(), Ask{User: "bob", Claude: true, Cost: ratelimit.MaxUnits}); err != nil || !v.Allowed {
			t.Errorf("%+v %v", v, err)
		}
		g.SettleTokens(&last, 20_000)
		g.SettleTokens(&v, 0)
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

func TestAUserAndAWorkspaceWithDifferentRestsAreSettledEach(t *testing.T) {
	g := gate(t, Deps{}, tokens)
	if _, err := g.Admit(t.Context(), Ask{User: "bob", Workspace: "w", Claude: true, Cost: 9800}); err != nil {
		t.Fatal(err)
	}
	v, err := g.Admit(t.Context(), Ask{User: "ann", Workspace: "w", Claude: true, Cost: 500})
	if err != nil || !v.Allowed {
		t.Fatalf("%+v %v", v, err)
	}
	if err := v.Settle(t.Context(), g.store, 300); err != nil { // 200 are back for ann, and 100 more than the workspace had
		t.Fatal(err)
	}
	s, err := g.Show(t.Context(), Inquiry{Key: "user:ann", Workspace: "w"})
	if err != nil || left(s, claudeUser) != 9700 {
		t.Errorf("%+v %v", s, err)
	}
}

func left(s Showing, rule string) int64 {
	for _, r := range s.Rules {
		if r.Name == rule {
			return r.Remaining
		}
	}
	return -1
}

func TestOverridesGrantsAndFailuresReachCallsToClaude(t *testing.T) {
	dir := t.TempDir()
	change := func(c *Config) {
		c.Claude.Limit = Tier{Requests: 1, Window: time.Hour}
		c.Claude.Overrides = map[string]Tier{"user:eve": {Requests: 3, Window: time.Hour}}
		c.Overrides = map[string]Tier{"user:ann": {Requests: 50, Window: time.Hour}} // of requests: another matter
	}
	g := gate(t, Deps{Dir: dir}, change)
	call := func(g *Gate, user string) (n int) { return pass(t, g, Ask{User: user, Claude: true}, 10) }
	if ann, eve := call(g, "ann"), call(g, "eve"); ann != 1 || eve != 3 {
		t.Errorf("ann had %d calls, eve %d", ann, eve)
	}
	if err := g.Grant(t.Context(), Grant{Key: "user:ann", Claude: true, Requests: 6, Window: time.Hour, Who: "op", Why: "launch"}); err != nil {
		t.Fatal(err)
	}
	if ann := call(g, "ann"); ann != 5 {
		t.Errorf("granted 6 of which 1 was used, ann had %d", ann)
	}
	if n := pass(t, g, Ask{User: "ann"}, 60); n != 50 {
		t.Errorf("the grant for Claude changed the requests: %d", n)
	}
	again := gate(t, Deps{Dir: dir}, change) // after a restart
	s, err := again.Show(t.Context(), Inquiry{Key: "user:ann"})
	if err != nil || s.Claude == nil || s.Claude.Requests != 6 || s.Grant != nil || left(s, claudeUser) != 6 {
		t.Errorf("%+v %v", s, err)
	}
	if err := again.EndGrant(t.Context(), Inquiry{Key: "user:ann"}); !errors.Is(err, ErrNoGrant) {
		t.Errorf("there is no grant of requests: %v", err)
	}
	if err := again.EndGrant(t.Context(), Inquiry{Key: "user:ann", Claude: true}); err != nil || call(again, "ann") != 1 {
		t.Errorf("after its end: %v", err)
	}
	if err := g.Grant(t.Context(), Grant{Key: "address:192.0.2.7", Claude: true, Requests: 6, Window: time.Hour}); err == nil {
		t.Error("an address makes no calls that are counted")
	}

	shut := gate(t, Deps{Store: broken{}}, func(c *Config) { change(c); c.Claude.OnStoreFailure = "deny" })
	for range 5 {
		if n := pass(t, shut, Ask{User: "ann", Claude: true}, 1); n != 0 {
			t.Error("without Redis a call was admitted, and the file says deny")
		}
	}
	if n := pass(t, shut, Ask{User: "ann"}, 1); n != 1 {
		t.Error("requests go on locally")
	}
}

// broken is a store that is down.
type broken struct{}

var errBroken = errors.New("down")

func (broken) Take(context.Context, []ratelimit.Check, []ratelimit.Result) (ratelimit.Decision, error) {
	return ratelimit.Decision{}, errBroken
}
func (broken) Refund(context.Context, ratelimit.Decision, []ratelimit.Check) error { return errBroken }
func (broken) Charge(context.Context, []ratelimit.Check) error                     { return errBroken }
func (broken) Restore(context.Context, []ratelimit.Check, []ratelimit.Debt) error  { return errBroken }
func (broken) Reset(context.Context, []ratelimit.Check) error                      { return errBroken }
