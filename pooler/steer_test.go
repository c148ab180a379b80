package pooler

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/hba"
)

// reload gives a pooler another configuration.
func (h *house) reload(t *testing.T, cfg Config) {
	t.Helper()
	commit, err := h.Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	commit()
}

// As at a failover: pause, another server in the file, reload, resume.
func TestAPauseOutlastsAReloadThatReplacesThePool(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(s.URL(), one)))
	conn := h.connect(t)
	value(t, conn, "select 'before'")
	if err := h.Pause(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	since := h.Stats().Databases[0].Paused
	waits := make(chan error, 1)
	go func() { _, err := conn.Exec(context.Background(), "select 'meanwhile'", simple); waits <- err }()
	await(t, "it waits", func() bool { return h.Stats().Databases[0].Waiting == 1 })
	h.reload(t, config(database(s.URL(), one, func(d *Database) { d.StatementTimeout = time.Minute })))
	await(t, "it waits for the other", func() bool {
		st := h.Stats().Databases[0]
		if st.Active+st.Idle+st.Connecting > 0 {
			t.Fatalf("paused, and it serves: %+v", st)
		}
		return st.Waiting == 1
	})
	if now := h.Stats().Databases[0].Paused; now == nil || !now.Equal(*since) {
		t.Errorf("paused since %v, and now since %v", since, now)
	}
	if err := h.Pause(t.Context(), "app"); err != nil { // nothing has to come back
		t.Error(err)
	}
	if err := h.Resume("app"); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil {
		t.Error(err)
	}
	if got := value(t, conn, "show statement_timeout"); got != "1min" {
		t.Errorf("served by a server with %s", got)
	}
}

func TestARenewedAuthorityIsReadAtAReload(t *testing.T) {
	s := pg.Start(t)
	authority := filepath.Join(t.TempDir(), "ca.crt")
	writeOtherAuthority(t, authority)
	url := strings.TrimSuffix(s.URL(), "sslmode=disable") + "sslmode=verify-ca&sslrootcert=" + authority
	h := run(t, config(database(url)))
	refusedWith(t, enter(t, h, "ann", ""), "08001")
	pem, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(authority, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	h.reload(t, h.cfg)
	if err := enter(t, h, "ann", ""); err != nil {
		t.Error(err)
	}
	served := h.policy.Load().pools["app"]
	if h.reload(t, h.cfg); h.policy.Load().pools["app"] != served {
		t.Error("a reload that changes nothing replaces the pool")
	}
}

// The upstream is another pooler, which asks for a certificate.
func TestARenewedClientCertificateIsReadAtAReload(t *testing.T) {
	s, used := pg.Start(t), t.TempDir()
	ca, cert, key := writeClient(t, t.TempDir(), "ann")
	_, late, lateKey := writeClient(t, used, "ann") // of an authority that it does not know
	asks := run(t, config(database(s.URL()), withTLS(t), func(c *Config) {
		c.TLS.ClientCA = ca
		c.HBA = []hba.Rule{{Database: "all", User: "all", From: "all", TLS: "required", Method: hba.Cert}}
	}))
	conn, err := pgx.Connect(t.Context(), asks.url("ann", "", "sslmode=require", "sslcert="+cert, "sslkey="+key)) // it is up
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	h := run(t, config(database(asks.url("ann", "", "sslmode=require", "sslcert="+late, "sslkey="+lateKey))))
	refusedWith(t, enter(t, h, "ann", ""), "08001")
	for from, to := range map[string]string{cert: late, key: lateKey} {
		pem, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, pem, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	h.reload(t, h.cfg)
	if err := enter(t, h, "ann", ""); err != nil {
		t.Error(err)
	}
}

// A user who comes while an order is carried out gets a pool of its own that obeys it too.
func TestOrdersReachUsersWhoComeMeanwhile(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Login = loginClient })))
	home := h.policy.Load().pools["app"]
	for round := range 200 {
		var all sync.WaitGroup
		begin := make(chan struct{})
		for i := range 4 {
			all.Go(func() {
				<-begin
				for n := range 25 {
					home.member(fmt.Sprintf("user%d_%d_%d", round, i, n), credential.Keys{Password: "x"})
				}
			})
		}
		close(begin)
		if err := h.Pause(t.Context(), "app"); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		for _, m := range home.family() {
			if !m.waits() {
				t.Fatal("a pool serves while its database is paused")
			}
		}
		all.Go(func() {
			for n := range 25 {
				home.member(fmt.Sprintf("user%d_late_%d", round, n), credential.Keys{Password: "x"})
			}
		})
		if err := h.Resume("app"); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		for _, m := range home.family() {
			if m.waits() {
				t.Fatal("a pool waits for ever: its database is not paused any more")
			}
		}
	}
}

