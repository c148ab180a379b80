//go:build linux

package loop

import (
	"runtime"
	"testing"
	"time"
)

func TestAttendingEndsWhenNothingComesAndIsTriedLessOften(t *testing.T) {
	g, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer g.watch.close()
	defer g.watch.end()
	w := &Worker{Now: time.Now()}
	for _, skips := range []int{1, 3, 7, 15, 31, 63, 63} {
		w.Now = time.Now()
		g.attend(w) // only its clock can end that
		if g.watch.skips != skips {
			t.Fatalf("%d are skipped, want %d", g.watch.skips, skips)
		}
	}
	g.watch.looked = w.Now // the processor's time is not looked at
	tries := 0
	for ; !g.watch.worthIt(w); tries++ {
	}
	if tries != 63 {
		t.Errorf("it was skipped %d times", tries)
	}
}

func TestAProcessThatNeedsItsProcessorsDoesNotAttend(t *testing.T) {
	var h watch
	w := &Worker{Now: time.Now()}
	h.spent = -time.Hour // so that an hour of processor time was used since then
	h.looked = w.Now.Add(-2 * budget)
	if h.worthIt(w) {
		t.Error("it attends though others need the processors")
	}
	h.spent = time.Hour
	h.looked = w.Now.Add(-2 * budget)
	if others := runtime.GOMAXPROCS(0) > 1; h.worthIt(w) != others {
		t.Errorf("it attends: %v, with idle processors beside it: %v", !others, others)
	}
}
