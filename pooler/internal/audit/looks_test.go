package audit

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneLooksForAllWhoCameBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, looks := NewLooks(), 0
		look := func() error {
			looks++
			time.Sleep(time.Second)
			return nil
		}
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if err := l.Look(time.Minute, true, look); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // the first looks by then
		}
		all.Wait()
		if looks != 2 { // the second, for those who came while the first looked
			t.Errorf("%d looks", looks)
		}
		if _ = l.Look(time.Minute, true, look); looks != 3 {
			t.Errorf("who comes later: %d looks", looks)
		}
		go func() { _ = l.Look(time.Minute, false, look) }()
		synctest.Wait()
		for _, whole := range []bool{false, true, false} { // who wants all does not share with who does not
			all.Go(func() { _ = l.Look(time.Minute, whole, look) })
			synctest.Wait()
		}
		if all.Wait(); looks != 6 {
			t.Errorf("%d looks", looks)
		}
	})
}

func TestALookThatFailsIsNobodyElses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, broken := NewLooks(), errors.New("broken")
		fails := func() error { time.Sleep(time.Second); return broken }
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if err := l.Look(time.Minute, true, fails); !errors.Is(err, broken) {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

func TestNobodyWaitsForItsTurnForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLooks()
		go func() { _ = l.Look(time.Minute, true, func() error { time.Sleep(time.Hour); return nil }) }()
		synctest.Wait()
		if err := l.Look(time.Second, true, func() error { t.Error("looked"); return nil }); !errors.Is(err, errTurn) {
			t.Error(err)
		}
		time.Sleep(time.Hour)
	})
}
