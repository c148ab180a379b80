package limits

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTheTopIsOfAllNodesThatLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := &shelf{}
		var nodes [2]*Gate
		var ends [2]context.CancelFunc
		var running sync.WaitGroup
		for i := range nodes {
			ctx, cancel := context.WithCancel(t.Context())
			nodes[i], ends[i] = gate(t, Deps{Board: board}, nil), cancel
			running.Go(func() { _ = nodes[i].Run(ctx) })
		}
		pass(t, nodes[0], Ask{User: "ann"}, 105) // 5 are refused
		pass(t, nodes[1], Ask{User: "ann"}, 101)
		pass(t, nodes[1], Ask{User: "bob"}, 50)
		time.Sleep(7 * time.Second)
		look := func(g *Gate) (got []string) {
			o := g.Overview(10)
			got = append(got, fmt.Sprintf("of %d", o.Told))
			for _, s := range o.Top {
				got = append(got, fmt.Sprintf("%s %.0f%% %d %v", s.Key, 100*s.Used, s.Refused, time.Since(s.Seen) < 20*time.Second))
			}
			return got
		}
		both := []string{"of 2", "user:ann 100% 6 true", "user:bob 50% 0 true"}
		for i, g := range nodes {
			if diff := cmp.Diff(both, look(g)); diff != "" {
				t.Errorf("node %d: %s", i, diff)
			}
		}
		board.set(true, false) // no news for a while
		time.Sleep(20 * time.Second)
		if diff := cmp.Diff([]string{"of 1", "user:ann 100% 5 false"}, look(nodes[0])); diff != "" {
			t.Error(diff)
		}
		board.set(false, false)
		time.Sleep(7 * time.Second)
		if got := look(nodes[0]); got[0] != "of 2" {
			t.Errorf("after the board is back: %v", got)
		}
		// What makes no sense is not listened to; who ends properly is gone at once, and
		// who does not, after a while.
		for node, text := range map[string]string{"junk": "{", "huge": strings.Repeat("x", toldBytes+1), "many": `{"turn":1,"top":[` + strings.Repeat("{},", toldCallers) + `{}]}`, "dead": `{"turn":7,"top":[{"key":"user:eve","used":2,"ago_ns":-5}]}`} {
			_ = board.PutTop(t.Context(), node, []byte(text))
		}
		time.Sleep(4 * time.Second)
		if got := look(nodes[0]); got[0] != "of 3" {
			t.Errorf("with one more: %v", got)
		}
		ends[1]()
		time.Sleep(20 * time.Second)
		if got := look(nodes[0]); got[0] != "of 1" {
			t.Errorf("alone again: %v", got)
		}
		time.Sleep(2 * time.Minute)
		if all, _ := board.Tops(t.Context()); all["dead"] != nil || len(all) != 4 {
			t.Errorf("on the board stand %d", len(all))
		}
		ends[0]()
		running.Wait()
	})
}

func FuzzFellows(f *testing.F) {
	f.Add([]byte(`{"turn":7,"top":[{"key":"user:eve","used":2,"ago_ns":-5}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var f fellows
		now := time.Now()
		f.hear(map[string][]byte{"other": text}, now)
		top, nodes := f.join([]Standing{{Key: "user:ann"}}, 10, now)
		if len(top) < 1 || len(top) > 10 || nodes < 1 || nodes > 2 {
			t.Errorf("%d callers of %d nodes", len(top), nodes)
		}
		if _, err := json.Marshal(top); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatANodeCountsAloneIsWrittenEverySecondAndOnlyIfItChanged(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		g := gate(t, Deps{Dir: dir}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- g.Run(ctx) }()
		at := func() (written time.Time) {
			if info, err := os.Stat(filepath.Join(dir, countersFile)); err == nil {
				written = info.ModTime()
			}
			return written
		}
		time.Sleep(3 * time.Second)
		if !at().IsZero() {
			t.Error("nothing was counted, and something written")
		}
		pass(t, g, Ask{User: "ann"}, 60)
		time.Sleep(1100 * time.Millisecond)
		// A kill at this moment: another process reads what there is.
		again := gate(t, Deps{Dir: dir}, nil)
		if n := pass(t, again, Ask{User: "ann"}, 100); n != 40 {
			t.Errorf("after a kill %d passed of 40 that were left", n)
		}
		before := at()
		time.Sleep(10 * time.Second)
		if !at().Equal(before) {
			t.Error("it was written again without a change")
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}
