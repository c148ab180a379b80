package pooler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/hba"
	"mainstay.dev/mainstay/pooler/pgtest"
)

// enter logs in and leaves again.
func enter(t *testing.T, h *house, user, password string, params ...string) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), h.url(user, password, params...))
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	if got := value(t, conn, "select 'in'"); got != "in" {
		t.Errorf("%s: %q", user, got)
	}
	return nil
}

func TestUsersAreLookedUpOnAConnectionThatIsKept(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists looked; create role looked login password 'pencil'"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL()), func(c *Config) { c.AuthQuery.On, c.AuthQuery.Cache = true, 0 }))
	asking := func() string {
		t.Helper()
		pids, err := s.Value(t.Context(), "select coalesce(string_agg(pid::text, ' ' order by pid), '') from pg_stat_activity where application_name = 'mainstay auth_query'")
		if err != nil {
			t.Fatal(err)
		}
		return pids
	}
	login := func() {
		t.Helper()
		if err := enter(t, h, "looked", "pencil"); err != nil {
			t.Fatal(err)
		}
	}
	login()
	first := asking()
	for range 5 {
		login()
		refusedWith(t, enter(t, h, "nobody", "pencil"), "28P01")
	}
	if now := asking(); first == "" || now != first {
		t.Errorf("asked by %q, and then by %q", first, now)
	}
	if err := s.Exec(t.Context(), "select pg_terminate_backend("+first+")"); err != nil {
		t.Fatal(err)
	}
	await(t, "PostgreSQL has ended it", func() bool { return asking() == "" })
	login()
	if now := asking(); now == "" || now == first {
		t.Errorf("asked by %q, which has ended, and then by %q", first, now)
	}
	if err := h.Reconnect(""); err != nil {
		t.Fatal(err)
	}
	await(t, "it is closed with the others", func() bool { return asking() == "" })
	login()
	cfg := h.cfg
	cfg.AuthQuery.Idle = 0
	commit, err := h.Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	login()
	await(t, "none is kept", func() bool { return asking() == "" })
}

func TestRulesKnowTheMembersOfPostgreSQLsRoles(t *testing.T) {
	s := pg.Start(t)
	for _, sql := range []string{
		"drop role if exists in_staff, in_lead, ann_lead, bob_none, boss", "create role in_staff; create role in_lead role in_staff",
		"create role ann_lead login password 'pencil'; create role bob_none login password 'pencil'; create role boss login superuser password 'pencil'",
		"revoke in_lead from in_staff; grant in_staff to in_lead; grant in_lead to ann_lead",
	} {
		if err := s.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = s.Exec(context.Background(), "drop role if exists in_staff, in_lead, ann_lead, bob_none, boss")
	})
	cfg := config(database(s.URL(), func(d *Database) { d.Pool.OutageWait = 0 }), func(c *Config) {
		c.AuthQuery.On, c.AuthQuery.Cache = true, 0
		c.HBA = []hba.Rule{{Database: "all", User: "+in_staff", From: "all", TLS: "any", Method: hba.SCRAM}}
	})
	h := run(t, cfg)
	if err := enter(t, h, "ann_lead", "pencil"); err != nil { // a member of a member
		t.Error(err)
	}
	for _, user := range []string{"bob_none", "boss", "nobody"} { // nor is a superuser one by itself
		refusedWith(t, enter(t, h, user, "pencil"), "28000")
	}
	if err := s.Exec(t.Context(), "grant in_staff to bob_none; revoke in_lead from ann_lead"); err != nil {
		t.Fatal(err)
	}
	if err := enter(t, h, "bob_none", "pencil"); err != nil {
		t.Error(err)
	}
	refusedWith(t, enter(t, h, "ann_lead", "pencil"), "28000")

	// Users from the file, of whom PostgreSQL knows more than their password.
	cfg.AuthQuery.On = false
	cfg.Users = map[string]setting.Secret{"bob_none": "quill"}
	commit, err := h.Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	if err := enter(t, h, "bob_none", "quill"); err != nil {
		t.Error(err)
	}
	cfg.AuthQuery.Upstream = "postgres://nobody@127.0.0.1:1/x"
	if commit, err = h.Prepare(cfg); err != nil {
		t.Fatal(err)
	}
	commit()
	refusedWith(t, enter(t, h, "bob_none", "quill"), "08001") // not let in, and not taken for no member
}

