package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

func TestAURLIsReadAsLibpqReadsIt(t *testing.T) {
	for raw, want := range map[string]Target{
		"postgres://ann:p%40w@db.example.com:6543/app?sslmode=require&connect_timeout=7": {
			Hosts: []Host{{"tcp", "db.example.com:6543", "db.example.com"}}, User: "ann", password: "p@w",
			Database: "app", SSL: Require, ConnectTimeout: 7 * time.Second,
		},
		"postgresql://ann@[::1]": {Hosts: []Host{{"tcp", "[::1]:5432", "::1"}}, User: "ann", Database: "ann", SSL: Prefer},
		"postgres:///app?host=/run/postgresql&port=5433&user=ann&password=x+y": {
			Hosts: []Host{{"unix", "/run/postgresql/.s.PGSQL.5433", "/run/postgresql"}}, User: "ann", password: "x+y", Database: "app", SSL: Disable,
		},
		"postgres://ann@h/app?schema=public&pgbouncer=true&connection_limit=5&application_name=web&statement_timeout=5s": {
			Hosts: []Host{{"tcp", "h:5432", "h"}}, User: "ann", Database: "app", SSL: Prefer,
			Settings: []pgwire.Param{{Name: "application_name", Value: "web"}, {Name: "statement_timeout", Value: "5s"}},
		},
		"postgres://ann:p,w@a:5433,[::1],%2Fsock:7/app?target_session_attrs=read-write&load_balance_hosts=random&channel_binding=require": {
			Hosts: []Host{{"tcp", "a:5433", "a"}, {"tcp", "[::1]:5432", "::1"}, {"unix", "/sock/.s.PGSQL.7", "/sock"}}, User: "ann", password: "p,w",
			Database: "app", SSL: Prefer, Shuffle: true, Wants: "read-write", Binding: "require",
		},
		"postgres://ann@/app?host=a,b&port=1,2&sslnegotiation=direct&sslmode=require": {
			Hosts: []Host{{"tcp", "a:1", "a"}, {"tcp", "b:2", "b"}}, User: "ann", Database: "app", SSL: Require, Direct: true,
		},
		"postgres://ann@h/app?sslmode=no-verify": {Hosts: []Host{{"tcp", "h:5432", "h"}}, User: "ann", Database: "app", SSL: Require},
	} {
		got, err := Parse(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if diff := cmp.Diff(want, *got, cmp.AllowUnexported(Target{})); diff != "" {
			t.Errorf("%s: %s", raw, diff)
		}
	}
}

func TestAMistakeInAURLIsNamedWithoutThePassword(t *testing.T) {
	for raw, want := range map[string]string{
		"mysql://a:hunter2@h/db":                           "postgres://",
		"host=h user=a password=hunter2":                   "postgres://",
		"postgres://a:hunter2@h:port/db":                   "port",
		"postgres://a:hunter2@h:0/db":                      "port",
		"postgres://:hunter2@h/db":                         "user",
		"postgres://a:hunter2@h/db?sslmode=maybe":          "sslmode",
		"postgres://a:hunter2@h/db?connect_timeout=soon":   "connect_timeout",
		"postgres://a:hunter2@h1,h2,h3/db?port=1,2":        "3 hosts and 2 ports",
		"postgres://a:hunter2@h/db?sslnegotiation=direct":  "sslmode=require",
		"postgres://a:hunter2@h/db?channel_binding=x":      "channel_binding",
		"postgres://a:hunter2@h/db?target_session_attrs=x": "target_session_attrs",
		"postgres://a:hunter2@h/db?sslrootcert=/no/file":   "sslrootcert",
		"postgres://a:hunter2@h/db?sslcert=/no/file":       "sslcert",
		"postgres://a:hunter2@h/db?replication=database":   "replication",
		"postgres://a:hunter2@h/db?x=%00":                  "cannot be used",
		"postgres://a:hun%ter2@h/db":                       "not a URL",
		"postgres://a:hunter2@h/db?require_auth=ldap":      "require_auth",
		"postgres://a:hunter2@h/db?require_auth=md5,!none": "require_auth",
		"postgres://a:hunter2@h/db?gssencmode=require":     "gssencmode",

		"postgres://a:hunter2@h/db?ssl_min_protocol_version=2":                                        "ssl_min_protocol_version",
		"postgres://a:hunter2@h/db?ssl_max_protocol_version=TLSv1.1":                                  "ssl_max_protocol_version",
		"postgres://a:hunter2@h/db?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2": "ssl_min_protocol_version",
	} {
		_, err := Parse(raw)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want it to name %q and not the password", raw, err, want)
		}
	}
}

