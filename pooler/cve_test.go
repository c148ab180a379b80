package pooler

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// The weaknesses that other poolers and drivers have had, replayed. Elsewhere are:
// CVE-2025-12819, CVE-2025-2291 and CVE-2015-6817 (auth_query:
// TestUsersOfPostgreSQLLogInByAuthQuery), CVE-2026-6667 (who may end a client:
// TestNobodyEndsTheSessionOfAnotherUserByItsID; orders come through the admin API alone),
// CVE-2021-23222 (bytes behind the server's answer to a TLS request: read one by one).

func u32(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }

// TestMalformedLoginsEndTheirOwnConnectionAlone replays CVE-2026-6664 (a SASL length that
// wraps), CVE-2026-107350 (a second startup packet within SCRAM), CVE-2026-107349 (an
// option without a name), CVE-2026-6668 and CVE-2026-107348 (lengths above 2 GB),
// CVE-2021-23214 and CVE-2021-3935 (bytes in the clear before TLS).
func TestMalformedLoginsEndTheirOwnConnectionAlone(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one), withTLS(t), func(c *Config) {
		c.Users = map[string]setting.Secret{"ann": "pencil", "root": "other"}
		c.LoginTimeout = 5 * time.Second
	}))
	ann := startup("user", "ann", "database", "app")
	sasl := func(length uint32, rest string) string { return frame('p', "SCRAM-SHA-256\x00"+u32(length)+rest) }
	second := startup("user", "root", "database", "app")
	for what, send := range map[string]string{
		"a SASL length of 4 GB":           ann + sasl(0xffffffff, "n,,n"),
		"a SASL length that wraps":        ann + sasl(0xffffffee, "n,,n=,r=abc"),
		"a SASL length of 2 GB":           ann + sasl(0x80000000, "n,,n"),
		"a SASL length that is too short": ann + sasl(3, "n,,n=,r=abc"),
		"no SASL length":                  ann + frame('p', "SCRAM-SHA-256\x00"),
		"a login message of 4 GB":         ann + "p\xff\xff\xff\xff",
		"a login message of 2 GB":         ann + "p\x80\x00\x00\x04",
		"a login message of 1 GB":         ann + "p\x3f\xff\xff\xff",
		"a second startup":                ann + second,
		"a second startup, no database":   startup("user", "ann", "database", "none") + second,
		"a second startup within SCRAM":   startup("user", "ann", "database", "none") + sasl(21, "n,,n=,r=abcdefghijklm") + second,
		"a query instead of a proof":      ann + frame('Q', "select 1\x00"),
		"a startup of 4 GB":               "\xff\xff\xff\xff\x00\x03\x00\x00",
		"a startup of 2 GB":               "\x80\x00\x00\x00\x00\x03\x00\x00",
		"a startup of nothing":            "\x00\x00\x00\x00",
		"bytes behind a request for TLS":  "\x00\x00\x00\x08\x04\xd2\x16\x2f" + ann,
	} {
		conn := dialRaw(t, h.addr)
		if _, err := conn.Write([]byte(send)); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", what, err)
		}
		if strings.Contains(string(answer), string(pgwire.AppendReady(nil, pgwire.Idle))) {
			t.Errorf("%s: logged in", what)
		}
	}
	conn, err := pgx.Connect(t.Context(), h.url("ann", "pencil"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if got := value(t, conn, "select 'alive'"); got != "alive" {
		t.Error(got)
	}
	for _, options := range []string{"-c=", "-c =", "--=", "-c", "--", "-c=1", "-c a", "=", "-c ="} {
		f := dialRaw(t, h.addr)
		if _, err := f.Write([]byte(startup("user", "ann", "database", "app", "options", options))); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if n := h.ledger.codes()[string(Internal)]; n > 0 {
		t.Errorf("%d internal errors", n)
	}
}

// TestAnOptionWithoutANameIsRefused is CVE-2026-107349, by one who may log in.
func TestAnOptionWithoutANameIsRefused(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	for _, options := range []string{"-c=", "-c =", "--=", "-c", "--", "-c=1", "-c a", "="} {
		conn := dialRaw(t, h.addr)
		if _, err := conn.Write([]byte(startup("user", "ann", "database", "app", "options", options))); err != nil {
			t.Fatal(err)
		}
		if got := lastWords(t, pgwire.NewReader(conn, 1<<14)); got != "42704" && got != "0A000" {
			t.Errorf("%q: SQLSTATE %q", options, got)
		}
	}
}

// TestLengthsInsideAMessageCannotLeaveIt is the other side of CVE-2024-27304, where the
// length of a message of more than 4 GB wrapped and its data became messages of their
// own: what a message claims of its parts never reaches beyond it.
func TestLengthsInsideAMessageCannotLeaveIt(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop table if exists smuggled; create table smuggled (n int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), one)))
	smuggled := frame('Q', "insert into smuggled values (1)\x00")
	parse := frame('P', "p\x00select $1::text\x00\x00\x00")
	bind := func(length string) string {
		return frame('B', "\x00p\x00\x00\x00\x00\x01"+length+smuggled) + frame('E', "\x00\x00\x00\x00\x00") + frame('S', "")
	}
	for _, length := range []string{"\x00\x00\x00\x00", "\x7f\xff\xff\xff", "\x80\x00\x00\x00", "\xff\xff\xff\xfe", "\xff\xff\xff\xff"} {
		f := newFrontend(t, h)
		f.send(parse + frame('S', ""))
		f.expect("1Z")
		f.send(bind(length) + frame('Q', "select 'in step'\x00"))
		if f.expect("EZTDCZ"); f.row != "in step" {
			t.Errorf("%q", f.row)
		}
		f.send(parse + frame('X', ""))
		f.conn.Close()
	}
	for _, claim := range []string{"B\x00\x00\x00\x03", "B\x00\x00\x00\x04" + smuggled, "Q\xff\xff\xff\xff" + smuggled, "B\xff\xff\xff\xff" + smuggled, "P\x80\x00\x00\x00" + smuggled} {
		f := newFrontend(t, h)
		f.send(claim)
		if got := lastWords(t, f.in); got != "08P01" {
			t.Errorf("%q: SQLSTATE %q", claim[:5], got)
		}
	}
	n, err := s.Value(t.Context(), "select count(*) from smuggled")
	if err != nil || n != "0" {
		t.Errorf("%s rows were smuggled in, %v", n, err)
	}
}

