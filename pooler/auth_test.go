package pooler

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/hba"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
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
	await(t, "it runs", underWay(t, "select pg_sleep(600)"))
	if err := conn.PgConn().CancelRequest(ctx); err != nil { // goes to the host that the query is on
		t.Error(err)
	}
	refusedWith(t, <-failed, "57014")
	cancel()
}

// direct opens a TLS connection without asking first.
func direct(t *testing.T, h *house, protocols ...string) (*tls.Conn, error) {
	t.Helper()
	pem, err := os.ReadFile(pg.Start(t).CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conn := tls.Client(dialRaw(t, h.addr), &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: protocols})
	return conn, conn.HandshakeContext(t.Context())
}

func TestDirectTLSIsSpokenWithTheRightProtocolName(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Hosts = []string{"localhost"} }), withTLS(t)))
	conn, err := direct(t, h, "postgresql")
	if err != nil {
		t.Fatal(err)
	}
	// The name in the handshake leads to the database, whatever the packet says.
	if _, err := conn.Write([]byte(startup("user", "ann", "database", "whatever"))); err != nil {
		t.Fatal(err)
	}
	in := pgwire.NewReader(conn, 1<<14)
	for typ := byte(0); typ != pgwire.ReadyForQuery; {
		var body []byte
		if typ, body, err = in.Next(); err != nil || typ == pgwire.ErrorResponse {
			t.Fatalf("%q, %v", body, err)
		}
	}
	conn, err = direct(t, h)
	if err == nil {
		if got := lastWords(t, pgwire.NewReader(conn, 1<<14)); got != "08P01" {
			t.Errorf("without ALPN: %q", got)
		}
	}
}

func TestProtocol32HasALongCancelKeyAndGreaseIsNegotiated(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL())))
	for _, c := range []struct {
		minor   uint16
		option  string
		length  int    // of the key
		version uint32 // that is negotiated; 0: no word of it
	}{{0, "", 4, 0}, {2, "", 32, 0}, {9999, "_pq_.test_protocol_negotiation", 32, 3<<16 | 2}, {0, "_pq_.x", 4, 3 << 16}} {
		params := []pgwire.Param{{Name: "user", Value: "ann"}, {Name: "database", Value: "app"}}
		if c.option != "" {
			params = append(params, pgwire.Param{Name: c.option})
		}
		packet := pgwire.AppendStartup(nil, params)
		binary.BigEndian.PutUint16(packet[6:], c.minor)
		conn := dialRaw(t, h.addr)
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
		in := pgwire.NewReader(conn, 1<<14)
		var version uint32
		for {
			typ, body, err := in.Next()
			if err != nil || typ == pgwire.ErrorResponse {
				t.Fatalf("3.%d: %q, %v", c.minor, body, err)
			}
			if typ == pgwire.NegotiateProto {
				version = binary.BigEndian.Uint32(body)
				if !bytes.Contains(body, []byte(c.option)) {
					t.Errorf("the unknown option is not named: %q", body)
				}
			}
			if typ == pgwire.BackendKeyData && len(body) != 4+c.length {
				t.Errorf("3.%d: a key of %d bytes, want %d", c.minor, len(body)-4, c.length)
			}
			if typ == pgwire.ReadyForQuery {
				break
			}
		}
		if version != c.version {
			t.Errorf("3.%d: negotiated %#x, want %#x", c.minor, version, c.version)
		}
	}
}

