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

// Resolve adds to c what the environment tells: a file that says nothing of a
// plane leaves the upstream to the variables that the app itself would have read.
// A command given on the command line goes before app.run.
func Resolve(c *config.Config, command deploy.Command, env config.Env) (*Resolved, error) {
	r := &Resolved{Config: *c}
	var ps setting.Problems
	if len(command) > 0 {
		r.App.Run = command
	}
	if r.Data == "" {
		r.Data = defaultData(env)
	}
	if !filepath.IsAbs(r.Data) {
		abs, err := filepath.Abs(r.Data)
		if err != nil {
			ps.Add("data", "cannot be made absolute: "+err.Error(), "write an absolute path")
		}
		r.Data = abs
	}
	r.resolveDatabase(env, &ps)
	r.resolveClaude(env, &ps)
	return r, c.Locate(ps)
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

func (r *Resolved) resolveClaude(env config.Env, ps *setting.Problems) {
	if r.Given("claude") {
		r.ClaudeOn = true
		return
	}
	for _, name := range claudeVariables {
		v, ok := env(name)
		if !ok || v == "" {
			continue
		}
		r.ClaudeOn, r.ClaudeFromEnv = true, true
		if name != "ANTHROPIC_BASE_URL" {
			return
		}
		r.Claude.Upstream = v
		var found setting.Problems
		r.Claude.Validate(&found)
		for _, p := range found {
			if p.Path == "upstream" {
				ps.Add("", "ANTHROPIC_BASE_URL in the environment "+p.What, p.Mend)
			}
		}
		return
	}
}