// selves are users who enter PostgreSQL as themselves.
func selves(t *testing.T, names []string, change ...func(*Database)) *house {
	t.Helper()
	s := pg.Start(t)
	for _, name := range names {
		if err := s.Exec(t.Context(), fmt.Sprintf("drop role if exists %[1]s; create role %[1]s login password 'pw'", name)); err != nil {
			t.Fatal(err)
		}
	}
	change = append([]func(*Database){func(d *Database) { d.Login = loginClient }}, change...)
	return run(t, config(database(s.URL(), change...), func(c *Config) { c.AuthQuery.On = true }))
}

func (h *house) self(t *testing.T, name string) (*pgx.Conn, error) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), h.url(name, "pw"))
	if err == nil {
		t.Cleanup(func() { conn.Close(context.Background()) })
	}
	return conn, err
}

func TestWhatIsKeptForAUserIsNotKeptInOthersOwnPools(t *testing.T) {
	h := selves(t, []string{"own_vip", "own_bob"}, one, func(d *Database) {
		d.Pool.AcquireTimeout, d.Pool.Users = 3*time.Second, map[string]Share{"own_vip": {Min: 1, Weight: 1}}
	})
	for _, name := range []string{"own_vip", "own_bob"} {
		if _, err := h.self(t, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.reload(t, h.cfg)
	conn, err := h.self(t, "own_bob")
	if err != nil {
		t.Fatal(err)
	}
	do(t, conn, "begin")
}

func TestAWaitInVainForTheTotalSaysWhoHasIt(t *testing.T) {
	h := selves(t, []string{"has_it", "wants_it"}, func(d *Database) { d.Pool.Total, d.Pool.AcquireTimeout = 1, time.Second })
	holder, err := h.self(t, "has_it")
	if err != nil {
		t.Fatal(err)
	}
	do(t, holder, "begin")
	_, err = h.self(t, "wants_it")
	e := refusedWith(t, err, "53300")
	for _, want := range []string{`user "has_it"`, "idle in transaction", "1 of 1 are open for all users together"} {
		if !strings.Contains(e.Message, want) {
			t.Errorf("%q is not in: %s", want, e.Message)
		}
	}
	if !strings.Contains(e.Hint, "pooler.databases.app.pool.total") {
		t.Errorf("hint: %s", e.Hint)
	}
}

func TestWhatMayBeOpenIsOfAllUsersPools(t *testing.T) {
	h := selves(t, []string{"open_a", "open_b"}, func(d *Database) { d.Pool.Max = 2 })
	for _, c := range []struct{ total, want int }{{0, 4}, {3, 3}, {9, 4}} {
		cfg := h.cfg
		d := cfg.Databases["app"]
		d.Pool.Total = c.total
		cfg.Databases = map[string]Database{"app": d}
		h.reload(t, cfg)
		for _, name := range []string{"open_a", "open_b"} {
			if _, err := h.self(t, name); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.Stats().Databases[0].Max; got != c.want {
			t.Errorf("2 for each of two users, and a total of %d: %d", c.total, got)
		}
	}
}

func TestAnOrderForWhatIsNotThereSaysWhereToLook(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL())))
	_, killed := h.Kill(Kill{User: "nobody"})
	for err, want := range map[error]string{h.Pause(t.Context(), "nowhere"): "mainstay db pools", h.Reconnect("nowhere"): "mainstay db pools", killed: "mainstay db clients"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
	}
}

func TestAWaitInVainSaysWhatIsKeptForOthers(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) {
		d.Pool.Max, d.Pool.AcquireTimeout, d.Pool.Users = 2, time.Second, map[string]Share{"vip": {Min: 1, Weight: 1}}
	})))
	holder, other := h.as(t, "holder"), h.as(t, "other")
	do(t, holder, "begin")
	_, err := other.Exec(t.Context(), "begin")
	if e := refusedWith(t, err, "53300"); !strings.Contains(e.Message, "1 kept for other users (min)") {
		t.Error(e.Message)
	}
}
