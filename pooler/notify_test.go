package pooler

import (
	"encoding/binary"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// A client that listens hears of its own notifications before its command ends, and that they are its own, also of those that
// functions, triggers and rules send.
func TestWhatCodeNotifiesIsHeardBeforeTheCommandEnds(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop schema if exists tells cascade; create schema tells; set search_path = tells;
		create function fires() returns trigger language plpgsql as $$ begin perform pg_notify('heard', 'trigger'); return new; end $$;
		create table fired (n int); create trigger f after insert or update on fired for each row execute function fires();
		create function says() returns void language sql as $$ select pg_notify('heard', 'function') $$; create table ruled (n int);
		create rule r as on insert to ruled do also notify heard; create rule q as on delete to ruled do also select pg_notify('heard', 'rule')`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	f := newFrontend(t, h)
	f.send(frame('Q', "listen heard\x00"))
	f.expect("CZ")
	for _, sql := range []string{
		"insert into tells.fired values (1)", "update tells.fired set n = 2", "select tells.says()", "with i as (insert into tells.fired values (3) returning n) select n from i",
		"insert into tells.ruled values (1)", "delete from tells.ruled", "select 1; insert into tells.fired values (4)",
	} {
		f.send(frame('Q', sql+"\x00"))
		heard := 0
		for {
			typ, body, err := f.in.Next()
			if err != nil {
				t.Fatal(err)
			}
			if typ == pgwire.Notification {
				if heard++; binary.BigEndian.Uint32(body) != f.pid {
					t.Errorf("%s: heard of another process", sql)
				}
			}
			if typ == pgwire.ReadyForQuery {
				break
			}
		}
		if heard == 0 {
			t.Errorf("%s: not heard before its end", sql)
		}
	}
}
