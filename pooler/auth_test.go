package pooler

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mainstay.dev/mainstay/internal/setting"
)

// psql runs libpq's own client with a connection string and returns what it printed.
func psql(t *testing.T, conninfo, sql string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("psql")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("psql is not installed: apt-get install postgresql-client")
	}
	cmd := exec.CommandContext(t.Context(), path, "-X", "-At", "-c", sql, conninfo)
	cmd.Env = append(os.Environ(), "PGCONNECT_TIMEOUT=10", "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// withTLS gives a pooler PostgreSQL's certificate for localhost.
func withTLS(t *testing.T) func(*Config) {
	dir := filepath.Dir(pg.Start(t).CAFile())
	return func(c *Config) {
		c.TLS.Cert, c.TLS.Key = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	}
}

func TestLibpqBindsItsLoginToOurCertificate(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), withTLS(t), func(c *Config) { c.Users = map[string]setting.Secret{"ann": "pencil"} }))
	url := h.url("ann", "pencil", "sslmode=verify-full", "sslrootcert="+pg.Start(t).CAFile(), "channel_binding=require")
	if out, err := psql(t, url, "select 'bound'"); err != nil || strings.TrimSpace(out) != "bound" {
		t.Errorf("%s %v", out, err)
	}
	if out, err := psql(t, strings.Replace(url, "pencil", "crayon", 1), "select 1"); err == nil || !strings.Contains(out, "password authentication failed") {
		t.Errorf("%s %v", out, err)
	}
}

func TestTheNextHostServesWhenTheFirstIsDown(t *testing.T) {
	s := pg.Start(t)
	h := run(t, config(database(strings.Replace(s.URL(), s.Addr(), "127.0.0.1:1,"+s.Addr(), 1)+"&target_session_attrs=read-write")))
	conn := h.connect(t)
	if got := value(t, conn, "select current_database()::text"); got != "app" {
		t.Error(got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { _, err := conn.Exec(context.Background(), "select pg_sleep(600)"); failed <- err }()
	await(t, "it runs", func() bool { return h.Stats().Databases[0].Active == 1 })
	if err := conn.PgConn().CancelRequest(ctx); err != nil { // goes to the host that the query is on
		t.Error(err)
	}
	refusedWith(t, <-failed, "57014")
	cancel()
}
