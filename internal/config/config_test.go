package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
)

var update = flag.Bool("update", false, "write the generated pages")

func env(pairs ...string) Env {
	return func(name string) (string, bool) {
		for i := 0; i+1 < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func parse(t *testing.T, text string, pairs ...string) (*Config, error) {
	t.Helper()
	return Parse([]byte(text), "mainstay.yaml", env(pairs...))
}

func lines(t *testing.T, err error) []string {
	t.Helper()
	m, ok := errors.AsType[*Mistakes](err)
	if !ok {
		t.Fatalf("got %v, want mistakes", err)
	}
	return m.Lines
}

func TestAnEmptyFileIsAllDefaults(t *testing.T) {
	c, err := parse(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Edge.Listen != ":8080" || c.Edge.Drain != 30*time.Second || c.Service != "app" || c.Given("edge") {
		t.Errorf("got %+v", c.Edge)
	}
}

func TestAbsentMeansDefaultAndZeroMeansZero(t *testing.T) {
	c, err := parse(t, "edge: {max_body: 0, timeouts: {read: 5s}}\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.Edge.Body != 0 || c.Edge.Timeouts.Read != 5*time.Second || c.Edge.Timeouts.Write != 30*time.Second {
		t.Errorf("got %+v", c.Edge)
	}
}

func TestReferencesAreExpandedInsideValues(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pw"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Parse([]byte(`
service: ${NAME}-${SUFFIX:-web}
environment: "${EMPTY:-staging}"
edge: {drain: "${DRAIN}", listen: "file:listen"}
pooler: {users: {app: "file:pw"}, databases: {app: {upstream: "${DB}"}}}
telemetry: {headers: {x: "$${literal}"}}
`), filepath.Join(dir, "m.yaml"), env("NAME", "shop", "EMPTY", "", "DRAIN", "7s", "DB", "postgres://u:p@h/d"))
	if err == nil {
		t.Fatal("a missing file: reference was accepted")
	}
	if got := lines(t, err); len(got) != 1 || !strings.Contains(got[0], "m.yaml:4 edge.listen: the file it refers to cannot be read") {
		t.Fatalf("got %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "listen"), []byte(":9"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Parse([]byte(`
service: ${NAME}-${SUFFIX:-web}
environment: "${EMPTY:-staging}"
edge: {drain: "${DRAIN}", listen: "file:listen"}
pooler: {users: {app: "file:pw"}, databases: {app: {upstream: "${DB}"}}}
telemetry: {headers: {x: "$${literal}"}}
`), filepath.Join(dir, "m.yaml"), env("NAME", "shop", "EMPTY", "", "DRAIN", "7s", "DB", "postgres://u:p@h/d"))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Service, c.Environment, c.Edge.Drain.String(), c.Edge.Listen, c.Pooler.Users["app"].Reveal(), c.Telemetry.Headers["x"].Reveal()}
	if want := []string{"shop-web", "staging", "7s", ":9", "s3cret", "${literal}"}; !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

func TestAllMistakesAreReportedAtOnceEachWithItsPlaceAndTheMend(t *testing.T) {
	_, err := parse(t, `service: Unite Hub
edge:
  lisen: ":80"
  drain: soon
  max_body: [1]
  timeouts:
    read: -1s
    dial: 0s
pooler:
  databases:
    app: {upstream: "postgres://u@h/d"}
    app: {upstream: "postgres://u@h/e"}
claude: true
environment: ${NOWHERE}
telemetry: {logs: {level: loud, format: true}}
alerts: []
admin: {listen: 1}
`)
	got := lines(t, err)
	for _, want := range []string{
		`mainstay.yaml:1 service: must be 1 to 64 of a-z, 0-9, dot, dash and underscore; try unite-hub`,
		`mainstay.yaml:3 edge.lisen: unknown key; did you mean listen?`,
		`mainstay.yaml:4 edge.drain: "soon" is not a length of time; write it as 250ms, 30s, 5m or 14d`,
		`mainstay.yaml:5 edge.max_body: is a list where a size such as 32MB is expected`,
		`mainstay.yaml:7 edge.timeouts.read: "-1s" is not a length of time; write it as 250ms, 30s, 5m or 14d`,
		`mainstay.yaml:8 edge.timeouts.dial: must be positive; try 5s`,
		`mainstay.yaml:12 pooler.databases.app: is given twice, first in line 11; rename or remove one`,
		`mainstay.yaml:13 claude: is true or false where a group of settings is expected; write it as key: value lines`,
		`mainstay.yaml:14 environment: the environment variable NOWHERE is not set; set it, or give a default: ${NOWHERE:-…}`,
		`mainstay.yaml:15 telemetry.logs.format: is true or false where text is expected; put it in quotes: "true"`,
		`mainstay.yaml:15 telemetry.logs.level: must be one of debug, info, warn, error; try debug`,
		`mainstay.yaml:16 alerts: not built yet: alerts; remove it`,
		`mainstay.yaml:17 admin.listen: is a number where text is expected; put it in quotes: "1"`,
	} {
		found := false
		for _, l := range got {
			found = found || l == want
		}
		if !found {
			t.Errorf("missing: %s", want)
		}
	}
	if len(got) != 13 {
		t.Errorf("%d mistakes, want 13:\n%s", len(got), strings.Join(got, "\n"))
	}
}

func TestTextThatIsNotYAMLIsNamedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"edge:\n  listen: [\n":           "mainstay.yaml:",
		"a: 1\n---\nb: 2\n":              "holds a second document",
		"- a\n":                          "is a list where a group of settings is expected",
		"edge: &a {timeouts: *a}\n":      "",
		"x: &x [*x]\n":                   "",
		"<<: {service: a}\n":             "a merge key",
		"? [a]\n: b\n":                   "a key that is not text",
		"service: \"\\xff\"\n":           "",
		strings.Repeat("[", 20000):       "",
		"edge: {timeouts: {read: {}}}\n": "is a group of settings where a length of time such as 30s is expected",
	} {
		_, err := parse(t, text)
		if err == nil {
			t.Errorf("%.30q was accepted", text)
			continue
		}
		if got := strings.Join(lines(t, err), "\n"); !strings.Contains(got, want) {
			t.Errorf("%.30q: got %s", text, got)
		}
	}
}

// The example in the design is the whole schema; what it asks for and does not
// exist yet is named, and nothing else is wrong with it.
func TestTheWholeSchemaParsesAndWhatIsNotBuiltIsNamed(t *testing.T) {
	text, err := os.ReadFile("testdata/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(text, "design.yaml", env("SUPABASE_JWKS_URL", "https://x", "CF_ZONE", "z", "CF_TOKEN", "t", "POOLER_PASSWORD", "pw",
		"DATABASE_URL", "postgres://u:p@h:5432/d"))
	m, ok := errors.AsType[*Mistakes](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	var paths []string
	for _, l := range m.Lines {
		_, rest, _ := strings.Cut(l, " ")
		path, what, _ := strings.Cut(rest, ": ")
		if !strings.Contains(what, notBuilt) {
			t.Errorf("a mistake of another kind: %s", l)
		}
		paths = append(paths, path)
	}
	t.Log("not built yet: ", strings.Join(paths, ", "))
	for _, must := range []string{"alerts"} {
		if !strings.Contains(strings.Join(paths, " "), must) {
			t.Errorf("%s is not named", must)
		}
	}
}

func TestTheFileThatShipsIsValid(t *testing.T) {
	if _, err := Load("../../mainstay.yaml", env("DATABASE_URL", "postgres://u:p@h:5432/d")); err != nil {
		t.Error(err)
	}
}

func TestNoSecretIsPrinted(t *testing.T) {
	c, err := parse(t, `
pooler: {users: {app: hunter2}, databases: {app: {upstream: "postgres://u:hunter2@h/d"}}}
telemetry: {headers: {key: hunter2}}
`)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "hunter2") || !strings.Contains(string(b), setting.Masked) {
		t.Errorf("printed:\n%s", b)
	}
	if _, err := Parse(b, "again.yaml", env()); err != nil {
		for _, l := range lines(t, err) {
			if !strings.Contains(l, "upstream") { // (secret) is no address
				t.Errorf("what is printed is not accepted: %s", l)
			}
		}
	}
}

// A bad value that came out of a reference may be a secret.
func TestAWrongValueFromAReferenceIsNotRepeated(t *testing.T) {
	_, err := parse(t, "edge: {drain: \"${DRAIN}\"}\n", "DRAIN", "hunter2")
	if got := strings.Join(lines(t, err), "\n"); strings.Contains(got, "hunter2") || !strings.Contains(got, "${DRAIN}") {
		t.Errorf("got %s", got)
	}
}

// A verb that only wants to find the running Mainstay must not need its secrets.
func TestTheDataFolderIsFoundWithoutTheRestOfTheEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.yaml")
	text := "data: ${WHERE}/x\npooler: {databases: {app: {upstream: \"${DATABASE_URL}\"}}}\nnonsense: 1\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if dir, err := DataFolder(path, env("WHERE", "/srv")); err != nil || dir != "/srv/x" {
		t.Errorf("got %q, %v", dir, err)
	}
	if err := os.WriteFile(path, []byte("["), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := DataFolder(path, env()); err == nil {
		t.Error("a broken file was accepted")
	}
}

func TestEveryKeyIsDocumented(t *testing.T) {
	var visit func(reflect.Type, string)
	visit = func(rt reflect.Type, path string) {
		switch rt.Kind() {
		case reflect.Map, reflect.Slice:
			visit(rt.Elem(), path+"[]")
		case reflect.Struct:
			for f := range rt.Fields() {
				if f.IsExported() && f.Tag.Get("yaml") == "" {
					t.Errorf("%s.%s has no key", path, f.Name)
				}
			}
			for _, f := range fieldsOf(rt) {
				at := setting.Join(path, keyOf(f))
				if doc := f.Tag.Get("doc"); !strings.HasSuffix(doc, ".") {
					t.Errorf("%s: its doc is no sentence: %q", at, doc)
				}
				visit(f.Type, at)
			}
		}
	}
	visit(reflect.TypeFor[Config](), "")
}

func TestTheGeneratedPagesAreCurrent(t *testing.T) {
	schema, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"../../docs/configuration.md":     Reference(),
		"../../docs/mainstay.schema.json": string(schema) + "\n",
	} {
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("%s is not what the code says (%v); run make docs", path, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	design, _ := os.ReadFile("testdata/design.yaml")
	f.Add(string(design))
	f.Add("edge: {drain: ${X:-}}")
	f.Add("a: &a {b: *a}")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse([]byte(text), "f.yaml", env("X", "1"))
		if err != nil {
			if m, ok := errors.AsType[*Mistakes](err); !ok || len(m.Lines) == 0 {
				t.Fatalf("a wrong file without a mistake: %v", err)
			}
			return
		}
		if _, err := c.YAML(); err != nil {
			t.Fatal(err)
		}
	})
}
