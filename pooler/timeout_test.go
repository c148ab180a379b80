package pooler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// A stopwatch is a session that has a server, in the time of a bubble. It notes when its
// queries are canceled.
type stopwatch struct {
	*session
	began    time.Time
	canceled []time.Duration // since it began
}

func newStopwatch(limit time.Duration) *stopwatch {
	w := &stopwatch{began: time.Now()}
	deps := Deps{Log: slog.New(slog.DiscardHandler), Dial: func(context.Context, string, string) (net.Conn, error) {
		w.canceled = append(w.canceled, time.Since(w.began))
		return nil, errors.New("that it was tried is enough")
	}}
	p := newPool("app", &Database{QueryTimeout: limit}, &upstream.Target{}, deps)
	p.ctx = context.Background()
	b := &backend{Conn: &upstream.Conn{}, pool: p, settings: state.None}
	w.session = &session{pooler: &Server{deps: deps}, pool: p, backend: b, errand: &errand{}}
	return w
}

// ask sends a query, and lets the sweep look at it until it is over.
func (w *stopwatch) ask(first, takes time.Duration) {
	w.mu.Lock()
	w.turn.Add(1)
	w.owe(debt{kind: owesQuery})
	w.cycles.push(cycle{start: time.Now()})
	w.mu.Unlock()
	over := time.Now().Add(takes)
	for time.Sleep(first); time.Now().Before(over); time.Sleep(min(sweepEvery, time.Until(over))) {
		w.pool.enforce(lease{holder: w.session, server: w.backend}, time.Now())
	}
	synctest.Wait()
	w.mu.Lock()
	w.debts.pop()
	w.cycles.pop()
	w.mu.Unlock()
}

// Whenever the sweep comes by, a query is canceled when its time is over, and not before or later.
func TestTheQueryTimeoutIsExactFromOneSweepUp(t *testing.T) {
	for _, limit := range []time.Duration{sweepEvery, sweepEvery + 1, 150 * time.Millisecond, time.Second, 1234567 * time.Microsecond} {
		for _, first := range []time.Duration{0, 1, 33 * time.Millisecond, sweepEvery / 2, sweepEvery - 1, sweepEvery} {
			t.Run(fmt.Sprint(limit, " swept after ", first), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newStopwatch(limit)
					w.ask(first, 10*limit)
					if !slices.Equal(w.canceled, []time.Duration{limit}) {
						t.Errorf("canceled at %v", w.canceled)
					}
				})
			})
		}
	}
}

// What a server is taught in front of a query takes the query's time.
func TestTheQueryTimeoutCountsWhatAServerIsTaught(t *testing.T) {
	s := pg.Start(t)
	lock, free := lockable(t, s, "public.slow_to_learn")
	h := run(t, config(database(s.URL(), one, func(d *Database) { d.QueryTimeout = 300 * time.Millisecond })))
	a := newFrontend(t, h)
	a.send(frame('Q', "set datestyle = 'ISO, DMY'\x00") + parsed("s", "select (date '01/02/2020')::text from public.slow_to_learn") + synced + frame('Q', "set datestyle = 'ISO, MDY'\x00"))
	a.expect("CZ1ZCZ")
	if err := h.Reconnect("app"); err != nil {
		t.Fatal(err)
	}
	lock()
	a.send(bound("s") + executed + synced)
	a.expect("EZ") // with a notice
	free()
	a.send(bound("s") + executed + synced)
	a.expect("2DCZ")
	if a.row != "2020-02-01" {
		t.Errorf("got %s", a.row)
	}
}

// The time of a query that is over says nothing about the next.
func TestTheQueryTimeoutIsEachQuerysOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 3 * sweepEvery
		w := newStopwatch(limit)
		for range 3 {
			w.ask(sweepEvery/2, limit-1)
		}
		before := time.Since(w.began)
		w.ask(sweepEvery/2, 2*limit)
		w.ask(sweepEvery/2, limit-1)
		time.Sleep(time.Minute)
		if want := []time.Duration{before + limit}; !slices.Equal(w.canceled, want) {
			t.Errorf("canceled at %v, want %v", w.canceled, want)
		}
	})
}

// Nor is the next one canceled by the request that came too late for a query: neither in the same transaction nor in session mode.
func TestAQueryTimeoutThatComesTooLateEndsNoOther(t *testing.T) {
	const late = "select pg_sleep(0.6), 'late'"
	for mode, begin := range map[string]string{modeTransaction: "begin", modeSession: "select 1"} {
		for what, next := range map[string]string{
			"simple": frame('Q', "select pg_sleep(0.1)\x00"), "extended": parsed("", "select pg_sleep(0.1)") + bound("") + executed + synced,
		} {
			t.Run(mode+" "+what, func(t *testing.T) {
				release, held := make(chan struct{}), make(chan struct{}, 1)
				h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.Mode, d.QueryTimeout = mode, 400*time.Millisecond })), gated(func(first []byte) error {
					if isCancel(first) {
						held <- struct{}{}
						<-release
					}
					return nil
				}))
				f := newFrontend(t, h)
				f.send(frame('Q', begin+"\x00"))
				for f.next() != "Z" {
				}
				f.send(frame('Q', late+"\x00"))
				<-held
				f.expect("TDCZ")
				f.send(next)
				time.Sleep(50 * time.Millisecond) // nothing may happen in it
				close(release)
				for typ := ""; typ != "Z"; {
					if typ = f.next(); typ == "E" {
						t.Error("it is canceled, having taken less")
					}
				}
			})
		}
	}
}

// What a client sends before it has the answer to what goes before begins when PostgreSQL has that answered, for the limit and in what is told of it.
func TestTheTimeOfAQueryIsNotThatOfThoseBeforeIt(t *testing.T) {
	const one, several = 300 * time.Millisecond, 4
	for mode, begin := range map[string]string{modeTransaction: "begin", modeSession: "select 1"} {
		for what, query := range map[string]string{
			"simple": frame('Q', "select pg_sleep(0.3)\x00"), "extended": parsed("", "select pg_sleep(0.3)") + bound("") + executed + synced,
		} {
			t.Run(mode+" "+what, func(t *testing.T) {
				h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Mode, d.QueryTimeout = mode, 5*one/2 })))
				f := newFrontend(t, h)
				f.send(frame('Q', begin+"\x00") + strings.Repeat(query, several))
				for n := 0; n <= several; {
					switch f.next() {
					case "Z":
						n++
					case "E":
						t.Error("one is canceled")
					}
				}
				await(t, "all are recorded", func() bool { return len(h.ledger.all()) > several })
				for _, x := range h.ledger.all() {
					if x.Took >= 2*one {
						t.Errorf("%s took %v", x.DB.Text, x.Took)
					}
				}
			})
		}
	}
}

// A query that fails by itself before it is canceled is not said to be.
func TestAQueryTimeoutExplainsNoOtherError(t *testing.T) {
	release, held := make(chan struct{}), make(chan struct{}, 1)
	h := run(t, config(database(pg.Start(t).URL(), one, func(d *Database) { d.QueryTimeout = 300 * time.Millisecond })), gated(func(first []byte) error {
		if isCancel(first) {
			held <- struct{}{}
			<-release
		}
		return nil
	}))
	f := newFrontend(t, h)
	f.send(frame('Q', "select 1 / length(pg_sleep(0.6)::text)\x00"))
	<-held
	if got := f.next() + f.next(); got != "TE" {
		t.Errorf("got %s", got)
	}
	close(release)
	f.expect("Z")
}
