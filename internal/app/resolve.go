package app

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mainstay.dev/mainstay/internal/config"
	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler"
)

// Claude's own environment variables, as the official clients read them.
var claudeVariables = []string{"ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"}

// Resolved is a configuration with what the environment and the command line add,
// and which planes are on.
type Resolved struct {
	config.Config
	// Database is the one that the app's DATABASE_URL leads to; empty if the
	// pooler is off.
	Database string
	// ClaudeOn tells that the Claude plane runs.
	ClaudeOn bool
	// DatabaseFromEnv and ClaudeFromEnv tell that the environment and not the
	// file named the upstream.
	DatabaseFromEnv, ClaudeFromEnv bool
}

// PoolerOn tells that the pooler runs.
func (r *Resolved) PoolerOn() bool { return r.Database != "" }

// LimitsOn tells that callers are limited.
func (r *Resolved) LimitsOn() bool { return r.Given("limits") }

// LocalOn tells that there is a door for the app.
func (r *Resolved) LocalOn() bool { return r.Given("local") }

// Resolve adds to c what the environment tells: a file that says nothing of a
// plane leaves the upstream to the variables that the app itself would have read.
// A command given on the command line goes before app.run.
func Resolve(c *config.Config, command deploy.Command, env config.Env) (*Resolved, error) {
	r := &Resolved{Config: *c}
	var ps setting.Problems
	if len(command) > 0 {
		r.App.Run = command
	}
	data, err := DataFolder(r.Data, env)
	if err != nil {
		ps.Add("data", err.Error(), "write an absolute path")
	}
	r.Data = data
	r.resolveDatabase(env, &ps)
	r.resolveClaude(env, &ps)
	return r, c.Locate(ps)
}

// DataFolder is the folder for state when the file says given, which may be empty.
func DataFolder(given string, env config.Env) (string, error) {
	if given == "" {
		given = defaultData(env)
	}
	abs, err := filepath.Abs(given)
	if err != nil {
		return "", fmt.Errorf("cannot be made absolute: %w", err)
	}
	return abs, nil
}

// defaultData is where state goes when the file does not say, after the XDG base
// directory specification.
func defaultData(env config.Env) string {
	if dir, ok := env("XDG_STATE_HOME"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, "mainstay")
	}
	if home, ok := env("HOME"); ok && home != "" {
		return filepath.Join(home, ".local", "state", "mainstay")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("mainstay-%d", os.Getuid()))
}

func (r *Resolved) resolveDatabase(env config.Env, ps *setting.Problems) {
	fromEnv, ok := env("DATABASE_URL")
	if len(r.Pooler.Databases) > 0 {
		r.Database = mainDatabase(r.Pooler.Databases, fromEnv, r.Service)
		return
	}
	if !ok || fromEnv == "" {
		return
	}
	db := pooler.Database{}
	db.SetDefaults()
	db.Upstream = setting.Secret(fromEnv)
	name := databaseName(fromEnv)
	var found setting.Problems
	if db.Validate(&found); len(found) > 0 {
		for _, p := range found {
			ps.Add("", "DATABASE_URL in the environment "+p.What, p.Mend)
		}
		return
	}
	r.Pooler.Databases = map[string]pooler.Database{name: db}
	r.Database, r.DatabaseFromEnv = name, true
}

// mainDatabase picks the database that DATABASE_URL leads to when there are
// several: the one with the environment's own upstream, else the one named after
// the service, else the one named app, else the first by name.
func mainDatabase(dbs map[string]pooler.Database, fromEnv, service string) string {
	var names []string
	for name, db := range dbs {
		if fromEnv != "" && db.Upstream.Reveal() == fromEnv {
			return name
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for _, want := range []string{service, "app"} {
		if slices.Contains(names, want) {
			return want
		}
	}
	return names[0]
}

// databaseName is the name a URL gives, or app.
func databaseName(raw string) string {
	if u, err := url.Parse(raw); err == nil {
		if name := strings.Trim(u.Path, "/"); name != "" {
			return name
		}
	}
	return "app"
}

// resolveClaude switches the plane on if the file has its section, or if the app
// would have called Claude: it has a key or a base URL.
func (r *Resolved) resolveClaude(env config.Env, ps *setting.Problems) {
	r.ClaudeOn = r.Given("claude")
	for _, name := range claudeVariables {
		if v, ok := env(name); ok && v != "" && !r.ClaudeOn {
			r.ClaudeOn, r.ClaudeFromEnv = true, true
		}
	}
	base, ok := env("ANTHROPIC_BASE_URL")
	if !ok || base == "" || r.Given("claude.upstream") {
		return
	}
	r.Claude.Upstream = base
	var found setting.Problems
	r.Claude.Validate(&found)
	for _, p := range found {
		if p.Path == "upstream" {
			ps.Add("", "ANTHROPIC_BASE_URL in the environment "+p.What, p.Mend)
		}
	}
}
