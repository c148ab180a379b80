package pooler

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// refusedWith checks that err is PostgreSQL's own kind of error with this SQLSTATE.
func refusedWith(t testing.TB, err error, sqlstate string) *pgconn.PgError {
	t.Helper()
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || e.Code != sqlstate {
		t.Fatalf("got %v, want SQLSTATE %s", err, sqlstate)
	}
	return e
}

func TestAUserLogsInWithTheRightPasswordOnly(t *testing.T) {
	for _, auth := range []string{authSCRAM, authMD5} {
		t.Run(auth, func(t *testing.T) {
			h := run(t, config(database(pg.Start(t).URL()), func(c *Config) {
				c.Auth, c.Users = auth, map[string]setting.Secret{"ann": "right", "bob": "pässwörd"}
			}))
			for _, user := range [][2]string{{"ann", "right"}, {"bob", "pässwörd"}} {
				conn, err := pgx.Connect(t.Context(), h.url(user[0], user[1]))
				if err != nil {
					t.Fatal(err)
				}
				if got := value(t, conn, "select 'in'"); got != "in" {
					t.Error(got)
				}
				conn.Close(t.Context())
			}
			for _, user := range [][2]string{{"ann", "wrong"}, {"ann", ""}, {"eve", "right"}, {"bob", "right"}} {
				_, err := pgx.Connect(t.Context(), h.url(user[0], user[1]))
				refusedWith(t, err, "28P01")
			}
			await(t, "the refusals are recorded", func() bool { return h.ledger.codes()[string(Denied)] == 4 })
		})
	}
}

func TestWithoutUsersThisMachineIsTrusted(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL())))
	if got := value(t, h.connect(t), "select 'in'"); got != "in" {
		t.Error(got)
	}
	var ps setting.Problems
	cfg := config(database("postgres://a@b/c"), func(c *Config) { c.Listen = ":6432" })
	cfg.Validate(&ps)
	if len(ps) != 1 || ps[0].Path != "listen" {
		t.Errorf("open to the world without users: %v", ps)
	}
}

func TestAColorsGrantOpensItsDatabaseAndMarksItsQueries(t *testing.T) {
	cfg := config(database(pg.Start(t).URL()))
	cfg.Databases["other"] = database(pg.Start(t).URL())
	h := run(t, cfg, func(d *Deps) {
		d.Grants = []Grant{{User: "blue", Secret: "generated-secret-1", Database: "app", Color: "blue"}, {User: "green", Secret: "generated-secret-2", Database: "app", Color: "green"}}
	})
	for _, extra := range []string{"application_name=x", "extra_float_digits=1"} { // quick and full check
		conn, err := pgx.Connect(t.Context(), h.url("green", "generated-secret-2", extra))
		if err != nil {
			t.Fatal(err)
		}
		value(t, conn, "select 'x'", pgx.QueryExecModeSimpleProtocol)
		conn.Close(t.Context())
	}
	for _, x := range h.ledger.all() {
		if x.Color != "green" || x.Caller != "green" || x.Route != "app" {
			t.Errorf("%+v", x)
		}
	}
	_, err := pgx.Connect(t.Context(), h.url("green", "generated-secret-1"))
	refusedWith(t, err, "28P01")
	_, err = pgx.Connect(t.Context(), strings.Replace(h.url("green", "generated-secret-2"), "/app", "/other", 1))
	refusedWith(t, err, "28000")
}

func TestAnUnknownDatabaseIsRefused(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL())))
	_, err := pgx.Connect(t.Context(), strings.Replace(h.url("ann", ""), "/app", "/nowhere", 1))
	refusedWith(t, err, "3D000")
}