func TestClientsEnterAsThemselvesByWhateverTheirLoginReveals(t *testing.T) {
	s := pgStartWithMethods(t)
	for _, c := range []struct {
		method, user string
		secret       string // in the file; "": PostgreSQL's own
		refused      string
	}{
		{hba.Password, "u_scram", "", ""},
		{hba.Password, "u_md5", "", ""},
		{hba.Password, "u_plain", "", ""},
		{hba.MD5, "u_md5", "", ""},
		{hba.MD5, "u_md5", "pw of u_md5", ""},
		{hba.MD5, "u_scram", "pw of u_scram", "08001"}, // PostgreSQL wants SCRAM, for which a hash is no good
		{hba.SCRAM, "u_scram", "", ""},
		{hba.Trust, "u_trust", "", "28000"}, // nothing was revealed
	} {
		cfg := config(database(s.URL(), func(d *Database) { d.Login, d.Pool.OutageWait = loginClient, 0 }), func(c *Config) { c.AuthQuery.On = true })
		cfg.HBA = []hba.Rule{{Database: "all", User: "all", From: "local", TLS: "any", Method: c.method}}
		if c.secret != "" {
			cfg.Users = map[string]setting.Secret{c.user: setting.Secret(c.secret)}
		}
		h := run(t, cfg)
		conn, err := pgx.Connect(t.Context(), h.url(c.user, "pw of "+c.user))
		if c.refused != "" {
			refusedWith(t, err, c.refused)
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if got := value(t, conn, "select session_user::text"); got != c.user {
			t.Errorf("%+v: it is %s there", c, got)
		}
		conn.Close(t.Context())
		refusedWith(t, enter(t, h, c.user, "wrong"), "28P01")
	}
}

func TestRefusedSettingsCostThePoolNothing(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	process := func() string {
		t.Helper()
		return value(t, h.connect(t), "select pg_backend_pid() || ' ' || current_setting('client_encoding') || ' ' || current_setting('timezone')")
	}
	before := process()
	for i := range 3 {
		refusedWith(t, enter(t, h, "ann", "", "timezone=Nowhere"), "22023")
		refusedWith(t, enter(t, h, "ann", "", fmt.Sprintf("there_is_no_such_thing_%d=1", i)), "42704")
		// The encoding is changed before the rest, by a query of its own.
		refusedWith(t, enter(t, h, "ann", "", "client_encoding=LATIN1", "application_name=ä", "timezone=Nowhere"), "22023")
	}
	if now := process(); now != before {
		t.Errorf("the server is %q, and was %q", now, before)
	}
	if err := enter(t, h, "ann", "", "timezone=Asia/Tokyo"); err != nil {
		t.Error(err)
	}
}

// The server is another pooler, which speaks TLS from the first byte on as PostgreSQL 17
// does, and checks the protocol's name.
func TestTheServerIsEnteredWithDirectTLS(t *testing.T) {
	behind := run(t, config(database(pg.Start(t).URL()), withTLS(t), func(c *Config) { c.TLS.Require = true }))
	_, port, err := net.SplitHostPort(behind.addr)
	if err := errors.Join(err, enter(t, behind, "ann", "", "sslmode=require")); err != nil {
		t.Fatal(err)
	}
	upstream := fmt.Sprintf("postgres://ann@localhost:%s/app?sslnegotiation=direct&sslmode=verify-full&sslrootcert=%s", port, pg.Start(t).CAFile())
	h := run(t, config(database(upstream, one)))
	if err := enter(t, h, "bob", ""); err != nil {
		t.Fatal(err)
	}
	if n := behind.Stats().Clients; n != 1 {
		t.Errorf("%d clients there", n)
	}
}

// Two clients that have logged in as one user with the password before its change, and with the one since, each keep
// their server: neither's pool makes room for the other's.
func TestAChangedPasswordDoesNotTakeTheServersOfWhoKnewTheOld(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists changed; create role changed login password 'old'"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Login, d.Pool.Max = loginClient, 1 }), func(c *Config) { c.AuthQuery.On, c.AuthQuery.Cache = true, 0 }))
	connect := func(password string) *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), h.url("changed", password))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.Background()) })
		return conn
	}
	first := connect("old")
	if err := s.Exec(t.Context(), "alter role changed password 'new'"); err != nil {
		t.Fatal(err)
	}
	conns := []*pgx.Conn{first, connect("new"), connect("new")}
	var pids [3]map[string]bool
	var all sync.WaitGroup
	for i, conn := range conns {
		pids[i] = map[string]bool{}
		all.Go(func() {
			for range 50 {
				var pid string
				if err := conn.QueryRow(context.Background(), "select pg_backend_pid()::text from pg_sleep(0.002)", pgx.QueryExecModeSimpleProtocol).Scan(&pid); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				pids[i][pid] = true
			}
		})
	}
	all.Wait()
	if len(pids[0]) != 1 || len(pids[1]) != 1 || !maps.Equal(pids[1], pids[2]) || maps.Equal(pids[0], pids[1]) {
		t.Errorf("served by %v", pids)
	}
	for _, conn := range conns {
		conn.Close(t.Context())
	}
	if err := h.Reconnect("app"); err != nil {
		t.Fatal(err)
	}
	await(t, "their pools are forgotten", func() bool { return len(h.allPools()) == 1 })
}

