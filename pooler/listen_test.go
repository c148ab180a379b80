package pooler

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/pooler/internal/hub"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// heardBy waits for a client's next notification.
func heardBy(t testing.TB, conn *pgx.Conn) *pgconn.Notification {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n, err := conn.WaitForNotification(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// channelsOf asks a client to what it listens.
func channelsOf(t testing.TB, conn *pgx.Conn) string {
	t.Helper()
	return value(t, conn, "select coalesce(string_agg(c, ',' order by c), '') from pg_listening_channels() c", pgx.QueryExecModeSimpleProtocol)
}

func TestManyListenersShareOneConnectionAndPinNone(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), one)))
	var listeners []*pgx.Conn
	for i := range 20 {
		conn := h.connect(t)
		do(t, conn, "listen everybody")
		do(t, conn, fmt.Sprintf("listen only%d", i))
		listeners = append(listeners, conn)
	}
	if st := h.Stats().Databases[0]; st.Active != 0 || st.Listeners != 20 || st.Channels != 21 {
		t.Errorf("%+v", st)
	}
	n, err := s.Value(t.Context(), "select count(*) from pg_stat_activity where application_name = 'mainstay listen'")
	if err != nil || n != "1" {
		t.Errorf("%s connections listen, %v", n, err)
	}
	other := h.connect(t)
	do(t, other, "notify everybody, 'all of you'")
	for i, conn := range listeners {
		do(t, other, fmt.Sprintf("select pg_notify('only%d', '%d')", i, i))
		if n := heardBy(t, conn); n.Channel != "everybody" || n.Payload != "all of you" {
			t.Errorf("%d heard %+v", i, n)
		}
		if n := heardBy(t, conn); n.Channel != fmt.Sprintf("only%d", i) || n.Payload != fmt.Sprint(i) {
			t.Errorf("%d heard %+v", i, n)
		}
	}
	for _, c := range h.Clients() {
		if c.Pinned != "" || c.Channels != 2 && c.ID != other.PgConn().PID() {
			t.Errorf("%+v", c)
		}
	}
	for _, conn := range listeners {
		conn.Close(t.Context())
	}
	await(t, "nobody listens", func() bool { st := h.Stats().Databases[0]; return st.Listeners == 0 && st.Channels == 0 })
}