func TestTLSIsOfferedWithACertificate(t *testing.T) {
	s := pg.Start(t)
	dir := filepath.Dir(s.CAFile())
	h := run(t, config(database(s.URL()), func(c *Config) {
		c.TLS = TLS{Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key"), Require: true}
		c.Users = map[string]setting.Secret{"ann": "pw"}
	}))
	url := h.url("ann", "pw", "sslmode=verify-full", "sslrootcert="+s.CAFile())
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, ok := conn.PgConn().Conn().(*tls.Conn); !ok {
		t.Error("not encrypted")
	}
	big := strings.Repeat("t", 300_000)
	if got := value(t, conn, "select $1::text", big); got != big {
		t.Errorf("%d bytes came back", len(got))
	}
	_, err = pgx.Connect(t.Context(), h.url("ann", "pw"))
	refusedWith(t, err, "28000")
}

func TestTLSTowardsTheServerFollowsSSLMode(t *testing.T) {
	s := pg.Start(t)
	base := strings.TrimSuffix(s.URL(), "sslmode=disable")
	encrypted := "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()"
	other := filepath.Join(t.TempDir(), "other.crt")
	writeOtherAuthority(t, other)
	for _, c := range []struct {
		params string
		want   string // "true", "false", or the SQLSTATE of the refusal
	}{
		{"sslmode=disable", "false"}, {"sslmode=allow", "false"}, {"sslmode=prefer", "true"}, {"", "true"},
		{"sslmode=require", "true"}, {"sslmode=verify-ca&sslrootcert=" + s.CAFile(), "true"},
		{"sslmode=verify-full&sslrootcert=" + s.CAFile(), "true"},
		{"sslmode=verify-ca&sslrootcert=" + other, "08001"}, {"sslmode=verify-full&sslrootcert=" + other, "08001"},
		{"sslmode=require&sslrootcert=" + other, "08001"}, {"sslmode=verify-full", "08001"},
	} {
		t.Run(c.params, func(t *testing.T) {
			h := run(t, config(database(base+c.params)))
			conn, err := pgx.Connect(t.Context(), h.url("ann", ""))
			if len(c.want) == 5 && c.want != "false" {
				refusedWith(t, err, c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			if got := value(t, conn, encrypted); got != c.want {
				t.Errorf("encrypted: %s", got)
			}
		})
	}
}

func TestTheServersOwnAuthenticationIsAnswered(t *testing.T) {
	s := pgStartWithMethods(t)
	for _, user := range []string{"u_scram", "u_md5", "u_plain", "u_trust"} {
		t.Run(user, func(t *testing.T) {
			h := run(t, config(database(s.URLFor(user, "pw of "+user, "postgres"))))
			if got := value(t, h.connect(t), "select current_user::text"); got != user {
				t.Errorf("logged in as %s", got)
			}
			if user == "u_trust" {
				return
			}
			wrong := run(t, config(database(s.URLFor(user, "wrong", "postgres"))))
			_, err := pgx.Connect(t.Context(), wrong.url("ann", ""))
			e := refusedWith(t, err, "08001")
			if !strings.Contains(e.Message, "28P01") || strings.Contains(e.Message, "wrong") {
				t.Errorf("message %q", e.Message)
			}
		})
	}
}

// dialRaw opens a connection without logging in.
func dialRaw(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// lastWords reads messages until the connection ends, and returns the SQLSTATE of
// the last error.
func lastWords(t testing.TB, in *pgwire.Reader) string {
	t.Helper()
	state := ""
	for {
		typ, body, err := in.Next()
		if err != nil {
			return state
		}
		if typ == pgwire.ErrorResponse {
			state = string(pgwire.Field(body, 'C'))
		}
	}
}

func TestWhatIsNoLoginIsRefusedInPostgreSQLsWords(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.LoginTimeout = 300 * time.Millisecond }))
	for name, c := range map[string]struct {
		send string
		want string
	}{
		"HTTP":              {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "08P01"},
		"protocol 2":        {"\x00\x00\x00\x08\x00\x02\x00\x00", "0A000"},
		"no user":           {"\x00\x00\x00\x09\x00\x03\x00\x00\x00", "28000"},
		"no terminator":     {"\x00\x00\x00\x0d\x00\x03\x00\x00user\x00", "08P01"},
		"too long":          {"\x7f\xff\xff\xff\x00\x03\x00\x00", "08P01"},
		"zero length":       {"\x00\x00\x00\x00", "08P01"},
		"endless SSL":       {strings.Repeat("\x00\x00\x00\x08\x04\xd2\x16\x2f", 4), "08P01"},
		"replication":       {startup("user", "ann", "database", "app", "replication", "database"), "0A000"},
		"silence":           {"", "28P01"},
		"a bad parameter":   {startup("user", "ann", "database", "app", "no such thing;", "x"), "42704"},
		"a bad value":       {startup("user", "ann", "database", "app", "datestyle", "nonsense"), "22023"},
		"a bad option":      {startup("user", "ann", "database", "app", "options", "-c nonsense"), "0A000"},
		"an unknown option": {startup("user", "ann", "database", "app", "options", "-c no_such_thing=1"), "42704"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialRaw(t, h.addr)
			if _, err := conn.Write([]byte(c.send)); err != nil {
				t.Fatal(err)
			}
			in := pgwire.NewReader(conn, 1<<16)
			if name == "endless SSL" {
				for range 3 {
					if _, err := conn.Read(make([]byte, 1)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got := lastWords(t, in); got != c.want {
				t.Errorf("SQLSTATE %q, want %s", got, c.want)
			}
		})
	}
}

// startup builds a startup packet of protocol 3.0.
func startup(params ...string) string {
	var list []pgwire.Param
	for i := 0; i < len(params); i += 2 {
		list = append(list, pgwire.Param{Name: params[i], Value: params[i+1]})
	}
	return string(pgwire.AppendStartup(nil, list))
}

func TestANewerProtocolIsNegotiatedDown(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL())))
	for _, minor := range []byte{2, 0x0f} {
		conn := dialRaw(t, h.addr)
		packet := []byte(startup("user", "ann", "database", "app", "_pq_.test_protocol_negotiation", "1"))
		packet[6], packet[7] = minor&0x08, minor // 3.2, and a version that will never be
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
		in := pgwire.NewReader(conn, 1<<16)
		typ, body, err := in.Next()
		if err != nil || typ != pgwire.NegotiateProto || !strings.Contains(string(body), "_pq_.test_protocol_negotiation") {
			t.Fatalf("%c %q %v", typ, body, err)
		}
		for typ != pgwire.ReadyForQuery {
			if typ, _, err = in.Next(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestTooManyClientsAreTurnedAway(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.MaxClients = 2 }))
	first, second := h.connect(t), h.connect(t)
	_, err := pgx.Connect(t.Context(), h.url("ann", ""))
	refusedWith(t, err, "53300")
	value(t, second, "select 'x'")
	first.Close(context.Background())
	await(t, "a place is free", func() bool { return h.Stats().Clients < 2 })
	value(t, h.connect(t), "select 'x'")
}

func TestWhoeverFindsTooManyLoggingInIsToldSo(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.MaxClients = 1 }))
	for range 1 + spare {
		conn, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{0}); err != nil { // no more of its first packet
			t.Fatal(err)
		}
	}
	await(t, "all are there", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.sessions) == 1+spare
	})
	for range 20 {
		_, err := pgx.Connect(t.Context(), h.url("ann", ""))
		if e := refusedWith(t, err, "53300"); !strings.Contains(e.Message, "waiting to log in") {
			t.Error(e.Message)
		}
	}
}

