package limits

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// As many members of a workspace as its limit has units are refused at about the
// same time, and each comes again when it is told to: it passes, however the units
// were taken.
func TestMembersOfAWorkspaceWhoAreRefusedComeOneAfterTheOther(t *testing.T) {
	for name, nodes := range map[string]int{"in process": 0, "shared": 1, "three nodes": 3} {
		for _, limit := range []Tier{{Requests: 40, Window: time.Hour}, {Requests: 300, Window: time.Hour}, {Requests: 40, Window: time.Hour, Burst: 10}} {
			t.Run(fmt.Sprint(name, " ", limit.Requests, " ", limit.Burst), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := Deps{Nodes: func() int { return nodes }}
					if nodes > 0 {
						d.Store = ratelimit.NewMemory(0)
					}
					competing(t, d, limit, max(nodes, 1))
				})
			})
		}
	}
}

func competing(t *testing.T, d Deps, limit Tier, nodes int) {
	var gates []*Gate
	for range nodes {
		gates = append(gates, gate(t, d, func(c *Config) { c.Per, c.Tiers["free"] = []string{perWorkspace}, limit }))
	}
	g := gates[0]
	random := rand.New(rand.NewPCG(1, uint64(limit.Requests)))
	member := func(i int) Ask { return Ask{User: fmt.Sprint("member ", i), Workspace: "w", Tier: "free"} }
	for v, err := g.Admit(t.Context(), member(0)); v.Allowed; v, err = g.Admit(t.Context(), member(0)) {
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.ExpFloat64() * float64(limit.Window/4) / float64(limit.Requests))) // in clumps
	}
	members := 40
	if limit.Burst > 0 {
		members = limit.Burst
	}
	base := time.Now()
	due := map[time.Duration][]int{}
	last := time.Duration(0)
	for i := 1; i < members; i++ {
		g := gates[i*i%nodes] // not evenly
		v, err := g.Admit(t.Context(), member(i))
		wait, ok := v.RetryAfter()
		if err != nil || v.Allowed || !ok {
			t.Fatalf("member %d: %+v %v", i, v, err)
		}
		if again, _ := g.Admit(t.Context(), member(i)); func() int64 { n, _ := again.RetryAfter(); return n }() != wait {
			t.Errorf("member %d was told two moments", i)
		}
		at := time.Duration(wait) * time.Second
		due[at] = append(due[at], i)
		last = max(last, at)
	}
	passed := 0
	for at := time.Duration(0); at <= last; at += time.Second {
		for _, i := range due[at] {
			time.Sleep(time.Until(base.Add(at)))
			v, err := gates[i%nodes].Admit(t.Context(), member(i))
			if err != nil {
				t.Fatal(err)
			}
			if v.Allowed {
				passed++
			}
		}
	}
	if came := members - 1; passed*100 < came*99 {
		t.Errorf("%d of %d passed when they were told to come", passed, came)
	}
}
