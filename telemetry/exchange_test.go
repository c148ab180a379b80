package telemetry

import (
	"errors"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// full returns an exchange in which every field is set, and all its strings
// point into the returned buffer.
func full(t *testing.T) (*Exchange, []byte) {
	t.Helper()
	buf := make([]byte, 0, 4096)
	text := func(s string) string {
		at := len(buf)
		buf = append(buf, s...)
		return unsafe.String(&buf[at], len(s))
	}
	x := Begin("edge")
	fillValue(reflect.ValueOf(x).Elem(), text)
	x.Attempts, x.Tries = nil, 0
	for range 3 {
		x.Try(Attempt{Start: time.Now(), Took: time.Second, Target: text("10.0.0.1:80"), Cause: text("reset"), UpstreamID: text("req_1"), Status: 502})
	}
	x.Err = errors.New("boom")
	return x, buf
}

// fillValue sets every settable field below v.
func fillValue(v reflect.Value, text func(string) string) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch {
		case !f.CanSet():
		case f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[time.Time]():
			fillValue(f, text)
		case f.Kind() == reflect.String:
			f.SetString(text(v.Type().Field(i).Name))
		case f.CanInt():
			f.SetInt(int64(i + 1))
		case f.Kind() == reflect.Bool:
			f.SetBool(true)
		}
	}
}

var sameExchange = cmp.Options{cmp.AllowUnexported(Exchange{}), cmpopts.EquateErrors(), cmpopts.EquateComparable(time.Time{})}

func TestACloneIsEqualAndSharesNoMemoryWithTheOriginal(t *testing.T) {
	x, buf := full(t)
	c := x.Clone()
	want := x.Clone()
	if diff := cmp.Diff(x, c, sameExchange); diff != "" {
		t.Fatalf("the clone differs (-original +clone):\n%s", diff)
	}
	for i := range buf { // the plane reuses its buffer …
		buf[i] = '!'
	}
	x.Attempts[0].Cause = "overwritten"
	x.End(Discard) // … and the pool its exchange
	for range 100 {
		y := Begin("pooler")
		y.Try(Attempt{Cause: "another"})
		y.End(Discard)
	}
	if diff := cmp.Diff(want, c, sameExchange); diff != "" {
		t.Fatalf("the clone changed with the original (-before +after):\n%s", diff)
	}
}

func TestACloneOfAnEmptyExchangeHasNoAttempts(t *testing.T) {
	x := Begin("edge")
	if c := x.Clone(); c.Attempts != nil || c.Color != ColorUnknown || c.Plane != "edge" {
		t.Fatalf("got %+v", c)
	}
}

func TestBeginGivesAnExchangeWithNothingLeftFromTheLastLife(t *testing.T) {
	x, _ := full(t)
	x.End(Discard)
	for range 100 {
		y := Begin("claude")
		want := &Exchange{Plane: "claude", Color: ColorUnknown, Start: y.Start}
		if y.attempts != nil { // the memory may be an earlier one's
			want.attempts = new([MaxAttempts]Attempt)
		}
		if diff := cmp.Diff(want, y, sameExchange); diff != "" {
			t.Fatalf("not fresh (-want +got):\n%s", diff)
		}
		y.Route = "left"
		y.Try(Attempt{Cause: "left"})
		y.End(Discard)
	}
}

func TestTryKeepsTheFirstAttemptsAndCountsAll(t *testing.T) {
	x := Begin("claude")
	for i := range MaxAttempts + 5 {
		x.Try(Attempt{Status: i})
	}
	if x.Tries != MaxAttempts+5 || len(x.Attempts) != MaxAttempts {
		t.Fatalf("tries %d, kept %d", x.Tries, len(x.Attempts))
	}
	for i, a := range x.Attempts {
		if a.Status != i {
			t.Fatalf("attempt %d is %+v", i, a)
		}
	}
}

func TestAgainIsResetForWhoFillsNeitherHTTPNorGenAINorAttempts(t *testing.T) {
	x, _ := full(t)
	x.HTTP, x.GenAI, x.Attempts, x.Tries = HTTP{}, GenAI{}, nil, 0
	now := time.Unix(9, 0)
	x.Again("pooler", now)
	var want Exchange
	want.Reset("pooler")
	want.Start = now
	if diff := cmp.Diff(want, *x, cmpopts.IgnoreUnexported(Exchange{})); diff != "" {
		t.Error(diff)
	}
}

func TestFinishMeasuresTheWholeLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x Exchange
		x.Reset("pooler")
		time.Sleep(3 * time.Second)
		var got Exchange
		x.Finish(sinkFunc(func(y *Exchange) { got = *y }))
		if got.Took != 3*time.Second {
			t.Fatalf("took %v", got.Took)
		}
	})
}

func TestLastingIsATunnelOrAnEventStream(t *testing.T) {
	for _, c := range []struct {
		http HTTP
		want bool
	}{{HTTP{}, false}, {HTTP{Upgraded: "websocket"}, true}, {HTTP{Stream: true}, true}} {
		if x := (&Exchange{HTTP: c.http}); x.Lasting() != c.want {
			t.Errorf("%+v: %v", c.http, !c.want)
		}
	}
}

func TestFanoutGivesEverySinkEveryExchangeAndEvent(t *testing.T) {
	var a, b counting
	for _, s := range []Sink{Fanout(), Fanout(&a), Fanout(&a, &b)} {
		s.Record(&Exchange{})
		s.Emit(Event{})
	}
	if a.records != 2 || a.events != 2 || b.records != 1 || b.events != 1 {
		t.Fatalf("a %+v, b %+v", &a, &b)
	}
}

func TestExchangesOfManyGoroutinesDoNotMix(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				x := Begin("edge")
				x.HTTP.Status = g*1000 + i
				x.Try(Attempt{Status: g})
				c := x.Clone()
				x.End(Discard)
				if c.HTTP.Status != g*1000+i || c.Attempts[0].Status != g {
					t.Errorf("goroutine %d got %+v", g, c.HTTP)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkBeginAndEnd(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		x := Begin("edge")
		x.Trace.Continue("", "")
		x.End(Discard)
	}
}

func BenchmarkClone(b *testing.B) {
	x := Begin("edge")
	x.ID, x.HTTP.Path = "0123456789abcdef", "/api/contacts/42"
	x.Try(Attempt{Target: "127.0.0.1:3000"})
	b.ReportAllocs()
	for b.Loop() {
		x.Clone()
	}
}

type sinkFunc func(*Exchange)

func (f sinkFunc) Record(x *Exchange) { f(x) }
func (f sinkFunc) Emit(Event)         {}

type counting struct{ records, events int }

func (c *counting) Record(*Exchange) { c.records++ }
func (c *counting) Emit(Event)       { c.events++ }
