package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/deploy"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"mainstay": main, "app": webApp})
}

// webApp is what the scripts deploy. With CRASH in its environment it ends at once.
func webApp() {
	if os.Getenv("CRASH") != "" {
		fmt.Fprintln(os.Stderr, "cannot find module express")
		os.Exit(3)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getenv("V")) })
	fmt.Fprintln(os.Stderr, http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
	os.Exit(1)
}

// What a person types, what they see and the exit code, in testdata/script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			examples, err := filepath.Abs("../../examples")
			if err != nil {
				return err
			}
			e.Setenv("EXAMPLES", examples)
			e.Setenv("XDG_STATE_HOME", e.WorkDir+"/state")
			for _, name := range []string{"DATABASE_URL", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"} {
				e.Setenv(name, "")
			}
			return nil
		},
	})
}

func TestEveryVerbHasAnExample(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Example == "" && c.Name() != "__complete" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRoot())
}

func TestMainStaysSmall(t *testing.T) {
	b, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n > 40 {
		t.Errorf("main.go has %d lines, more than 40", n)
	}
}

func TestTheLiveViewTellsWhereTheDeployIs(t *testing.T) {
	v := newLive(nil)
	for _, p := range []deploy.Progress{
		{Phase: deploy.Preparing, Target: "green-2", Text: "green-2 is healthy"}, {Phase: deploy.Verifying, Target: "green-2", Text: "smoke /: ok"},
		{Phase: deploy.Watching, Target: "green-2", Text: "is watched for 1m"},
	} {
		v.at, v.target, v.said[p.Phase] = p.Phase, p.Target, p.Text
	}
	v.look(admin.Status{App: deploy.Status{
		Live: &deploy.Copy{ID: "green-2", Share: 90, State: deploy.Healthy}, Old: &deploy.Copy{ID: "blue-1", Share: 10, State: deploy.Healthy},
		Deploying: &deploy.Underway{Evidence: []string{"green: 20 requests, 0 failed"}},
	}})
	want := `deploy of green-2 · 5s
  ✓ preparing  green-2 is healthy
  ✓ warming
  ✓ verifying  smoke /: ok
  ✓ switching
  ● watching   is watched for 1m
    settled
  traffic      green-2 90% (healthy)   blue-1 10% (healthy)
  watch        green: 20 requests, 0 failed`
	if got := strings.Join(v.block(v.began.Add(5*time.Second)), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	v.at, v.said[deploy.RolledBack] = deploy.RolledBack, "it was worse"
	if got := strings.Join(v.block(v.began), "\n"); !strings.Contains(got, "  ✗ rolled_back it was worse") || strings.Contains(got, "✓ settled") {
		t.Errorf("got\n%s", got)
	}
}
