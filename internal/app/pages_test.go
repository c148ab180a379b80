package app

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/config"
	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/pooler"
	"mainstay.dev/mainstay/telemetry"
	"mainstay.dev/mainstay/telemetry/prom"
)

var update = flag.Bool("update", false, "write the generated pages")

func TestTheGeneratedPagesAreCurrent(t *testing.T) {
	for path, want := range map[string]string{
		"../../docs/metrics.md": metricsPage(t),
		"../../docs/codes.md":   codesPage(),
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

// metricsPage lists every metric, the levels of a wired App included.
func metricsPage(t *testing.T) string {
	return "# Metrics\n\nGenerated from the code by `make docs`; do not edit.\n\n" + prom.Reference(append(idle(t).levels(), deploy.Copy{}.Levels("live")...))
}

// idle is an App with all planes on that is never run.
func idle(t *testing.T) *App {
	t.Helper()
	text := fmt.Sprintf(`data: %s
edge: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0"}
claude: {listen: "127.0.0.1:0"}
limits: {}
local: {listen: "127.0.0.1:0"}
redis: "redis://127.0.0.1:1"
telemetry: {export: "http://127.0.0.1:1"}
pooler: {listen: "127.0.0.1:0", databases: {app: {upstream: "postgres://u:p@127.0.0.1:1/d?sslmode=disable"}}}
`, t.TempDir())
	a, err := New(Options{
		Load:    func() (*config.Config, error) { return config.Parse([]byte(text), "m.yaml", lookup(nil)) },
		Command: deploy.Command{"true"}, Version: "test", Logs: io.Discard, Out: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a
}

func codesPage() string {
	var b strings.Builder
	b.WriteString("# Codes\n\nHow a request, a query or a call ended. The same word stands in the `Mainstay-Code` header of answers that are\n" +
		"Mainstay's own, in the metric label `code`, in the log line and on the span. *Blame* names the side that broke; error\n" +
		"rates count `mainstay` and `upstream`. Generated from the code by `make docs`; do not edit.\n")
	plane := func(name, extra string, rows func(row func(code, extra string, blame telemetry.Blame, text string))) {
		column := func(s string) string {
			if extra == "" {
				return ""
			}
			return " " + s + " |"
		}
		fmt.Fprintf(&b, "\n## %s\n\n| code |%s blame | meaning |\n|---|%s---|---|\n", name, column(extra), strings.TrimSpace(column("---")))
		rows(func(code, value string, blame telemetry.Blame, text string) {
			if value == "" || value == "0" {
				value = "–"
			}
			fmt.Fprintf(&b, "| `%s` |%s %s | %s |\n", code, column(value), blame, text)
		})
	}
	plane("edge", "status", func(row func(string, string, telemetry.Blame, string)) {
		for _, m := range edge.Meanings {
			row(string(m.Code), fmt.Sprint(m.Status), m.Blame, m.Text)
		}
	})
	plane("pooler", "SQLSTATE", func(row func(string, string, telemetry.Blame, string)) {
		for _, m := range pooler.Meanings {
			row(string(m.Code), m.SQLState, m.Blame, m.Text)
		}
	})
	plane("claude", "", func(row func(string, string, telemetry.Blame, string)) {
		for _, m := range claude.Meanings {
			row(string(m.Code), "", m.Blame, m.Text)
		}
	})
	return b.String()
}
