package pooler

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestWhatAClientSetsFollowsIt(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists carried; create role carried; grant carried to postgres"); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		do         []string
		look, want string
	}{
		"a setting":              {[]string{"set work_mem = '7MB'"}, "show work_mem", "7MB"},
		"a list":                 {[]string{`set search_path = "My Schema", public`}, "show search_path", `"My Schema", public`},
		"a custom one":           {[]string{"set request.jwt.claims = '{\"sub\": \"it''s \\ me\"}'"}, "show request.jwt.claims", `{"sub": "it's \ me"}`},
		"an empty custom one":    {[]string{"select set_config('app.nobody', '', false)"}, "select 'is ' || current_setting('app.nobody')", "is "},
		"a role":                 {[]string{"set role carried"}, "select current_user::text", "carried"},
		"no role again":          {[]string{"set role carried", "set role none"}, "select current_user::text", "postgres"},
		"an authorization":       {[]string{"set session authorization carried"}, "select session_user::text", "carried"},
		"authorization, no role": {[]string{"set role carried", "set session authorization carried"}, "select current_setting('role')", "none"},
		"a time zone":            {[]string{"set time zone interval '-08:00' hour to minute"}, "show timezone", "<-08>+08"},
		"characteristics":        {[]string{"set session characteristics as transaction isolation level serializable"}, "show transaction_isolation", "serializable"},
		"a function's":           {[]string{"do $$ begin perform set_config('app.hidden', 'seen', false); set work_mem = '9MB'; end $$"}, "select current_setting('app.hidden') || current_setting('work_mem')", "seen9MB"},
		"rolled back":            {[]string{"set work_mem = '5MB'", "begin", "set work_mem = '6MB'", "rollback"}, "show work_mem", "5MB"},
		"committed":              {[]string{"begin", "set work_mem = '6MB'", "commit"}, "show work_mem", "6MB"},
		"a savepoint":            {[]string{"begin", "set work_mem = '6MB'", "savepoint a", "set work_mem = '8MB'", "rollback to a", "commit"}, "show work_mem", "6MB"},
		"local":                  {[]string{"begin", "set local work_mem = '6MB'", "commit"}, "show work_mem", "4MB"},
		"reset":                  {[]string{"set work_mem = '6MB'", "set app.x = '1'", "reset work_mem"}, "select current_setting('work_mem') || current_setting('app.x')", "4MB1"},
		"discarded":              {[]string{"set work_mem = '6MB'", "discard all"}, "show work_mem", "4MB"},
		"of several statements":  {[]string{"set work_mem = '6MB'; set app.x = '2'; select 1"}, "select current_setting('work_mem') || current_setting('app.x')", "6MB2"},
	} {
		t.Run(what, func(t *testing.T) {
			h := run(t, config(database(s.URL(), one)))
			client, other := h.connect(t), h.connect(t)
			before := value(t, other, "select current_user::text || current_setting('work_mem') || current_setting('search_path') || current_setting('timezone')")
			for _, sql := range c.do {
				if _, err := client.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if got := value(t, other, "select current_user::text || current_setting('work_mem') || current_setting('search_path') || current_setting('timezone')"); got != before {
					t.Errorf("another client sees %s, was %s", got, before)
				}
				if got := value(t, client, c.look); got != c.want {
					t.Errorf("the client sees %q, want %q", got, c.want)
				}
			}
			await(t, "the server comes back", func() bool { return h.Stats().Databases[0].Active == 0 })
		})
	}
}

func TestASettingWhoseNameIsAParameterFollowsToo(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	client, other := h.connect(t), h.connect(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		if got := value(t, client, "select set_config($1, $2, false)", mode, "app.tenant", mode.String()); got != mode.String() {
			t.Error(got)
		}
		if got := value(t, other, "select coalesce(current_setting('app.tenant', true), '')"); got != "" {
			t.Errorf("another client sees %s", got)
		}
		if got := value(t, client, "show app.tenant"); got != mode.String() {
			t.Errorf("%v: the client sees %s", mode, got)
		}
	}
}

func TestTheClientKnowsTheReportedSettings(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	client, other := h.connect(t), h.connect(t)
	do(t, client, "set timezone = 'Asia/Tokyo'")
	for range 3 {
		if zone := value(t, other, "show timezone"); zone != "UTC" || other.PgConn().ParameterStatus("TimeZone") != zone {
			t.Errorf("the other has %s and believes %s", zone, other.PgConn().ParameterStatus("TimeZone"))
		}
		if zone := value(t, client, "show timezone"); zone != "Asia/Tokyo" || client.PgConn().ParameterStatus("TimeZone") != zone {
			t.Errorf("the client has %s and believes %s", zone, client.PgConn().ParameterStatus("TimeZone"))
		}
	}
}

