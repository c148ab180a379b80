package pooler

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/hba"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// whoever is a rule for everybody.
func whoever(method string) []hba.Rule {
	return []hba.Rule{{Database: "all", User: "all", From: "all", TLS: "any", Method: method}}
}

// asked opens a connection for a user, and returns it when it has been asked something,
// with the kind of that and its data.
func asked(t *testing.T, h *house, user string) (conn net.Conn, in *pgwire.Reader, kind uint32, data []byte) {
	t.Helper()
	conn = dialRaw(t, h.addr)
	if _, err := conn.Write([]byte(startup("user", user, "database", "app"))); err != nil {
		t.Fatal(err)
	}
	in = pgwire.NewReader(conn, 1<<14)
	typ, body, err := in.Next()
	if err != nil || typ != pgwire.Authentication {
		t.Fatalf("%.20s: %q %.200q, %v", user, typ, body, err)
	}
	return conn, in, binary.BigEndian.Uint32(body), bytes.Clone(body[4:])
}

// Who is asked before others have answered has no guess more than who comes behind them,
// and learns no more from it.
func TestGuessesAtOnceAreNoMoreThanOneByOne(t *testing.T) {
	for lane, rules := range map[string][]hba.Rule{"event loops": nil, "goroutines": whoever(hba.MD5)} {
		h := run(t, config(database(pg.Start(t).URL()), func(c *Config) {
			c.Auth, c.HBA, c.Users = authMD5, rules, map[string]setting.Secret{"ann": "pencil"}
		}))
		ends := make([]func(password string) string, 40)
		for i := range ends {
			conn, in, _, salt := asked(t, h, "ann")
			ends[i] = func(password string) string {
				hash := fmt.Sprintf("%x", md5.Sum([]byte(password+"ann")))
				if _, err := conn.Write([]byte(frame('p', fmt.Sprintf("md5%x\x00", md5.Sum([]byte(hash+string(salt))))))); err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				typ, body, err := in.Next()
				if err != nil || typ != pgwire.ErrorResponse {
					t.Errorf("%s: %q is told %q %q, %v", lane, password, typ, body, err)
					return ""
				}
				return string(pgwire.Field(body, 'C'))
			}
		}
		told := map[string]int{}
		for _, end := range ends[1:] {
			told[end("crayon")]++
		}
		if told["28P01"] > freeForUser+1 || told["28000"] != len(ends)-1-told["28P01"] {
			t.Errorf("%s: told %v", lane, told)
		}
		if got := ends[0]("pencil"); got != "28000" {
			t.Errorf("%s: a right guess among them is told %q", lane, got)
		}
	}
}

// looks counts what is sent on connections on which users are looked up.
type looks struct {
	net.Conn
	asks bool
	n    *atomic.Int64
}

func (c *looks) Write(b []byte) (int, error) {
	if c.asks = c.asks || bytes.Contains(b, []byte("mainstay auth_query")); c.asks {
		c.n.Add(1)
	}
	return c.Conn.Write(b)
}

func TestWhoIsTurnedAwayForGuessingIsNotLookedUp(t *testing.T) {
	var n atomic.Int64
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) { c.AuthQuery.On, c.AuthQuery.Cache = true, 0 }), func(d *Deps) {
		d.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return &looks{Conn: conn, n: &n}, err
		}
	})
	refusedWith(t, enter(t, h, "guessed", "wrong"), "28P01")
	now, key := time.Now(), "127.0.0.1 guessed"
	for range 20 {
		h.guesses.Wrong(key, now)
	}
	for ok := true; ok; { // others have taken all the turns that are worth a wait
		_, ok = h.guesses.Turn(key, freeForUser, now)
	}
	before := n.Load()
	refusedWith(t, enter(t, h, "guessed", "wrong"), "28000")
	if after := n.Load(); before == 0 || after != before {
		t.Errorf("%d messages for the first, %d for one who is turned away", before, after-before)
	}
}

