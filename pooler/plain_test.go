package pooler

import (
	"fmt"
	"testing"
	"unsafe"
)

// A text that was harmless with other constants is read anew when what it calls has changed.
func TestAHarmlessTextIsReadAnewWhenTheCatalogHasChanged(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop schema if exists plain cascade; create schema plain;
		create function plain.act(n int) returns int language sql as 'select n'`); err != nil {
		t.Fatal(err)
	}
	const look = "select coalesce(nullif(current_setting('app.plain', true), ''), 'none')"
	for _, mode := range everyMode {
		t.Run(mode.String(), func(t *testing.T) {
			h := run(t, config(database(s.URL(), one)))
			mine, other := h.connect(t), h.connect(t)
			do(t, other, "create or replace function plain.act(n int) returns int language sql as 'select n'", simple)
			for n := range 3 {
				if got := value(t, mine, fmt.Sprintf("select plain.act(%d)::text", n), mode); got != fmt.Sprint(n) {
					t.Errorf("got %s, want %d", got, n)
				}
			}
			do(t, other, "create or replace function plain.act(n int) returns int language sql as $$ select set_config('app.plain', n::text, false)::int $$", simple)
			do(t, mine, "select plain.act(7)", mode)
			if got := value(t, other, look, simple); got != "none" {
				t.Errorf("another client sees %s", got)
			}
			if got := value(t, mine, look, simple); got != "7" {
				t.Errorf("its client sees %s, want 7", got)
			}
		})
	}
}

// Texts with the same shape are recognised by it, and shown as one.
func TestStatementsThatAreNotReadAgainAreStillSeen(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), one)))
	conn := h.connect(t)
	for n := range 5 {
		if got := value(t, conn, fmt.Sprintf("select %d::text || '%d'", n, n), simple); got != fmt.Sprintf("%d%d", n, n) {
			t.Errorf("got %s", got)
		}
	}
	if got := value(t, conn, "select 5::text || '5' /* traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' */", simple); got != "55" {
		t.Errorf("got %s", got)
	}
	var last string
	seen := 0
	for _, x := range h.ledger.all() {
		if x.DB.Text != "select ?::text || ?" {
			continue
		}
		seen++
		last = fmt.Sprintf("%x", x.Trace.TraceID)
		if x.DB.Command != "SELECT" || x.DB.Rows != 1 || x.DB.Queries != 1 || x.Took <= 0 || x.Start.IsZero() || x.BytesIn == 0 || x.BytesOut == 0 {
			t.Errorf("%+v", x)
		}
	}
	if seen != 6 || last != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("%d are seen, the last in trace %s", seen, last)
	}
}

// A resting client is little more than its session: with 5,000 of them a step of Go's size classes (768 to 896 bytes) shows. Eight bytes
// are the allocator's own.
func TestASessionStaysInItsSizeClass(t *testing.T) {
	if size := unsafe.Sizeof(session{}); size > 760 {
		t.Errorf("%d bytes: what few sessions need, or only while they do something, belongs in their errand", size)
	}
}