func TestLISTENCountsAsItsTransactionDoes(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 3 })))
	other := h.connect(t)
	for what, c := range map[string]struct {
		do   []string
		want string
	}{
		"one":                      {[]string{"listen a"}, "a"},
		"quoted":                   {[]string{`listen "A ""b"" c"`}, `A "b" c`},
		"several":                  {[]string{"listen b; listen a"}, "a,b"},
		"rolled back":              {[]string{"listen a", "begin", "listen b", "rollback"}, "a"},
		"committed":                {[]string{"listen a", "begin", "listen b", "commit"}, "a,b"},
		"of a failed transaction":  {[]string{"begin", "listen b", "selekt", "commit"}, ""},
		"a savepoint":              {[]string{"listen a", "begin", "listen b", "savepoint s", "listen c", "unlisten a", "rollback to s", "commit"}, "a,b"},
		"unlistened":               {[]string{"listen a", "listen b", "unlisten a"}, "b"},
		"unlistened, and not":      {[]string{"listen a", "begin; unlisten a", "rollback"}, "a"},
		"unlistened altogether":    {[]string{"listen a", "listen b", "unlisten *"}, ""},
		"listened again":           {[]string{"listen a", "begin; unlisten *; listen b; commit"}, "b"},
		"discarded":                {[]string{"listen a", "discard all"}, ""},
		"discarded in part":        {[]string{"listen a", "discard plans"}, "a"},
		"by a DO block":            {[]string{"do $$ begin listen a; execute 'listen ' || 'b'; end $$"}, "a,b"},
		"chained":                  {[]string{"begin", "listen a", "commit and chain", "listen b", "rollback"}, "a"},
		"in a long text":           {[]string{"listen a /* " + strings.Repeat("x", 20000) + " */"}, "a"},
		"several, one rolled back": {[]string{"listen a; begin; listen b; rollback; listen c"}, "c"}, // BEGIN takes in what the text has done before it
	} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec, pgx.QueryExecModeCacheStatement} {
			if mode != pgx.QueryExecModeSimpleProtocol && strings.Contains(strings.Join(c.do, "")+what, ";") && what != "by a DO block" {
				continue
			}
			t.Run(what+"/"+mode.String(), func(t *testing.T) {
				conn := h.connect(t)
				for _, sql := range c.do {
					if _, err := conn.Exec(t.Context(), sql, mode); err != nil && sql != "selekt" && sqlState(err) != "" {
						t.Fatal(err)
					}
					value(t, other, "select 'on the server that is free now'")
				}
				if got := channelsOf(t, conn); got != c.want {
					t.Errorf("it listens to %q, not to %q", got, c.want)
				}
				if got := channelsOf(t, other); got != "" {
					t.Errorf("another client listens to %q", got)
				}
				for _, channel := range []string{"a", "b", "c"} {
					do(t, other, "notify "+channel)
					if strings.Contains(","+c.want+",", ","+channel+",") {
						if n := heardBy(t, conn); n.Channel != channel || n.PID == conn.PgConn().PID() {
							t.Errorf("it heard %+v", n)
						}
					}
				}
				do(t, conn, "listen last; notify last", pgx.QueryExecModeSimpleProtocol)
				if n := heardBy(t, conn); n.Channel != "last" {
					t.Errorf("it heard %+v", n)
				}
				conn.Close(t.Context())
			})
		}
	}
}

// frames reads a client's messages up to ReadyForQuery, as a word of their types; of
// notifications, what they say, with "me" for its own process.
func (f *frontend) frames() string {
	f.t.Helper()
	var out strings.Builder
	for {
		typ, body, err := f.in.Next()
		if err != nil {
			f.t.Fatal(err)
		}
		switch typ {
		case pgwire.Notification:
			pid, channel, payload, _ := hub.Notification(body)
			fmt.Fprintf(&out, "(%s %s %v)", channel, payload, pid == f.pid)
		case pgwire.ReadyForQuery:
			return out.String() + "Z" + string(body)
		case pgwire.ParameterStatus:
		default:
			out.WriteByte(typ)
		}
	}
}

// directly is a frontend of PostgreSQL itself.
func directly(t *testing.T, addr, password, name string) *frontend {
	t.Helper()
	f := &frontend{t: t, conn: dialRaw(t, addr)}
	f.in = pgwire.NewReader(f.conn, 1<<16)
	f.send(startup("user", "postgres", "database", name))
	for {
		typ, body, err := f.in.Next()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case typ == pgwire.Authentication && binary.BigEndian.Uint32(body) == 3:
			f.send(frame('p', password+"\x00"))
		case typ == pgwire.BackendKeyData:
			f.pid = binary.BigEndian.Uint32(body)
		case typ == pgwire.ReadyForQuery:
			return f
		}
	}
}

