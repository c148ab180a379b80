package pooler

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// A halting connection does something before each write.
type halting struct {
	net.Conn
	before func(write int, conn net.Conn) error
	writes int
}

func (c *halting) Write(p []byte) (int, error) {
	c.writes++
	if err := c.before(c.writes, c.Conn); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// withUser is a pooler with the user ann, whose password is right.
func withUser(t *testing.T, change ...func(*Config)) *house {
	t.Helper()
	return run(t, config(database(pg.Start(t).URL()), append(change, func(c *Config) { c.Users = map[string]setting.Secret{"ann": "right"} })...))
}

// enterHalting logs ann in over a connection that halts.
func enterHalting(h *house, password string, before func(write int, conn net.Conn) error) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(h.url("ann", password))
	if err != nil {
		return nil, err
	}
	c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &halting{Conn: conn, before: before}, err
	}
	return pgx.ConnectConfig(context.Background(), c)
}

// Without this nobody would notice if each login with a password took a goroutine.
func TestALoginThatWaitsForItsClientHasNoGoroutine(t *testing.T) {
	h := withUser(t)
	for _, password := range []string{"right", "wrong"} {
		conn, err := enterHalting(h, password, func(write int, _ net.Conn) error {
			if write != 2 && write != 3 { // its answers
				return nil
			}
			await(t, "the pooler waits for the answer", func() bool { return len(h.places()) == 1 })
			if at := h.places()[0]; at != proving {
				t.Errorf("%s, before write %d: at %d", password, write, at)
			}
			return nil
		})
		isIn(t, h, password, conn, err)
	}
}

// isIn checks that the right password, and no other, has let its client in.
func isIn(t *testing.T, h *house, password string, conn *pgx.Conn, err error) {
	t.Helper()
	if password == "wrong" {
		refusedWith(t, err, "28P01")
	} else if err != nil {
		t.Fatal(err)
	} else {
		value(t, conn, "select 'in'")
		conn.Close(t.Context())
	}
	await(t, "the client is gone", func() bool { return h.Stats().Clients == 0 })
}

// places are where sessions stand.
func (h *house) places() (all []place) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		s.lane.Lock()
		all = append(all, s.at)
		s.lane.Unlock()
	}
	return all
}

func TestAClientMayTakeItsTimeToProveItsPassword(t *testing.T) {
	h := withUser(t)
	for name, slow := range map[string]int{"the first answer": 2, "the last answer": 3} {
		t.Run(name, func(t *testing.T) {
			for _, password := range []string{"right", "wrong"} {
				conn, err := enterHalting(h, password, func(write int, _ net.Conn) error {
					if write == slow {
						await(t, "it has a goroutine", func() bool { return h.goroutines() == 1 })
					}
					return nil
				})
				isIn(t, h, password, conn, err)
			}
		})
	}
	t.Run("too much of it", func(t *testing.T) {
		h := withUser(t, func(c *Config) { c.LoginTimeout = 1500 * time.Millisecond })
		conn := dialRaw(t, h.addr)
		if _, err := conn.Write([]byte(startup("user", "ann", "database", "app"))); err != nil {
			t.Fatal(err)
		}
		if got := lastWords(t, pgwire.NewReader(conn, 1<<16)); got != "28P01" {
			t.Errorf("SQLSTATE %q", got)
		}
	})
}

func TestALoginMayNotTakeLongerInSumThanItMay(t *testing.T) {
	h := withUser(t, func(c *Config) { c.LoginTimeout = time.Second })
	_, err := enterHalting(h, "right", func(write int, _ net.Conn) error {
		if write > 1 {
			time.Sleep(700 * time.Millisecond)
		}
		return nil
	})
	refusedWith(t, err, "28P01")
}

func TestAnAnswerMayComeInPieces(t *testing.T) {
	h := withUser(t)
	c, err := pgx.ParseConfig(h.url("ann", "right"))
	if err != nil {
		t.Fatal(err)
	}
	c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return pieces{conn}, err
	}
	conn, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	value(t, conn, "select 'in'")
	conn.Close(t.Context())
}

// pieces is a connection that writes two bytes at a time.
type pieces struct{ net.Conn }

func (c pieces) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = c.Conn.Write(p[n:min(n+2, len(p))])
		n += k
		time.Sleep(200 * time.Microsecond)
	}
	return n, err
}

func TestWhoIsAskedForAPasswordAndSaysSomethingElse(t *testing.T) {
	h := withUser(t)
	for name, c := range map[string]struct{ send, want string }{
		"a query":            {string(pgwire.AppendQuery(nil, "select 1")), "08P01"},
		"a length too short": {"p\x00\x00\x00\x03", "08P01"},
		"a length too long":  {"p\x7f\xff\xff\xff", "08P01"},
		"no SCRAM":           {string(pgwire.Append(nil, pgwire.Password, []byte("right\x00"))), "08P01"},
		"the end":            {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialRaw(t, h.addr)
			if _, err := conn.Write([]byte(startup("user", "ann", "database", "app"))); err != nil {
				t.Fatal(err)
			}
			in := pgwire.NewReader(conn, 1<<16)
			if typ, _, err := in.Next(); typ != pgwire.Authentication || err != nil {
				t.Fatalf("%c %v", typ, err)
			}
			if _, err := conn.Write([]byte(c.send)); err != nil {
				t.Fatal(err)
			}
			if c.send == "" {
				conn.Close()
			} else if got := lastWords(t, in); got != c.want {
				t.Errorf("SQLSTATE %q, want %s", got, c.want)
			}
			await(t, "the client is gone", func() bool { return h.Stats().Clients == 0 })
		})
	}
}

// Who exists is not to be told from what is answered before the password is known.
func TestALongAnswerTellsNothingOfTheUser(t *testing.T) {
	h := withUser(t, func(c *Config) {
		d := c.Databases["app"]
		d.Tenant = "acme"
		c.Databases["app"] = d
	})
	for _, user := range []string{"ann", "eve", "ann.acme", "eve.acme"} {
		for size, want := range map[int]string{9_000: "R", 20_000: "08P01"} {
			first := "n,,n=,r=" + strings.Repeat("n", size)
			conn := dialRaw(t, h.addr)
			if _, err := conn.Write([]byte(startup("user", user, "database", "app") +
				string(pgwire.Append(nil, pgwire.Password, []byte("SCRAM-SHA-256\x00"), binary.BigEndian.AppendUint32(nil, uint32(len(first))), []byte(first))))); err != nil {
				t.Fatal(err)
			}
			in, got := pgwire.NewReader(conn, 1<<16), ""
			for range 2 {
				typ, body, err := in.Next()
				if err != nil {
					t.Fatal(err)
				}
				if got = string(typ); typ == pgwire.ErrorResponse {
					got = string(pgwire.Field(body, 'C'))
				}
			}
			if got != want {
				t.Errorf("%s, %d bytes: %s, want %s", user, size, got, want)
			}
			conn.Close()
		}
	}
}

func TestAStopTellsWhoIsProvingItsPassword(t *testing.T) {
	h := withUser(t)
	conn := dialRaw(t, h.addr)
	if _, err := conn.Write([]byte(startup("user", "ann", "database", "app"))); err != nil {
		t.Fatal(err)
	}
	in := pgwire.NewReader(conn, 1<<16)
	if typ, _, err := in.Next(); typ != pgwire.Authentication || err != nil {
		t.Fatalf("%c %v", typ, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.stop() }()
	if got := lastWords(t, in); got != "57P01" {
		t.Errorf("SQLSTATE %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