func TestWhatCannotBeCarriedPinsUntilItEnds(t *testing.T) {
	s := pg.Start(t)
	for reason, c := range map[string]struct{ do, use, end string }{
		"temporary table":  {"create temp table pinned as select 1 as n", "select n::text from pinned", "drop table pinned"},
		"advisory lock":    {"select pg_advisory_lock(77)", "select count(*)::text from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()", "select pg_advisory_unlock(77)"},
		"cursor with hold": {"declare pinned cursor with hold for select '1'", "select count(*)::text from pg_cursors where is_holdable", "close pinned"},
		"PREPARE":          {"prepare pinned as select '1'; select 1", "execute pinned", "deallocate pinned"},
	} {
		t.Run(reason, func(t *testing.T) {
			h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 2 })))
			client, other := h.connect(t), h.connect(t)
			do(t, client, c.do)
			pinned := func() string {
				for _, c := range h.Clients() {
					if c.Pinned != "" {
						return c.Pinned
					}
				}
				return ""
			}
			for range 3 {
				value(t, other, "select 'between'")
				if got := value(t, client, c.use, pgx.QueryExecModeSimpleProtocol); got != "1" {
					t.Errorf("got %s", got)
				}
			}
			await(t, "the reason is shown", func() bool { return pinned() == reason })
			do(t, client, c.end)
			await(t, "the server is back", func() bool { return pinned() == "" && h.Stats().Databases[0].Active == 0 })
			value(t, client, "select 'still there'")
		})
	}
}

func TestWhatWasNotifiedBeforeAQueryComesBeforeItsEnd(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	f, other := newFrontend(t, h), h.connect(t)
	f.send(frame('Q', "listen here\x00"))
	f.expect("CZ")
	for i := range 50 {
		do(t, other, "select pg_notify('here', $1)", fmt.Sprint(i))
		f.send(frame('Q', "select 1\x00"))
		if got := f.frames(); !strings.Contains(got, fmt.Sprintf("(here %d false)", i)) {
			t.Fatalf("%d: %s", i, got)
		}
	}
}

func TestNotificationsReachAClientOverTLS(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 }), withTLS(t)))
	listener, other := h.connect(t, "sslmode=require"), h.connect(t)
	do(t, listener, "listen here")
	for i := range 20 {
		do(t, other, "select pg_notify('here', $1)", fmt.Sprint(i))
		if i%3 == 0 {
			value(t, listener, "select 'and works'")
		}
		if n := heardBy(t, listener); n.Payload != fmt.Sprint(i) {
			t.Fatalf("heard %s, not %d", n.Payload, i)
		}
	}
}

func TestNotificationsReachAClientInTransactionMode(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 3 })))
	listener, other := h.connect(t), h.connect(t)
	do(t, listener, "listen here")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 3 {
		do(t, other, "notify here, 'hello'") // while the listener is idle
		if n, err := listener.WaitForNotification(ctx); err != nil || n.Payload != "hello" {
			t.Fatalf("%v, %v", n, err)
		}
		value(t, listener, "select 'and works'")
	}
}

func TestAStatementThatIsPreparedAfterATableChangedIsNew(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	conn := h.connect(t)
	do(t, conn, "drop table if exists changing")
	for _, kind := range []string{"int", "bool", "text"} {
		do(t, conn, "create table changing (v "+kind+")")
		d, err := conn.Prepare(t.Context(), "insert", "insert into changing values ($1)")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := conn.TypeMap().TypeForOID(d.ParamOIDs[0]); got == nil || got.Name[:3] != kind[:3] {
			t.Errorf("%s: the parameter is %v", kind, got)
		}
		if err := conn.Deallocate(t.Context(), "insert"); err != nil {
			t.Fatal(err)
		}
		do(t, conn, "drop table changing")
	}
}

// However short a time a client gives its own statements, what it has left is found out, and its limit goes with it.
func TestATimeLimitDoesNotHideWhatIsLeft(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	other := h.connect(t)
	for range 10 {
		client, set := h.connect(t), ""
		do(t, client, "set lock_timeout = '7ms'; set statement_timeout = '1ms'", pgx.QueryExecModeSimpleProtocol)
		for range 10 {
			_, err := client.Exec(t.Context(), "do $$ begin set app.mine to 'x'; end $$", pgx.QueryExecModeSimpleProtocol)
			if err == nil {
				set = "x"
			} else if sqlState(err) != "57014" { // it may itself take too long
				t.Fatal(err)
			}
			if got := value(t, other, "select current_setting('statement_timeout') || current_setting('lock_timeout') || coalesce(current_setting('app.mine', true), '')", pgx.QueryExecModeSimpleProtocol); got != "00" {
				t.Fatalf("another client has %s", got)
			}
		}
		got, err := tryValue(t, client, "select current_setting('statement_timeout') || current_setting('lock_timeout') || coalesce(current_setting('app.mine', true), '')", pgx.QueryExecModeSimpleProtocol)
		if err == nil && got != "1ms7ms"+set || err != nil && sqlState(err) != "57014" && !client.IsClosed() {
			t.Errorf("the client has %s, %v", got, err)
		}
		client.Close(t.Context())
	}
}

// What a client has set to the server's own value, over what it chose at login, stays so on a server that has that value of itself: one
// on which another's SET LOCAL has ended, which is reported, is known to have it.
func TestWhatIsSetToTheServersOwnValueStaysOverTheLogin(t *testing.T) {
	h, m := newMatch(t, one)
	other := h.connect(t)
	both := m.enter(t, []string{"timezone", "Asia/Tokyo"})
	show := query("show timezone")
	m.same(t, "then", both, []step{
		query("set timezone = 'UTC'"), show, query("do $$ begin perform 1; end $$"), show, query("do $$ begin perform set_config('work_mem', '5MB', false); end $$"), show, query("show work_mem"),
		query("reset timezone"), show, query("do $$ begin perform 2; end $$"), show,
	}, func() {
		for _, sql := range []string{"reset all", "begin", "set local timezone = 'Europe/Berlin'", "commit"} {
			do(t, other, sql, simple)
		}
	})
}