func TestNotificationsComeWherePostgreSQLSendsThem(t *testing.T) {
	s := plainServer.Start(t)
	for _, sql := range []string{"drop database if exists apart with (force)", "create database apart"} {
		if err := s.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	h := run(t, config(database(s.URLFor("postgres", s.Password(), "postgres"), func(d *Database) { d.Pool.Max = 2 })))
	sides := [2]*frontend{newFrontend(t, h), directly(t, s.Addr(), s.Password(), "apart")}
	parse := func(name, sql string) string { return frame('P', name+"\x00"+sql+"\x00\x00\x00") }
	execute := func(name string) string {
		return frame('B', "\x00"+name+"\x00\x00\x00\x00\x00\x00\x00") + frame('E', "\x00\x00\x00\x00\x00")
	}
	sync := frame('S', "")
	for _, send := range []string{
		frame('Q', "listen a; notify a, 'in the same'\x00"), frame('Q', "notify a, '1'\x00"), frame('Q', "select pg_notify('a', '2'), pg_notify('b', 'nobody')\x00"),
		frame('Q', "notify a, 'x'; notify a, 'x'; notify a, 'y'\x00"), frame('Q', "begin\x00"), frame('Q', "notify a, '3'\x00"), frame('Q', "select 1\x00"), frame('Q', "commit\x00"),
		frame('Q', "begin; notify a, 'never'; rollback\x00"), frame('Q', "begin; unlisten a; notify a, 'gone'; commit\x00"), frame('Q', "listen b; listen a\x00"),
		parse("n", "notify b, 'prepared'") + execute("n") + sync, execute("n") + sync, parse("", "select pg_notify('b', 'unnamed')") + execute("") + execute("n") + sync,
		frame('Q', "do $$ begin notify a, 'of a block'; end $$\x00"), frame('Q', "discard all\x00"), frame('Q', "notify a, 'unheard'\x00"),
		frame('Q', "listen a\x00") + frame('Q', "notify a, 'pipelined'\x00") + frame('Q', "unlisten a\x00") + frame('Q', "notify a, 'no more'\x00"),
	} {
		for range strings.Count(send, "Q\x00\x00\x00") + strings.Count(send, sync) {
			var got [2]string
			for i, f := range sides {
				if send != "" {
					f.send(send)
				}
				got[i] = f.frames()
			}
			if got[0] != got[1] {
				t.Errorf("%q: the pooler %s, PostgreSQL %s", send, got[0], got[1])
			}
			send = ""
		}
	}
}

func TestAnOpenTransactionIsNotInterruptedByNotifications(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	f, other := newFrontend(t, h), h.connect(t)
	f.send(frame('Q', "listen here\x00"))
	f.expect("CZ")
	f.send(frame('Q', "begin\x00"))
	f.expect("CZ")
	do(t, other, "notify here, 'during'")
	f.send(frame('Q', "select 1\x00"))
	f.expect("TDCZ")
	f.send(frame('Q', "commit\x00"))
	if got := f.frames(); got != "C(here during false)ZI" {
		t.Errorf("got %s", got)
	}
	do(t, other, "notify here, 'after'")
	f.expect("A")
}

func TestNoNotificationIsLostOnceLISTENIsAcknowledged(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 3 })))
	const rounds = 30
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			listener, err := pgx.Connect(t.Context(), h.url("ann", ""))
			if err != nil {
				t.Error(err)
				return
			}
			defer listener.Close(context.Background())
			other, err := pgx.Connect(t.Context(), h.url("bob", ""))
			if err != nil {
				t.Error(err)
				return
			}
			defer other.Close(context.Background())
			for i := range rounds {
				channel := fmt.Sprintf("w%d_%d", worker, i%3)
				for _, step := range []struct {
					conn *pgx.Conn
					sql  string
				}{{listener, "listen " + channel}, {other, fmt.Sprintf("notify %s, '%d'", channel, i)}} {
					if _, err := step.conn.Exec(t.Context(), step.sql); err != nil {
						t.Error(err)
						return
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				n, err := listener.WaitForNotification(ctx)
				cancel()
				if err != nil || n.Channel != channel || n.Payload != fmt.Sprint(i) {
					t.Errorf("worker %d, round %d: %+v, %v", worker, i, n, err)
					return
				}
				if i%2 == 0 {
					if _, err := listener.Exec(t.Context(), "unlisten *"); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	all.Wait()
}

// Some drivers take CommandComplete for the end of LISTEN.
func TestNoNotificationIsLostOnceTheCommandIsComplete(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 3 })))
	other := h.connect(t)
	parse := func(sql string) string { return frame('P', "\x00"+sql+"\x00\x00\x00") + frame('D', "S\x00") }
	rest := frame('B', "\x00\x00\x00\x00\x00\x00\x00\x00") + frame('E', "\x00\x00\x00\x00\x00")
	for i := range 20 {
		f := newFrontend(t, h)
		switch i % 3 {
		case 0:
			f.send(frame('Q', "begin; select 1; listen soon; commit\x00"))
			f.expect("CTDCCC")
		case 1:
			f.send(parse("listen soon") + frame('H', ""))
			f.expect("1tn")
			f.send(rest + frame('S', ""))
			f.expect("2C")
		case 2:
			f.send(parse("listen soon") + rest + frame('H', ""))
			f.expect("1tn2C") // not committed, so not the end
			f.send(frame('S', ""))
			f.expect("Z")
		}
		do(t, other, "notify soon")
		if i%3 == 2 {
			f.expect("A")
		} else if got := f.next() + f.next(); got != "ZA" && got != "AZ" { // PostgreSQL, too, tells what has come before it is ready
			t.Fatalf("got %s, want Z and A", got)
		}
		f.conn.Close()
	}
}

