package pooler

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
)

func TestEveryMistakeIsReportedAtOnceWithItsMend(t *testing.T) {
	cfg := config(database("mysql://x", func(d *Database) {
		d.Mode, d.Reset = "statements", "never"
		d.Pool = Pool{Min: 5, Max: 0, AcquireTimeout: -1, Lifetime: -1, Statements: 0}
	}), func(c *Config) {
		c.Listen, c.Auth, c.MaxClients, c.LoginTimeout, c.StallTimeout, c.Drain = "6432", "kerberos", 0, 0, -1, -1
		c.TLS = TLS{Cert: "/no/such/file", Key: "/no/such/file"}
		c.Users = map[string]setting.Secret{"ann": ""}
		c.Databases["empty"] = database("")
	})
	_, err := Compile(cfg)
	got := map[string]bool{}
	for _, p := range setting.Of(err) {
		got[p.Path] = true
		if p.What == "" || p.Mend == "" {
			t.Errorf("%s: what %q, mend %q", p.Path, p.What, p.Mend)
		}
	}
	want := map[string]bool{}
	for _, path := range []string{
		"listen", "users.ann", "auth", "tls", "max_clients", "login_timeout", "stall_timeout", "drain",
		"databases.app.upstream", "databases.app.mode", "databases.app.reset", "databases.app.pool.max",
		"databases.app.pool.acquire_timeout", "databases.app.pool.connect_timeout", "databases.app.pool.idle_timeout",
		"databases.app.pool.lifetime", "databases.app.pool.statements", "databases.empty.upstream",
	} {
		want[path] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestASecretThatNoMachineMadeIsNotCheckedAsOne(t *testing.T) {
	list := filepath.Join(t.TempDir(), "userlist.txt")
	for secret, problems := range map[string]int{"weak": 1, "f6RZ0kVt8u2GkqW3yB9eHdxN": 0, "md5" + strings.Repeat("0", 32): 1} {
		if err := os.WriteFile(list, []byte(fmt.Sprintf("\"ann\" %q\n", secret)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Compile(config(database("postgres://a@b/c"), func(c *Config) { c.Userlist, c.Generated = list, []string{"ann"} }))
		if ps := setting.Of(err); len(ps) != problems || problems > 0 && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", secret, err)
		}
	}
}

func TestANameLeadsToOneDatabase(t *testing.T) {
	cfg := config(database("postgres://a@b/c", func(d *Database) { d.Hosts = []string{"Shop.example.com"} }))
	cfg.Databases["other"] = database("postgres://a@b/c", func(d *Database) { d.Hosts = []string{"shop.example.com"} })
	if _, err := Compile(cfg); err == nil || !strings.Contains(err.Error(), "leads to database") {
		t.Errorf("%v", err)
	}
}

func TestTheDefaultsAreValid(t *testing.T) {
	var cfg Config
	cfg.SetDefaults()
	if _, err := Compile(cfg); err != nil {
		t.Error(err)
	}
	if cfg.Listen != "127.0.0.1:6432" || cfg.Drain != 30*time.Second {
		t.Errorf("%+v", cfg)
	}
	var d Database
	d.SetDefaults()
	if d.Mode != modeTransaction || d.Pool.Min != 2 || d.Pool.Max != 10 || d.Pool.AcquireTimeout != 30*time.Second {
		t.Errorf("%+v", d)
	}
}

func TestASecretThatTheMethodCannotCheckIsAMistake(t *testing.T) {
	verifier := "SCRAM-SHA-256$4096:AAAA$" + strings.Repeat("A", 43) + "=:" + strings.Repeat("A", 43) + "="
	hash := "md5" + strings.Repeat("0", 32)
	for _, c := range []struct {
		auth, secret string
		good         bool
	}{{authSCRAM, verifier, true}, {authSCRAM, hash, false}, {authMD5, hash, true}, {authMD5, verifier, false}, {authSCRAM, "SCRAM-SHA-256$x", false}} {
		cfg := config(database("postgres://a@b/c"), func(cfg *Config) {
			cfg.Auth, cfg.Users = c.auth, map[string]setting.Secret{"ann": setting.Secret(c.secret)}
		})
		if _, err := Compile(cfg); (err == nil) != c.good {
			t.Errorf("%s with %.10s…: %v", c.auth, c.secret, err)
		}
	}
}

func TestNeitherStatsNorConfigShowsASecret(t *testing.T) {
	h := run(t, config(database("postgres://u:hunter2@127.0.0.1:1/x"), func(c *Config) {
		c.Users = map[string]setting.Secret{"ann": "hunter2"}
	}))
	stats, err := json.Marshal(h.Stats())
	if err != nil {
		t.Fatal(err)
	}
	text := string(stats) + fmt.Sprintf("%v %+v %#v", h.cfg, h.cfg, h.cfg)
	if strings.Contains(text, "hunter2") {
		t.Error(text)
	}
	if !strings.Contains(string(stats), `"upstream":"u@127.0.0.1:1/x"`) {
		t.Errorf("stats: %s", stats)
	}
}

func TestEveryCodeHasItsMeaning(t *testing.T) {
	seen := map[Code]bool{}
	for _, m := range Meanings {
		if seen[m.Code] || m.Text == "" || !strings.HasSuffix(m.Text, ".") || m.SQLState != "" && len(m.SQLState) != 5 {
			t.Errorf("%+v", m)
		}
		seen[m.Code] = true
	}
	for state, want := range map[string]Code{
		"23505": SQLError, "40P01": SQLError, "57014": Canceled, "57P01": ServerError, "53100": ServerError, "XX000": ServerError, "58030": ServerError, "": ServerError,
	} {
		if got := codeOf(state); got != want {
			t.Errorf("%s: %s, want %s", state, got, want)
		}
	}
}