func TestAUserWhoIsNotThereIsAskedWhatOthersAreAsked(t *testing.T) {
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "drop role if exists is_there; create role is_there login password 'pencil'"); err != nil {
		t.Fatal(err)
	}
	verifier, err := s.Value(t.Context(), "select rolpassword from pg_authid where rolname = 'is_there'")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"auth_query":           func(c *Config) { c.AuthQuery.On = true },
		"verifiers":            func(c *Config) { c.Users = map[string]setting.Secret{"is_there": setting.Secret(verifier)} },
		"passwords":            func(c *Config) { c.Users = map[string]setting.Secret{"is_there": "pencil"} },
		"auth, and auth_query": func(c *Config) { c.AuthQuery.On, c.HBA, c.Auth = true, nil, authMD5 },
	} {
		h := run(t, config(database(s.URL()), func(c *Config) { c.HBA = whoever(hba.MD5); change(c) }))
		_, _, there, _ := asked(t, h, "is_there")
		if _, _, not, _ := asked(t, h, "is_not_there"); there != not {
			t.Errorf("%s: asked for %d who is there, and for %d who is not", name, there, not)
		}
	}
}

// Whoever has not proved who it is is neither a client nor a user with queries.
func TestWhoIsNotLoggedInIsNotCounted(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) {
		c.Users, c.Slow.Over = map[string]setting.Secret{"ann": "pencil"}, time.Nanosecond
	}))
	conn, _, _, _ := asked(t, h, "ann")
	if st := h.Stats(); st.Clients != 0 {
		t.Errorf("%d clients, and one that logs in", st.Clients)
	}
	conn.Close()
	refusedWith(t, enter(t, h, "stranger", "wrong"), "28P01")
	if err := enter(t, h, "ann", "pencil"); err != nil {
		t.Fatal(err)
	}
	await(t, "what has been refused is recorded", func() bool { return h.ledger.codes()[string(Denied)] >= 1 })
	top := h.Top(10)
	if len(top.Users) != 2 || top.Users[0].User != "ann" || top.Users[1].Calls != 0 {
		t.Errorf("users: %+v", top.Users)
	}
	if rest := top.Queries[len(top.Queries)-1]; rest.Calls != 0 {
		t.Errorf("logins that were refused are queries: %+v", rest)
	}
}

// libpq asks for encryption before all else, and shows no error that comes in answer to that.
func TestWhoIsTurnedAwayAtTheCapIsToldSo(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL()), func(c *Config) {
		c.MaxClients, c.Users = 1, map[string]setting.Secret{"ann": "pencil"}
	}))
	for range 1 + spare {
		asked(t, h, "ann")
	}
	for _, mode := range []string{"disable", "prefer"} {
		out, err := psql(t, h.url("ann", "pencil", "sslmode="+mode), "select 1")
		if err == nil || !strings.Contains(out, "too many connections are waiting to log in") {
			t.Errorf("sslmode=%s: %s", mode, out)
		}
	}
}

// A name that no role of PostgreSQL can have is neither looked up nor kept, as long as it is.
func TestANameThatIsTooLongForARoleIsNotLookedUp(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), func(d *Database) { d.Pool.OutageWait = 0 }), func(c *Config) { c.AuthQuery.On = true }), func(d *Deps) {
		d.Dial = func(context.Context, string, string) (net.Conn, error) {
			t.Error("PostgreSQL is asked")
			return nil, net.ErrClosed
		}
	})
	name := strings.Repeat("n", 9000)
	conn, in, _, _ := asked(t, h, name)
	if _, err := conn.Write([]byte(frame('p', "SCRAM-SHA-256\x00\x00\x00\x00\x11n,,n=,r=123456789"))); err != nil {
		t.Fatal(err)
	}
	if typ, body, err := in.Next(); err != nil || typ != pgwire.Authentication {
		t.Fatalf("%q %.200q, %v", typ, body, err)
	}
	if _, err := conn.Write([]byte(frame('p', "c=biws,r=1,p=eA=="))); err != nil {
		t.Fatal(err)
	}
	if got := lastWords(t, in); got != "28P01" {
		t.Errorf("SQLSTATE %q", got)
	}
	s := session{raw: conn, conn: conn}
	for _, g := range s.guesses(name) {
		if len(g.of) > 300 {
			t.Errorf("wrong passwords are counted under %d bytes", len(g.of))
		}
	}
}