func TestAClientIsToldWhatTheServerIsLike(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()+"&application_name=default_app")))
	direct, err := pgx.Connect(t.Context(), pg.Start(t).URL()+"&application_name=mine&datestyle=German&timezone=Asia/Tokyo")
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(t.Context())
	ours := h.connect(t, "application_name=mine", "datestyle=German", "timezone=Asia/Tokyo")
	for _, name := range []string{
		"server_version", "server_encoding", "client_encoding", "application_name", "DateStyle", "IntervalStyle",
		"TimeZone", "integer_datetimes", "standard_conforming_strings", "is_superuser", "session_authorization",
	} {
		if a, b := direct.PgConn().ParameterStatus(name), ours.PgConn().ParameterStatus(name); a != b {
			t.Errorf("%s: %q, through the pooler %q", name, a, b)
		}
	}
	if ours.PgConn().PID() == 0 {
		t.Error("no cancel key")
	}
}

func writeOtherAuthority(t testing.TB, path string) {
	t.Helper()
	// A real authority that signed nothing here.
	pem := `-----BEGIN CERTIFICATE-----
MIIBtjCCAVugAwIBAgITBmyf1XSXNmY/Owua2eiedgPySjAKBggqhkjOPQQDAjA5
MQswCQYDVQQGEwJVUzEPMA0GA1UEChMGQW1hem9uMRkwFwYDVQQDExBBbWF6b24g
Um9vdCBDQSAzMB4XDTE1MDUyNjAwMDAwMFoXDTQwMDUyNjAwMDAwMFowOTELMAkG
A1UEBhMCVVMxDzANBgNVBAoTBkFtYXpvbjEZMBcGA1UEAxMQQW1hem9uIFJvb3Qg
Q0EgMzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCmXp8ZBf8ANm+gBG1bG8lKl
ui2yEujSLtf6ycXYqm0fc4E7O5hrOXwzpcVOho6AF2hiRVd9RFgdszflZwjrZt6j
QjBAMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgGGMB0GA1UdDgQWBBSr
ttvXBp43rDCGB5Fwx5zEGbF4wDAKBggqhkjOPQQDAgNJADBGAiEA4IWSoxe3jfkr
BqWTrBqYaGFy+uGh0PsceGCmQ5nFuMQCIQCcAu/xlJyzlvnrxir4tiz+OpAUFteM
YyRIHN8wfdVoOw==
-----END CERTIFICATE-----
`
	if err := os.WriteFile(path, []byte(pem), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What one user sees of a changed table makes the statements of all users new.
func TestATableThatChangesRenewsTheStatementsOfAllUsers(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists self_owner, self_other; create role self_owner superuser login password 'pencil'; create role self_other superuser login password 'pencil'; drop table if exists public.altered; create table public.altered (v int)"); err != nil {
		t.Fatal(err)
	}
	h := run(t, config(database(s.URL(), func(d *Database) { d.Login, d.Pool.Max = loginClient, 1 }), func(c *Config) { c.AuthQuery.On = true }))
	dial := func(user string) *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), h.url(user, "pencil"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
		return conn
	}
	owner, other := dial("self_owner"), dial("self_other")
	do(t, other, "select 1", simple)
	for _, change := range []struct {
		to string
		by func(sql string)
	}{
		{"int4", func(string) {}},
		{"text", func(sql string) { do(t, owner, sql, simple) }},
		{"bool", func(sql string) {
			if err := s.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
			h.policy.Load().pools["app"].hidden.next.Store(0)
			do(t, owner, "select 1", simple)
			do(t, owner, "select 1", simple) // behind the look
		}},
	} {
		change.by("drop table public.altered; create table public.altered (v " + change.to + ")")
		d, err := other.Prepare(t.Context(), "insert", "insert into public.altered values ($1)")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := other.TypeMap().TypeForOID(d.ParamOIDs[0]); got == nil || got.Name != change.to {
			t.Errorf("%s: the parameter is %v", change.to, got)
		}
		if err := other.Deallocate(t.Context(), "insert"); err != nil {
			t.Fatal(err)
		}
	}
}
