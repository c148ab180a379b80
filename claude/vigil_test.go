package claude

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The timer is set rarely, and yet fires when it should: at the time that was last
// awaited, be it sooner or later than one before.
func TestAVigilEndsWhenNothingComes(t *testing.T) {
	for _, c := range []struct {
		name  string
		keep  func(v *vigil)
		after time.Duration
	}{
		{"nothing at all", func(*vigil) {}, 10 * time.Second},
		{"something for a while", func(v *vigil) {
			for range 50 {
				v.await(10 * time.Second)
				time.Sleep(3 * time.Second)
				v.rest()
			}
			v.await(10 * time.Second)
		}, 160 * time.Second},
		{"a rest longer than the wait", func(v *vigil) {
			v.rest()
			time.Sleep(time.Hour)
			v.await(time.Second)
		}, time.Hour + time.Second},
		{"less patience", func(v *vigil) {
			v.await(time.Minute)
			v.await(time.Second)
		}, time.Second},
		{"more patience", func(v *vigil) {
			time.Sleep(9 * time.Second)
			v.await(time.Minute)
		}, 69 * time.Second},
		{"none", func(v *vigil) { v.await(-time.Second) }, 1},
		{"an end", func(v *vigil) {
			v.end(false)
			v.await(time.Second)
		}, -1},
		{"a rest", func(v *vigil) { v.rest() }, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, after := time.Now(), atomic.Int64{}
				after.Store(-1)
				v := new(vigil)
				v.keep(10*time.Second, func() { after.Store(int64(time.Since(begun))) })
				c.keep(v)
				time.Sleep(2 * time.Hour)
				if v.end(false); after.Load() != int64(c.after) {
					t.Errorf("after %v, not %v", time.Duration(after.Load()), c.after)
				}
			})
		})
	}
}
