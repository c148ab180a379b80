package attach

import (
	"hash/maphash"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func who(path string) Who { return Who{Path: path} }

// ride joins a call's flight; nil: there is none.
func ride[A any](b *Board[A], path, body string) *Flight[A] {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.join(who(path), []byte(body), maphash.String(b.seed, body))
}

func TestARiderSeesAllThatWasToldInItsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBoard[string]()
		f := b.Begin(t.Context(), who("me"), []byte("ask"), time.Second)
		if ride(b, "you", "ask") != nil || ride(b, "me", "other") != nil {
			t.Error("a stranger rides")
		}
		var wg sync.WaitGroup
		for range 3 {
			r := ride(b, "me", "ask")
			wg.Go(func() {
				defer r.Leave()
				var got string
				for {
					p := r.Progress()
					if p.Head != nil && *p.Head != "head" {
						t.Error(*p.Head)
					}
					got += string(p.Text[len(got):])
					if p.Landed {
						if got != "0123456789" || *p.Answer != "end" {
							t.Errorf("%q", got)
						}
						return
					}
					<-p.Changed
				}
			})
		}
		var text []byte
		head, end := "head", "end"
		for i := range 10 {
			time.Sleep(time.Millisecond)
			text = append(text, byte('0'+i))
			f.Tell(&head, text)
		}
		f.Land(&end, true)
		wg.Wait()
		f.Leave()
		f.End()
		if b.Len() != 0 {
			t.Error("it is still on the board")
		}
	})
}

func TestAnAnswerIsFreedOnceWhenNobodyCanAskForItAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBoard[int]()
		freed := 0
		f := b.Begin(t.Context(), who(""), []byte("x"), time.Second)
		f.Leave() // its client has gone
		one := 1
		f.Land(&one, true)
		f.Free(func() { freed++ })
		if r := ride(b, "", "x"); r == nil || *r.Progress().Answer != 1 || freed != 0 {
			t.Fatal("the answer was not kept")
		} else {
			r.Leave()
		}
		time.Sleep(2 * time.Second)
		if b.Len() != 0 || freed != 1 || ride(b, "", "x") != nil {
			t.Errorf("%d flights, freed %d times", b.Len(), freed)
		}
		f.End()

		f = b.Begin(t.Context(), who(""), []byte("y"), time.Second)
		r := ride(b, "", "y")
		f.Free(func() { freed++ })
		f.Close()
		f.Land(nil, false)
		f.Leave()
		if freed != 1 {
			t.Error("freed under a rider")
		}
		if r.Leave(); freed != 2 {
			t.Error("not freed")
		}
		f.End()
	})
}

func TestWhoIsToldApartByAllThatShapesAnAnswer(t *testing.T) {
	whole := Who{Path: "/v1/messages", Query: "beta=true", Whole: true, Header: [6][]string{{"key"}, nil, {"2023-06-01"}, {"a", "b"}, {"application/json"}}}
	if other := whole; !whole.same(&other) {
		t.Error("two of one kind")
	}
	for name, change := range map[string]func(*Who){
		"path": func(w *Who) { w.Path += "/" }, "query": func(w *Who) { w.Query = "" }, "whole": func(w *Who) { w.Whole = false }, "as it is": func(w *Who) { w.AsIs = true }, "encoding": func(w *Who) { w.Header[5] = []string{"gzip"} },
		"key": func(w *Who) { w.Header[0] = []string{"other"} }, "no key": func(w *Who) { w.Header[0] = nil },
		"moved": func(w *Who) { w.Header[0], w.Header[1] = nil, w.Header[0] }, "lines": func(w *Who) { w.Header[3] = []string{"a,b"} },
	} {
		other := whole
		if change(&other); whole.same(&other) {
			t.Errorf("%s makes no difference", name)
		}
	}
}
