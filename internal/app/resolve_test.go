package app

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mainstay.dev/mainstay/internal/config"
	"mainstay.dev/mainstay/internal/deploy"
)

func resolve(t *testing.T, file string, environ ...string) (*Resolved, error) {
	t.Helper()
	env := lookup(environ)
	c, err := config.Parse([]byte(file), "mainstay.yaml", env)
	if err != nil {
		t.Fatal(err)
	}
	return Resolve(c, deploy.Command{"npm", "start"}, env)
}

func TestTheEnvironmentFillsWhatTheFileLeavesOut(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		environ    []string
		database   string
		claude     string // the upstream; empty: off
	}{
		{"nothing is given: both are off", "", nil, "", ""},
		{"DATABASE_URL is the upstream", "", []string{"DATABASE_URL=postgres://u:p@h/shop?sslmode=require"}, "shop", ""},
		{"a URL without a name", "", []string{"DATABASE_URL=postgres://u:p@h"}, "app", ""},
		{"the file's database wins", "pooler: {databases: {main: {upstream: \"postgres://u:p@h/x\"}}}", []string{"DATABASE_URL=postgres://u:p@h/shop"}, "main", ""},
		{"of several, the environment's own", "pooler: {databases: {a: {upstream: \"postgres://u:p@h/x\"}, b: {upstream: \"postgres://u:p@h/y\"}}}", []string{"DATABASE_URL=postgres://u:p@h/y"}, "b", ""},
		{"of several, the one named after the service", "service: b\npooler: {databases: {a: {upstream: \"postgres://u:p@h/x\"}, b: {upstream: \"postgres://u:p@h/y\"}}}", nil, "b", ""},
		{"a key switches Claude on", "", []string{"ANTHROPIC_API_KEY=k"}, "", "https://api.anthropic.com"},
		{"a base URL is the upstream", "", []string{"ANTHROPIC_BASE_URL=http://127.0.0.1:1", "ANTHROPIC_API_KEY=k"}, "", "http://127.0.0.1:1"},
		{"a section without an upstream leaves it to the environment", "claude: {drain: 5s}", []string{"ANTHROPIC_BASE_URL=http://127.0.0.1:1"}, "", "http://127.0.0.1:1"},
		{"the section switches Claude on and wins", "claude: {upstream: \"https://other.example\"}", []string{"ANTHROPIC_BASE_URL=http://127.0.0.1:1"}, "", "https://other.example"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := resolve(t, tc.file, tc.environ...)
			if err != nil {
				t.Fatal(err)
			}
			upstream := ""
			if r.ClaudeOn {
				upstream = r.Claude.Upstream
			}
			if r.Database != tc.database || upstream != tc.claude {
				t.Errorf("database %q, claude %q; want %q, %q", r.Database, upstream, tc.database, tc.claude)
			}
			if r.App.Run.String() != "npm start" || !filepath.IsAbs(r.Data) {
				t.Errorf("run %q, data %q", r.App.Run, r.Data)
			}
		})
	}
}

func TestABadUpstreamInTheEnvironmentIsNamedAsSuchWithoutItsSecret(t *testing.T) {
	_, err := resolve(t, "", "DATABASE_URL=mysql://root:hunter2@h/d", "ANTHROPIC_BASE_URL=ftp://user:hunter2@x")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"DATABASE_URL in the environment", "ANTHROPIC_BASE_URL in the environment"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret is shown:\n%v", err)
	}
}

func TestAColorGetsAddressesThatLeadToThePlanes(t *testing.T) {
	creds, err := loadCredentials(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e := environment{
		base:    []string{"PATH=/bin", "DATABASE_URL=original", "ANTHROPIC_BASE_URL=original", "OTEL_RESOURCE_ATTRIBUTES=team=a"},
		service: "shop", environment: "test", database: "main",
		upstream:   "postgres://root:hunter2@db.example:5432/main?sslmode=verify-full&sslrootcert=/ca.pem&schema=public&connection_limit=5",
		poolerAddr: "127.0.0.1:6432", claudeAddr: "127.0.0.1:8700", creds: creds,
	}
	env, err := e.of("green")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(getenv(env, "DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}
	pw, _ := u.User.Password()
	if u.User.Username() != "green" || pw != creds["green"].Reveal() || pw == creds["blue"].Reveal() || len(pw) < 26 || u.Host != "127.0.0.1:6432" || u.Path != "/main" ||
		u.RawQuery != "connection_limit=5&schema=public&sslmode=disable" {
		t.Errorf("DATABASE_URL leads to %s with %s", u.Host+u.Path, u.RawQuery)
	}
	for name, want := range map[string]string{
		"PATH": "/bin", "OTEL_SERVICE_NAME": "shop", "ANTHROPIC_BASE_URL": "http://127.0.0.1:8700/@green",
		"OTEL_RESOURCE_ATTRIBUTES": "team=a,deployment.environment.name=test,mainstay.color=green",
	} {
		if got := getenv(env, name); got != want {
			t.Errorf("%s=%q, want %q", name, got, want)
		}
	}
	if strings.Contains(strings.Join(env, " "), "hunter2") {
		t.Error("the upstream's password reached the app")
	}
	if e.base[1] != "DATABASE_URL=original" {
		t.Error("Mainstay's own environment was changed")
	}
}

func TestCredentialsOutliveARestartAndAreNobodyElsesToRead(t *testing.T) {
	dir := t.TempDir()
	first, err := loadCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := loadCredentials(dir)
	if err != nil || second["blue"] != first["blue"] || second["green"] != first["green"] {
		t.Errorf("%v; the secrets changed", err)
	}
	info, err := os.Stat(filepath.Join(dir, "credentials.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "credentials.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadCredentials(dir); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestWhatIsShownOfAnUpstreamHoldsNoSecret(t *testing.T) {
	for in, want := range map[string]string{
		"postgres://u:hunter2@db:5432/shop?password=hunter2": "db:5432/shop",
		"https://user:hunter2@api.example/v1?key=hunter2":    "https://api.example/v1",
		"host=db password=hunter2":                           "an address that cannot be shown",
	} {
		if got := withoutSecrets(in); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
