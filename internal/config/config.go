// Package config reads mainstay.yaml into the Config that each part owns. It is
// strict: an unknown key, a wrong type, a value out of range or a setting whose
// feature is not built yet is a mistake, and all mistakes are reported at once,
// each with its place and the mend.
//
// Only app and cmd import it.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/local"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler"
)

// maxFile bounds the file; a real one has a few kilobytes.
const maxFile = 1 << 20

// Config is the whole file. It is read-only once loaded.
type Config struct {
	Service     string         `yaml:"service" doc:"The name in traces, metrics and logs."`
	Environment string         `yaml:"environment" doc:"Where it runs: production, staging, development."`
	Data        string         `yaml:"data" doc:"Folder for state: the app's logs, the admin token, what is running. Absent: $XDG_STATE_HOME/mainstay, or ~/.local/state/mainstay."`
	Redis       setting.Secret `yaml:"redis" doc:"Address of a Redis that several nodes share, as redis://USER:PASSWORD@HOST:PORT; rediss:// with TLS, a further ?addr=HOST:PORT for each node of a Cluster, ?master_set=NAME for Sentinels. Absent: this node counts by itself."`

	App       deploy.Config   `yaml:"app" doc:"The app and how its copies are run."`
	Identity  identity.Config `yaml:"identity" doc:"Who is asking; used by edge, claude and limits."`
	Limits    limits.Config   `yaml:"limits" doc:"Rate limits by tier. Without this section nobody is limited."`
	Edge      edge.Config     `yaml:"edge" doc:"The HTTP plane: the app's public address."`
	Pooler    pooler.Config   `yaml:"pooler" doc:"The PostgreSQL plane: the app's DATABASE_URL. Absent, the DATABASE_URL in Mainstay's own environment is the upstream."`
	Claude    claude.Config   `yaml:"claude" doc:"The Claude plane: the app's ANTHROPIC_BASE_URL. Absent, it is on when ANTHROPIC_BASE_URL, ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN is in Mainstay's own environment."`
	Telemetry Telemetry       `yaml:"telemetry" doc:"Where traces and logs go."`
	Alerts    []Alert         `yaml:"alerts" planned:"alerts" doc:"When somebody must know."`
	Local     local.Config    `yaml:"local" doc:"The door for the app itself: limits/check. Without this section there is none."`
	Admin     admin.Config    `yaml:"admin" doc:"The private door: API, dashboard and metrics."`

	// Source is where it came from: the file's path, or "" without a file.
	Source string `yaml:"-"`
	given  map[string]int
}

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() {
	c.Service, c.Environment = "app", "development"
}

var serviceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)

// Validate reports the mistakes in the file's own keys.
func (c *Config) Validate(ps *setting.Problems) {
	if !serviceName.MatchString(c.Service) {
		ps.Add("service", "must be 1 to 64 of a-z, 0-9, dot, dash and underscore", "try unite-hub")
	}
	if !serviceName.MatchString(c.Environment) {
		ps.Add("environment", "must be 1 to 64 of a-z, 0-9, dot, dash and underscore", "try production")
	}
}

// Given reports whether the file mentions the path, such as "claude".
func (c *Config) Given(path string) bool { _, ok := c.given[path]; return ok }

// Mistakes is what Load returns when the file is wrong: every mistake, each as
// file:line path: what is wrong; the mend.
type Mistakes struct {
	File  string
	Lines []string
	// config is what could be read all the same; nil if it was no YAML.
	config *Config
}

func (m *Mistakes) Error() string { return strings.Join(m.Lines, "\n") }

// Env looks up an environment variable, as os.LookupEnv does.
type Env func(name string) (string, bool)

// Load reads and validates the file at path; an empty path is an empty file.
// A wrong file is a *Mistakes.
func Load(path string, env Env) (*Config, error) {
	if path == "" {
		return Parse(nil, "", env)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, &Mistakes{File: path, Lines: []string{fmt.Sprintf("%s: cannot be read: %v; name another file with -c, or write one", path, errors.Unwrap(err))}}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, &Mistakes{File: path, Lines: []string{fmt.Sprintf("%s: cannot be read: %v", path, err)}}
	}
	if len(text) > maxFile {
		return nil, &Mistakes{File: path, Lines: []string{path + ": is larger than 1 MiB, which no configuration is"}}
	}
	return Parse(text, path, env)
}