func TestRulesDecideHowClientsProveWhoTheyAre(t *testing.T) {
	list := filepath.Join(t.TempDir(), "userlist.txt")
	if err := os.WriteFile(list, []byte("\"listed\" \"from a file\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rule := func(user, method, encrypted string) hba.Rule {
		return hba.Rule{Database: "app", User: user, From: "all", TLS: encrypted, Method: method}
	}
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Tenant = "acme" }), withTLS(t), func(c *Config) {
		c.Users = map[string]setting.Secret{"ann": "pencil", "md": "pencil", "clear": "pencil"}
		c.Userlist = list
		c.HBA = []hba.Rule{rule("root", hba.Reject, "any"), rule("guest", hba.Trust, "any"), rule("md", hba.MD5, "any"), rule("clear", hba.Password, "required"), rule("ann", hba.SCRAM, "any"), rule("listed", hba.SCRAM, "none")}
	}))
	for _, c := range []struct{ user, password, sslmode, refused string }{
		{"root", "x", "disable", "28000"}, {"guest", "", "disable", ""}, {"md", "pencil", "disable", ""}, {"md", "crayon", "disable", "28P01"},
		{"clear", "pencil", "require", ""}, {"clear", "crayon", "require", "28P01"}, {"clear", "pencil", "disable", "28000"},
		{"ann", "pencil", "disable", ""}, {"ann", "pencil", "require", ""}, {"ann", "crayon", "disable", "28P01"},
		{"listed", "from a file", "disable", ""}, {"listed", "from a file", "require", "28000"}, {"nobody", "x", "disable", "28000"},
		{"ann.acme", "pencil", "disable", ""}, {"ann.acme", "crayon", "disable", "28P01"}, {"ann.other", "pencil", "disable", "28000"},
	} {
		conn, err := pgx.Connect(t.Context(), strings.Replace(h.url(c.user, c.password, "sslmode="+c.sslmode), "/app", map[bool]string{true: "/nonsense", false: "/app"}[strings.HasSuffix(c.user, ".acme")], 1))
		if c.refused == "" && err == nil {
			value(t, conn, "select 'in'")
			conn.Close(t.Context())
			continue
		}
		if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != c.refused {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// writeClient makes an authority and a client certificate of it.
func writeClient(t *testing.T, dir, name string) (ca, cert, key string) {
	t.Helper()
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority := template(1, "clients")
	authority.IsCA, authority.BasicConstraintsValid, authority.KeyUsage = true, true, x509.KeyUsageCertSign
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := template(2, name)
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	write := func(file, kind string, der []byte, err error) string {
		path := filepath.Join(dir, file)
		if err == nil {
			err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, caKey.Public(), caKey)
	ca = write("ca.pem", "CERTIFICATE", der, err)
	der, err = x509.CreateCertificate(rand.Reader, leaf, authority, leafKey.Public(), caKey)
	cert = write("client.pem", "CERTIFICATE", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(leafKey)
	return ca, cert, write("client.key", "PRIVATE KEY", der, err)
}

func TestAClientCertificateIsAProof(t *testing.T) {
	ca, cert, key := writeClient(t, t.TempDir(), "robot")
	otherCA, otherCert, otherKey := writeClient(t, t.TempDir(), "robot")
	_ = otherCA
	h := run(t, config(database(pg.Start(t).URL()), withTLS(t), func(c *Config) {
		c.TLS.ClientCA = ca
		c.HBA = []hba.Rule{{Database: "all", User: "all", From: "all", TLS: "required", Method: hba.Cert}}
	}))
	with := func(user, cert, key string) error {
		conn, err := pgx.Connect(t.Context(), h.url(user, "", "sslmode=require", "sslcert="+cert, "sslkey="+key))
		if err == nil {
			value(t, conn, "select 'in'")
			conn.Close(t.Context())
		}
		return err
	}
	if err := with("robot", cert, key); err != nil {
		t.Error(err)
	}
	refusedWith(t, with("ann", cert, key), "28000")
	if err := with("robot", otherCert, otherKey); err == nil {
		t.Error("a certificate of another authority is accepted")
	}
	_, err := pgx.Connect(t.Context(), h.url("robot", "", "sslmode=require"))
	refusedWith(t, err, "28000")
}

func TestUsersOfPostgreSQLLogInByAuthQuery(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), `drop role if exists known; drop role if exists expired; drop role if exists nologin_;
		create role known login password 'pencil'; create role expired login password 'pencil' valid until '2020-01-01'; create role nologin_ password 'pencil';
		drop schema if exists evil cascade; create schema evil;
		create function evil.now() returns timestamptz language sql as $$ select '1999-01-01'::timestamptz $$;
		drop table if exists public.pg_authid; create table public.pg_authid (rolname text, rolpassword text, rolvaliduntil timestamptz, rolcanlogin bool);
		insert into public.pg_authid values ('ghost', 'md5' || md5('pencilghost'), null, true)`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Exec(context.Background(), "drop table if exists public.pg_authid") })
	h := run(t, config(database(s.URL()), func(c *Config) {
		c.AuthQuery.On = true
		c.AuthQuery.Query = "SELECT rolname, rolpassword, rolvaliduntil FROM pg_authid WHERE rolname = $1 AND rolcanlogin" // not qualified, and safe all the same
	}))
	conn, err := pgx.Connect(t.Context(), h.url("known", "pencil"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, user := range []string{"known", "expired", "nologin_", "ghost", "nobody'; drop role known; --"} {
		password := "pencil"
		if user == "known" {
			password = "crayon"
		}
		// CVE-2025-12819: a search_path of the client's must not lead the query astray.
		_, err := pgx.Connect(t.Context(), h.url(user, password, "search_path=public,evil,pg_catalog"))
		refusedWith(t, err, "28P01")
	}
	if err := s.Exec(t.Context(), "alter role known password 'quill'"); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.Connect(t.Context(), h.url("known", "quill")); err != nil {
		_, err = pgx.Connect(t.Context(), h.url("known", "quill")) // the first attempt has found an old answer, and had it forgotten
		if err != nil {
			t.Errorf("the new password: %v", err)
		}
	}
}

func TestClientsEnterTheServerAsThemselves(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists self_a; drop role if exists self_b; create role self_a login password 'pw a'; create role self_b login password 'pw b'"); err != nil {
		t.Fatal(err)
	}
	cfg := config(database(s.URL(), func(d *Database) { d.Login, d.Pool.Max = loginClient, 2 }), func(c *Config) { c.AuthQuery.On = true })
	h := run(t, cfg)
	for _, user := range []string{"self_a", "self_b"} {
		for range 3 {
			conn, err := pgx.Connect(t.Context(), h.url(user, "pw "+user[5:]))
			if err != nil {
				t.Fatal(err)
			}
			if got := value(t, conn, "select session_user::text"); got != user {
				t.Errorf("%s is %s there", user, got)
			}
			conn.Close(t.Context())
		}
	}
	_, err := pgx.Connect(t.Context(), h.url("self_a", "pw b"))
	refusedWith(t, err, "28P01")
	if st := h.Stats().Databases[0]; len(h.Stats().Databases) != 1 || st.Idle != 2 {
		t.Errorf("%+v", h.Stats())
	}
	if err := h.Reconnect("app"); err != nil {
		t.Fatal(err)
	}
	await(t, "pools of users who are gone are forgotten", func() bool { return len(h.allPools()) == 1 })
}

func TestUsersShareTheTotalOfADatabase(t *testing.T) {
	s := pg.Start(t)
	cfg := config(database(s.URL(), func(d *Database) { d.Login, d.Pool.Max, d.Pool.Total = loginClient, 3, 2 }), func(c *Config) { c.AuthQuery.On = true })
	h := run(t, cfg)
	for round := range 2 {
		for _, user := range []string{"total_a", "total_b", "total_c"} {
			if round == 0 {
				if err := s.Exec(t.Context(), "drop role if exists "+user+"; create role "+user+" login password 'pw'"); err != nil {
					t.Fatal(err)
				}
			}
			conn, err := pgx.Connect(t.Context(), h.url(user, "pw"))
			if err != nil {
				t.Fatal(err)
			}
			if got := value(t, conn, "select session_user::text"); got != user {
				t.Errorf("%s is %s there", user, got)
			}
			conn.Close(t.Context())
			if st := h.Stats().Databases[0]; st.Active+st.Idle+st.Connecting > 2 {
				t.Errorf("more than the total: %+v", st)
			}
		}
	}
	pools := h.policy.Load().pools["app"]
	if err := h.Reconnect("app"); err != nil {
		t.Fatal(err)
	}
	await(t, "the books are even", func() bool { return pools.occupied.Load() == 0 })
}

func TestWhoGuessesPasswordsIsTurnedAway(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.Users = map[string]setting.Secret{"ann": "pencil", "bob": "pencil"} }))
	var mu sync.Mutex
	told := map[string]int{}
	var all sync.WaitGroup
	for range 8 {
		_, err := pgx.Connect(t.Context(), h.url("ann", "wrong"))
		refusedWith(t, err, "28P01")
	}
	for range 40 {
		all.Go(func() {
			_, err := pgx.Connect(context.Background(), h.url("ann", "wrong"))
			if e, ok := errors.AsType[*pgconn.PgError](err); ok {
				mu.Lock()
				told[e.Code]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if told["28000"] < 20 {
		t.Errorf("told %v", told)
	}
	conn, err := pgx.Connect(t.Context(), h.url("bob", "pencil")) // another user, from the same address
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
}