func TestTheServerAsksForNoOtherMethodThanRequired(t *testing.T) {
	ok := message('R', "\x00\x00\x00\x00") + message('Z', "I")
	md5, clear, nothing := message('R', "\x00\x00\x00\x05salt")+ok, message('R', "\x00\x00\x00\x03")+ok, ok
	for _, c := range []struct {
		require, answer string
		in              bool
	}{
		{"", md5, true}, {"md5", md5, true}, {"password,md5", md5, true}, {"!password", md5, true}, {"scram-sha-256", md5, false}, {"!md5", md5, false},
		{"none", md5, false}, {"password", clear, true}, {"scram-sha-256", clear, false}, {"!password,!none", clear, false},
		{"none", nothing, true}, {"scram-sha-256", nothing, false}, {"!none", nothing, false}, {"none,md5", nothing, true},
		{"md5", message('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"), false},
	} {
		dial, _ := several(t, map[string]string{"localhost:5432": c.answer})
		target, err := Parse("postgres://ann:pw@localhost/db?sslmode=disable&require_auth=" + url.QueryEscape(c.require))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := target.Connect(t.Context(), dial)
		if (err == nil) != c.in || err != nil && !strings.Contains(err.Error(), "require_auth") {
			t.Errorf("%s, %q: %v", c.require, c.answer, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

func TestVersionsOfTLSAreObeyed(t *testing.T) {
	for query, want := range map[string][2]uint16{
		"": {tls.VersionTLS12, 0}, "&ssl_min_protocol_version=TLSv1.3": {tls.VersionTLS13, 0}, "&ssl_min_protocol_version=TLSv1": {tls.VersionTLS12, 0},
		"&ssl_max_protocol_version=TLSv1.2": {tls.VersionTLS12, tls.VersionTLS12},
	} {
		target, err := Parse("postgres://ann@h/db?sslmode=require" + query)
		if err != nil {
			t.Fatal(err)
		}
		if cfg := target.tlsConfig(target.Hosts[0]); cfg.MinVersion != want[0] || cfg.MaxVersion != want[1] {
			t.Errorf("%s: %#x to %#x", query, cfg.MinVersion, cfg.MaxVersion)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("postgres://ann:pw@h:5432/db?sslmode=require&options=-c%20x%3D1")
	f.Add("postgres:///?host=/tmp&user=u")
	f.Fuzz(func(t *testing.T, raw string) {
		if strings.Contains(raw, "sslrootcert") || strings.Contains(raw, "sslcert") || strings.Contains(raw, "sslkey") {
			return // names files
		}
		target, err := Parse(raw)
		if err != nil {
			return
		}
		if target.User == "" || target.Database == "" || len(target.Hosts) == 0 || strings.ContainsRune(target.User+target.Database, 0) {
			t.Fatalf("%q: %+v", raw, target)
		}
		packet := pgwire.AppendStartup(nil, append([]pgwire.Param{{Name: "user", Value: target.User}}, target.Settings...))
		if start, err := pgwire.ParseStartup(packet[4:]); err != nil || start.Parameters[0].Value != target.User {
			t.Fatalf("%q makes a startup packet that cannot be read: %v", raw, err)
		}
	})
}

// script plays a server that answers the startup packet with fixed bytes.
func script(t *testing.T, answer string) (*Target, Dial) {
	t.Helper()
	target, err := Parse("postgres://ann:pw@h/db?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	return target, func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			if _, err := pgwire.NewReader(theirs, 1<<14).ReadStartup(); err != nil {
				return
			}
			go io.Copy(io.Discard, theirs)
			_, _ = io.WriteString(theirs, answer)
		}()
		return ours, nil
	}
}

func message(typ byte, body string) string { return string(pgwire.Append(nil, typ, []byte(body))) }

func TestAServerThatDoesNotKeepToTheProtocolIsRefused(t *testing.T) {
	ready, ok := message('Z', "I"), message('R', "\x00\x00\x00\x00")
	for name, answer := range map[string]string{
		"nothing":                       "",
		"ready without authentication":  ready,
		"an unknown method":             message('R', "\x00\x00\x00\x07"),
		"a short request":               message('R', "\x00"),
		"md5 without salt":              message('R', "\x00\x00\x00\x05\x01"),
		"SCRAM that was never begun":    message('R', "\x00\x00\x00\x0bx"),
		"no mechanism we know":          message('R', "\x00\x00\x00\x0aX-OAUTH\x00\x00"),
		"PLUS without TLS":              message('R', "\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00\x00"),
		"SCRAM and no proof":            message('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00") + ok + ready,
		"a short key":                   ok + message('K', "x"),
		"a parameter without end":       ok + message('S', "x"),
		"a password in the clear":       message('R', "\x00\x00\x00\x03"),
		"an unknown message":            ok + message('!', ""),
		"a length of 4 GB":              "R\xff\xff\xff\xff",
		"a message longer than a login": "R\x00\x10\x00\x00",
	} {
		target, dial := script(t, answer)
		if c, err := target.Connect(t.Context(), dial); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "pw") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARefusalKeepsItsSQLStateAndItsHope(t *testing.T) {
	for state, passing := range map[string]bool{"57P03": true, "53300": true, "28P01": false, "3D000": false} {
		target, dial := script(t, message('E', "SFATAL\x00C"+state+"\x00Mno\x00\x00"))
		_, err := target.Connect(t.Context(), dial)
		refused, ok := errors.AsType[*Refused](err)
		if !ok || refused.SQLState != state || Passing(err) != passing {
			t.Errorf("%s: %v, passing %v", state, err, Passing(err))
		}
	}
	if !Passing(errors.New("connection refused")) {
		t.Error("a dial error does not pass")
	}
}

func TestALoginEndsWithItsContext(t *testing.T) {
	target, dial := script(t, message('R', "\x00\x00\x00\x00")) // and never ready
	ctx, cancel := context.WithCancelCause(t.Context())
	because := errors.New("enough")
	cancel(because)
	if _, err := target.Connect(ctx, dial); err == nil {
		t.Error("logged in")
	}
}

// several plays servers by name: each answers the startup packet with fixed bytes;
// one that is not there cannot be dialed.
func several(t *testing.T, answers map[string]string) (dial Dial, tried func() string) {
	t.Helper()
	var mu sync.Mutex
	var order []string
	return func(_ context.Context, _, address string) (net.Conn, error) {
			mu.Lock()
			order = append(order, address)
			mu.Unlock()
			answer, ok := answers[address]
			if !ok {
				return nil, errors.New("connection refused")
			}
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				if _, err := pgwire.NewReader(theirs, 1<<14).ReadStartup(); err != nil {
					return
				}
				left := make(chan struct{})
				go func() { _, _ = io.Copy(io.Discard, theirs); close(left) }()
				_, _ = io.WriteString(theirs, answer)
				<-left // a pipe that closes takes the deadline of the other end with it
			}()
			return ours, nil
		}, func() string {
			mu.Lock()
			defer mu.Unlock()
			return strings.Join(order, " ")
		}
}

func TestOfSeveralHostsTheFirstThatSuitsIsTaken(t *testing.T) {
	report := func(standby string) string {
		return message('R', "\x00\x00\x00\x00") + message('S', "in_hot_standby\x00"+standby+"\x00") + message('S', "default_transaction_read_only\x00off\x00") +
			message('K', "\x00\x00\x00\x01key!") + message('Z', "I")
	}
	dial, tried := several(t, map[string]string{"b:5432": report("on"), "c:5432": report("off"), "d:5432": report("off")})
	for want, url := range map[string]string{
		"b:5432": "postgres://u@a,b,c,d/x?sslmode=disable",
		"c:5432": "postgres://u@a,b,c,d/x?sslmode=disable&target_session_attrs=read-write",
		"d:5432": "postgres://u@d,b/x?sslmode=disable&target_session_attrs=primary",
	} {
		target, err := Parse(url)
		if err != nil {
			t.Fatal(err)
		}
		c, err := target.Connect(t.Context(), dial)
		if err != nil || c.Host.Address != want {
			t.Fatalf("%s: %v, %v, tried %s", url, c, err, tried())
		}
		c.Close()
	}
	target, err := Parse("postgres://u@a,c/x?sslmode=disable&target_session_attrs=standby")
	if err != nil {
		t.Fatal(err)
	}
	_, err = target.Connect(t.Context(), dial)
	if err == nil || !strings.Contains(err.Error(), "dial a:5432: connection refused") || !strings.Contains(err.Error(), "c:5432 is not standby") || !Passing(err) {
		t.Errorf("none suits: %v", err)
	}
}

func TestAClientsChoicesGoBeforeTheURLs(t *testing.T) {
	target, err := Parse("postgres://u@h/d?application_name=url&statement_timeout=5s")
	if err != nil {
		t.Fatal(err)
	}
	before := slices.Clone(target.Settings)
	got := target.Choosing([]pgwire.Param{{Name: "application_name", Value: "client"}, {Name: "datestyle", Value: "German"}})
	want := []pgwire.Param{{Name: "statement_timeout", Value: "5s"}, {Name: "application_name", Value: "client"}, {Name: "datestyle", Value: "German"}}
	if !slices.Equal(got.Settings, want) || !slices.Equal(target.Settings, before) {
		t.Errorf("%v; %v", got.Settings, target.Settings)
	}
}