// TestAMaliciousServerIsRefusedAtLogin replays CVE-2026-6665 (a long nonce),
// CVE-2026-6669 (endless iterations) and CVE-2026-6666 (an error without SQLSTATE).
func TestAMaliciousServerIsRefusedAtLogin(t *testing.T) {
	offer := frame('R', u32(10)+"SCRAM-SHA-256\x00\x00")
	for what, answer := range map[string]func(nonce string) string{
		"a long nonce":          func(n string) string { return "r=" + n + strings.Repeat("x", 12_000) + ",s=c2FsdA==,i=4096" },
		"another nonce":         func(string) string { return "r=other,s=c2FsdA==,i=4096" },
		"endless iterations":    func(n string) string { return "r=" + n + "y,s=c2FsdA==,i=2147483647" },
		"more than there are":   func(n string) string { return "r=" + n + "y,s=c2FsdA==,i=99999999999999999999" },
		"no iterations":         func(n string) string { return "r=" + n + "y,s=c2FsdA==,i=0" },
		"iterations before all": func(n string) string { return "i=1,r=" + n + "y,s=c2FsdA==,i=2147483647" },
		"no salt":               func(n string) string { return "r=" + n + "y" },
	} {
		t.Run(what, func(t *testing.T) {
			h := withServer(t, func(conn net.Conn, in *pgwire.Reader) {
				_, _ = conn.Write([]byte(offer))
				_, body, err := in.Next()
				if err != nil {
					return
				}
				_, nonce, _ := strings.Cut(string(body), "r=")
				_, _ = conn.Write([]byte(frame('R', u32(11)+answer(nonce))))
				_, _, _ = in.Next()
			})
			f := dialRaw(t, h.addr)
			if _, err := f.Write([]byte(startup("user", "ann", "database", "app"))); err != nil {
				t.Fatal(err)
			}
			if got := lastWords(t, pgwire.NewReader(f, 1<<14)); got != "08001" {
				t.Errorf("SQLSTATE %q", got)
			}
		})
	}
	t.Run("an error without SQLSTATE", func(t *testing.T) {
		for _, bad := range []string{frame('E', "SFATAL\x00Mno code\x00\x00"), frame('E', "\x00"), frame('E', ""), frame('E', "SFATAL\x00C\x00Mempty\x00\x00"), frame('E', "SFATAL")} {
			h := withServer(t, func(conn net.Conn, _ *pgwire.Reader) { _, _ = conn.Write([]byte(bad)) })
			f := dialRaw(t, h.addr)
			if _, err := f.Write([]byte(startup("user", "ann", "database", "app"))); err != nil {
				t.Fatal(err)
			}
			if got := lastWords(t, pgwire.NewReader(f, 1<<14)); got != "08001" {
				t.Errorf("%q: SQLSTATE %q", bad, got)
			}
		}
	})
}