func TestEveryListenerHearsEveryNotificationOnceAndInOrder(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 3 })))
	const listeners, n = 6, 300
	var all sync.WaitGroup
	for i := range listeners {
		conn := h.connect(t)
		do(t, conn, "listen numbers")
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for want := range n {
				got, err := conn.WaitForNotification(ctx)
				if err != nil || got.Payload != fmt.Sprint(want) {
					t.Errorf("listener %d: %+v instead of %d, %v", i, got, want, err)
					return
				}
				if want%(20+i) == 0 { // it works besides
					for _, sql := range []string{"begin", "set application_name = 'busy'", "commit", "listen more", "unlisten more"} {
						if _, err := conn.Exec(ctx, sql); err != nil {
							t.Error(err)
							return
						}
					}
				}
			}
		})
	}
	notifier := h.connect(t)
	for i := range n {
		do(t, notifier, fmt.Sprintf("notify numbers, '%d'", i))
	}
	all.Wait()
}

// lose ends the connection that listens, from the server's side.
func lose(t *testing.T, h *house) {
	t.Helper()
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'mainstay listen'"); err != nil {
		t.Fatal(err)
	}
	await(t, "the loss is seen", func() bool { return level(h, "mainstay_pooler_listener_losses_total") > 0 })
}

func level(h *house, name string) float64 {
	for _, l := range h.Levels() {
		if l.Name == name {
			return l.Value
		}
	}
	return -1
}

func TestThatNotificationsMayBeLostIsToldToThoseWhoListen(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.Max = 2 })))
	f, deaf, other := newFrontend(t, h), newFrontend(t, h), h.connect(t)
	f.send(frame('Q', "listen here\x00"))
	f.expect("CZ")
	lose(t, h)
	typ, body, err := f.in.Next()
	if err != nil || typ != pgwire.NoticeResponse || !strings.Contains(string(pgwire.Field(body, 'M')), "notifications may have been lost") || !strings.HasSuffix(string(pgwire.Field(body, 'M')), "to here") {
		t.Errorf("told %c %s, %v", typ, body, err)
	}
	do(t, other, "notify here, 'again'") // it listens when the client is told
	if typ, _, err = f.in.Next(); err != nil || typ != pgwire.Notification {
		t.Errorf("%c, %v", typ, err)
	}
	deaf.send(frame('Q', "select 'nothing was told'\x00"))
	deaf.expect("TDCZ")
	var seen []string
	h.ledger.mu.Lock()
	for _, e := range h.ledger.events {
		seen = append(seen, e.Name)
	}
	h.ledger.mu.Unlock()
	if got := strings.Join(seen, " "); !strings.Contains(got, "listener_lost listener_back") {
		t.Errorf("events: %s", got)
	}
}