// Parse is Load for a text that is in memory; name stands in the messages.
func Parse(text []byte, name string, env Env) (*Config, error) {
	c := new(Config)
	root := reflect.ValueOf(c).Elem()
	setDefaults(root)
	c.Source = name
	d := &decoder{
		expand: expander{lookup: env, dir: filepath.Dir(name)}.expand,
		lines:  map[string]int{},
	}
	if err := d.document(text, root); err != nil {
		return nil, &Mistakes{File: name, Lines: []string{syntaxMistake(name, err)}}
	}
	delete(d.lines, "")
	c.given = d.lines
	found := d.verdict()
	ps := append(found, validate(root, found)...)
	if len(ps) > 0 {
		m := mistakes(name, ps, d.lines)
		m.config = c
		return nil, m
	}
	return c, nil
}

// DataFolder reads from the file at path where Mainstay keeps its state, and
// nothing else: the verbs that talk to a running Mainstay need not have the
// environment that it was started in.
func DataFolder(path string, env Env) (string, error) {
	blank := func(name string) (string, bool) {
		v, _ := env(name)
		return v, true
	}
	c, err := Load(path, blank)
	if m, wrong := errors.AsType[*Mistakes](err); wrong && m.config != nil {
		c, err = m.config, nil
	}
	if err != nil {
		return "", err
	}
	return c.Data, nil
}

// document decodes the one document that text holds.
func (d *decoder) document(text []byte, root reflect.Value) error {
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return err
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return errors.New("holds a second document; one file is one configuration")
	}
	d.value(doc.Content[0], root, "", 0)
	return nil
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

func syntaxMistake(name string, err error) string {
	m := yamlLine.FindStringSubmatch(err.Error())
	switch {
	case m == nil:
		return name + ": " + err.Error()
	case strings.HasPrefix(m[2], "unknown anchor"): // its name may be a secret
		return name + ": refers to an anchor that is nowhere in it; put a value that begins with * in quotes"
	case m[1] == "":
		return name + ": is not YAML: " + m[2]
	}
	return name + ":" + m[1] + " is not YAML: " + m[2]
}

// validate asks every struct for its mistakes. What already failed to decode is
// not judged again.
func validate(v reflect.Value, known setting.Problems) (ps setting.Problems) {
	walk(v, "", func(path string, v reflect.Value) {
		if val, ok := reflect.TypeAssert[interface{ Validate(*setting.Problems) }](v.Addr()); ok {
			var found setting.Problems
			val.Validate(&found)
			ps.Below(path, found)
		}
	})
	judged := map[string]bool{}
	for _, k := range known {
		judged[k.Path] = true
	}
	ps = slices.DeleteFunc(ps, func(p setting.Problem) bool { return judged[p.Path] })
	seen := map[setting.Problem]bool{}
	return slices.DeleteFunc(ps, func(p setting.Problem) bool {
		twice := seen[p]
		seen[p] = true
		return twice
	})
}

// walk visits v and every struct inside it, depth first, parents before children.
func walk(v reflect.Value, path string, visit func(string, reflect.Value)) {
	switch v.Kind() {
	case reflect.Struct:
		visit(path, v)
		for _, f := range fieldsOf(v.Type()) {
			walk(v.FieldByIndex(f.Index), setting.Join(path, keyOf(f)), visit)
		}
	case reflect.Slice:
		for i := range v.Len() {
			walk(v.Index(i), path+"["+strconv.Itoa(i)+"]", visit)
		}
	case reflect.Map:
		for _, k := range sortedKeys(v) {
			elem := reflect.New(v.Type().Elem()).Elem() // a map's element has no address
			elem.Set(v.MapIndex(k))
			walk(elem, setting.Join(path, k.String()), visit)
		}
	}
}

func sortedKeys(m reflect.Value) []reflect.Value {
	keys := m.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	return keys
}

// mistakes orders the problems by line and gives each its place.
func mistakes(name string, ps setting.Problems, lines map[string]int) *Mistakes {
	m := &Mistakes{File: name}
	slices.SortStableFunc(ps, func(a, b setting.Problem) int { return lineOf(a.Path, lines) - lineOf(b.Path, lines) })
	for _, p := range ps {
		place := name
		if n := lineOf(p.Path, lines); n > 0 && name != "" {
			place += ":" + strconv.Itoa(n)
		}
		m.Lines = append(m.Lines, strings.TrimPrefix(place+" "+p.Error(), " "))
	}
	return m
}

// Locate words problems that were found later, such as a port in use, in the way
// the file's own mistakes are.
func (c *Config) Locate(ps setting.Problems) error {
	if len(ps) == 0 {
		return nil
	}
	return mistakes(c.Source, slices.Clone(ps), c.given)
}

// lineOf finds the line of the path or of the nearest part of it that the file
// mentions.
func lineOf(path string, lines map[string]int) int {
	for path != "" {
		if n := lines[path]; n > 0 {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}