// Whoever logs in while PostgreSQL is restarted waits for it, also if it is to be looked up there.
func TestUsersAreLookedUpAcrossARestart(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Database: "app"})
	if err := s.Exec(t.Context(), "create role looked login password 'pencil'"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Pool.OutageWait = time.Minute }), func(c *Config) { c.AuthQuery.On, c.AuthQuery.Cache = true, 0 }))
	for range 2 {
		if err := enter(t, h, "looked", "pencil"); err != nil {
			t.Fatal(err)
		}
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		entered := make(chan error, 1)
		go func() {
			conn, err := pgx.Connect(context.Background(), h.url("looked", "pencil"))
			if err == nil {
				conn.Close(context.Background())
			}
			entered <- err
		}()
		select {
		case err := <-entered:
			t.Fatalf("while PostgreSQL is down: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-entered; err != nil {
			t.Error(err)
		}
	}
}

// The function that the documentation shows for roles that are no superusers works as it stands there, and for them alone.
func TestTheDocumentedLookupTellsItsRoleAlone(t *testing.T) {
	page, err := os.ReadFile("../docs/pooler.md")
	if err != nil {
		t.Fatal(err)
	}
	_, recipe, _ := strings.Cut(string(page), "needs a function instead")
	_, recipe, _ = strings.Cut(recipe, "```sql\n")
	recipe, _, _ = strings.Cut(recipe, "```")
	s := pg.Start(t)
	forget := "drop schema if exists mainstay cascade; drop role if exists mainstay_auth, shared_pool, looked_up;"
	t.Cleanup(func() { _ = s.Exec(context.Background(), forget) })
	if err := s.Exec(t.Context(), forget+recipe+";create role shared_pool login password 'x'; create role looked_up login password 'pencil'"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URLFor("shared_pool", "x", "app")), func(c *Config) {
		c.AuthQuery.On, c.AuthQuery.Query, c.AuthQuery.Upstream = true, "SELECT u, s, v FROM mainstay.lookup($1)", setting.Secret(s.URLFor("mainstay_auth", "…", "app"))
	}))
	conn, err := pgx.Connect(t.Context(), h.url("looked_up", "pencil"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := s.Exec(t.Context(), "grant usage on schema mainstay to public"); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), "select * from mainstay.lookup('postgres')")
	refusedWith(t, err, "42501")
}