// withServer runs a pooler in front of a scripted server, which has read the startup
// packet.
func withServer(t *testing.T, serve func(net.Conn, *pgwire.Reader), change ...func(*Database)) *house {
	t.Helper()
	fake, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := fake.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				in := pgwire.NewReader(conn, 1<<16)
				if conn.SetDeadline(time.Now().Add(20*time.Second)) != nil {
					return
				}
				if start, err := in.ReadStartup(); err == nil && start.Kind == pgwire.StartSession {
					serve(conn, in)
				}
			})
		}
	})
	h := run(t, config(database("postgres://u:p@"+fake.Addr().String()+"/x?sslmode=disable", append(change, func(d *Database) { d.Pool.OutageWait = 0 })...)))
	t.Cleanup(func() { _ = h.stop(); fake.Close(); serving.Wait() })
	return h
}

// TestRowsThatAPolicyHidesStayHidden is CVE-2024-45624, where a cache gave one user's
// rows to another: the same statement, under the same name, by clients whose role or
// claims differ, on servers that they share.
func TestRowsThatAPolicyHidesStayHidden(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop table if exists owned; drop role if exists tenant_user; create role tenant_user; grant tenant_user to postgres;
		create table owned (tenant text, secret text); alter table owned enable row level security; grant select on owned to tenant_user;
		create policy own on owned using (tenant = nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub');
		insert into owned select 't' || n, 'secret of t' || n from generate_series(0, 4) n`); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.Max = 2 })))
	var all sync.WaitGroup
	for i := range 5 {
		conn := h.connect(t)
		do(t, conn, "set role tenant_user")
		do(t, conn, fmt.Sprintf(`set request.jwt.claims = '{"sub": "t%d"}'`, i))
		if _, err := conn.Prepare(t.Context(), "mine", "select coalesce(string_agg(secret, ','), 'none') from owned"); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for n := range 60 {
				var got string
				mode := []any{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec}[n%2]
				err := conn.QueryRow(context.Background(), "select coalesce(string_agg(secret, ','), 'none') from owned", mode).Scan(&got)
				if n%3 == 0 {
					err = conn.QueryRow(context.Background(), "mine").Scan(&got)
				}
				if want := fmt.Sprintf("secret of t%d", i); err != nil || got != want {
					t.Errorf("tenant %d sees %q, %v", i, got, err)
					return
				}
			}
		})
	}
	all.Wait()
	nobody := h.connect(t)
	do(t, nobody, "set role tenant_user")
	if got := value(t, nobody, "select coalesce(string_agg(secret, ','), 'none') from owned"); got != "none" {
		t.Errorf("one without claims sees %s", got)
	}
}
