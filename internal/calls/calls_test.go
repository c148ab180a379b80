package calls

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

func record(r *Ring, id, code string) {
	x := telemetry.Begin("claude")
	x.ID, x.Code, x.Blame = id, code, telemetry.BlameNone
	x.GenAI = telemetry.GenAI{Model: "m", Saved: "hold", CostNanoUSD: 25e7, UpstreamID: "req_2"}
	x.Try(telemetry.Attempt{Cause: "overloaded", Status: 529, UpstreamID: "req_1"})
	x.Try(telemetry.Attempt{Waited: time.Second, Status: 200, UpstreamID: "req_2"})
	x.End(r)
}

func TestTheLatestCallsAreKeptAndFound(t *testing.T) {
	r := New(3)
	r.Record(&telemetry.Exchange{Plane: "edge"})
	for i, code := range []string{"ok", "ok", "overloaded", "ok", "held"} {
		record(r, string(rune('a'+i)), code)
	}
	for want, q := range map[string]Query{
		"cde": {Last: 10}, "de": {Last: 2}, "ce": {Last: 10, Failed: true}, "e": {Last: 10, After: 4}, "": {Last: 10, After: 5},
	} {
		got := ""
		for _, c := range r.Find(q) {
			got += c.ID
		}
		if got != want {
			t.Errorf("%+v: %q, want %q", q, got, want)
		}
	}
	c := r.Find(Query{Last: 1})[0]
	if c.N != 5 || c.SavedBy != "hold" || c.Dollars != 0.25 || c.Tries != 2 || c.Attempts[0].Cause != "overloaded" || c.Attempts[1].Waited != time.Second || c.Attempts[1].UpstreamID != "req_2" {
		t.Errorf("%+v", c)
	}
	r.Resize(1)
	if found := r.Find(Query{Last: 10}); len(found) != 1 || found[0].ID != "e" {
		t.Errorf("%+v", found)
	}
	r.Resize(0)
	record(r, "f", "ok")
	if found := r.Find(Query{Last: 10}); len(found) != 0 {
		t.Errorf("%+v", found)
	}
}

func TestACallWeighsLittleWhateverItsCallerSends(t *testing.T) {
	r := New(1)
	long := strings.Repeat("é", 1<<20)
	x := &telemetry.Exchange{Plane: "claude", ID: long, User: long, Workspace: long, Err: errors.New(long), GenAI: telemetry.GenAI{Model: long}}
	x.Try(telemetry.Attempt{UpstreamID: long})
	r.Record(x)
	c := r.Find(Query{Last: 1})[0]
	for _, s := range []string{c.ID, c.User, c.Workspace, c.Err, c.Model, c.Attempts[0].UpstreamID} {
		if len(s) > 260 || !strings.HasPrefix(s, "éé") {
			t.Errorf("%d bytes", len(s))
		}
	}
}

func TestManyMayRecordAndLookAtOnce(t *testing.T) {
	r := New(10)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				record(r, "x", "ok")
				r.Find(Query{Last: 5})
			}
		})
	}
	wg.Wait()
	if c := r.Find(Query{Last: 1}); c[0].N != 800 {
		t.Errorf("%d", c[0].N)
	}
}