func TestALossEndsTheConnectionWhereThatIsWanted(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Listen.OnLoss = lossDisconnect })))
	f, deaf := newFrontend(t, h), newFrontend(t, h)
	f.send(frame('Q', "listen here\x00"))
	f.expect("CZ")
	lose(t, h)
	if got := lastWords(t, f.in); got != "57P01" {
		t.Errorf("SQLSTATE %q", got)
	}
	await(t, "it is recorded", func() bool { return h.ledger.codes()[string(ListenLost)] == 1 })
	deaf.send(frame('Q', "select 'nothing was told'\x00"))
	deaf.expect("TDCZ")
}

func TestAReconnectAndAPauseReplaceTheConnectionThatListens(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 2 })))
	f, other := newFrontend(t, h), h.connect(t)
	f.send(frame('Q', "listen here\x00"))
	f.expect("CZ")
	if err := h.Reconnect("app"); err != nil {
		t.Fatal(err)
	}
	if typ, _, err := f.in.Next(); err != nil || typ != pgwire.NoticeResponse {
		t.Fatalf("%c, %v", typ, err)
	}
	if err := h.Pause(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	await(t, "no connection is left", func() bool {
		n, err := s.Value(context.Background(), "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
		return err == nil && n == "0"
	})
	if err := h.Resume("app"); err != nil {
		t.Fatal(err)
	}
	if typ, _, err := f.in.Next(); err != nil || typ != pgwire.NoticeResponse {
		t.Fatalf("%c, %v", typ, err)
	}
	do(t, other, "notify here, 'once more'")
	f.expect("A")
}

func TestAListenerThatDoesNotReadIsDisconnectedAndOthersAreNot(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Listen.Buffer = minBuffer; d.Pool.Max = 3 })))
	lazy, tied, eager, other := newFrontend(t, h), newFrontend(t, h), h.connect(t), h.connect(t)
	for _, f := range []*frontend{lazy, tied} {
		f.send(frame('Q', "listen loud\x00"))
		f.expect("CZ")
	}
	tied.send(frame('Q', "begin\x00")) // what comes has to wait for the end of this
	tied.expect("CZ")
	do(t, eager, "listen loud")
	payload := strings.Repeat("l", 7000)
	sent := 0
	for h.ledger.codes()[string(ListenBehind)] < 2 {
		if sent++; sent > 20_000 {
			t.Fatal("140 MB are not too much")
		}
		do(t, other, "select pg_notify('loud', $1)", fmt.Sprint(sent, payload))
		if n := heardBy(t, eager); !strings.HasPrefix(n.Payload, fmt.Sprint(sent)) {
			t.Fatalf("heard %.20s instead of %d", n.Payload, sent)
		}
	}
	if got := lastWords(t, tied.in); got != "53400" {
		t.Errorf("SQLSTATE %q", got)
	}
	_, err := io.Copy(io.Discard, lazy.conn)
	if err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the lazy one: %v", err)
	}
}

func TestListenersOfAPoolThatIsReplacedHaveToListenAgain(t *testing.T) {
	s := pg.Start(t)
	cfg := config(database(s.URL(), one))
	h := run(t, cfg)
	f := newFrontend(t, h)
	f.send(frame('Q', "listen here\x00"))
	f.expect("CZ")
	next := cfg
	next.Databases = map[string]Database{"app": database(s.URL(), func(d *Database) { d.StatementTimeout = time.Minute })}
	commit, err := h.Prepare(next)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	if got := lastWords(t, f.in); got != "57P01" {
		t.Errorf("SQLSTATE %q", got)
	}
}

func TestPsqlListens(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	out := tool(t, h, "psql", "-X", "-At", "-c", "listen mine", "-c", "notify mine, 'hello psql'", "-c", "select 'end'")
	if !strings.Contains(out, `Asynchronous notification "mine" with payload "hello psql" received`) {
		t.Errorf("psql printed %s", out)
	}
}
