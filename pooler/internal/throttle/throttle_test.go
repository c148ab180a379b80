package throttle

import (
	"fmt"
	"testing"
	"time"
)

func TestWhoGuessesIsSlowedDownAndWhoMistypesIsNot(t *testing.T) {
	var th Throttle
	now := time.Unix(1000, 0)
	for i := range 3 {
		if wait, ok := th.Turn("a", 3, now); wait != 0 || !ok {
			t.Fatalf("attempt %d waits %v", i, wait)
		}
		th.Wrong("a", now)
	}
	if !th.Free("a", 3) {
		t.Error("what is free is not")
	}
	th.Wrong("a", now)
	th.Wrong("a", now)
	if th.Free("a", 3) || !th.Free("b", 3) {
		t.Error("who has to wait is free, or somebody else is not")
	}
	guesses, end := 0, now.Add(time.Minute)
	for at := now; at.Before(end); at = at.Add(10 * time.Millisecond) {
		if wait, ok := th.Turn("a", 3, at); ok && wait == 0 {
			th.Wrong("a", at)
			guesses++
		}
	}
	if guesses > 40 {
		t.Errorf("%d guesses in a minute", guesses)
	}
	if wait, ok := th.Turn("b", 3, now); wait != 0 || !ok {
		t.Error("somebody else waits")
	}
	th.Right("a")
	if wait, ok := th.Turn("a", 3, end); wait != 0 || !ok {
		t.Error("a right password is not honoured")
	}
}

func TestManyAttemptsAtOnceAreTurnedAway(t *testing.T) {
	var th Throttle
	now := time.Unix(1000, 0)
	for range 12 {
		th.Wrong("a", now)
	}
	admitted := 0
	for range 100 {
		if _, ok := th.Turn("a", 3, now); ok {
			admitted++
		}
	}
	if admitted > 4 {
		t.Errorf("%d attempts wait at once", admitted)
	}
	if _, ok := th.Turn("a", 3, now.Add(memory+time.Second)); !ok {
		t.Error("never forgotten")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var th Throttle
	now := time.Unix(1000, 0)
	for i := range 3 * maxKeys {
		th.Wrong(fmt.Sprint(i), now)
	}
	if len(th.keys) > maxKeys {
		t.Errorf("%d keys", len(th.keys))
	}
}
