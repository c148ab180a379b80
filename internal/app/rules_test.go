package app

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/telemetry/prom"
)

const rulesDir = "../../examples/prometheus"

// The parts of an expression that name something of ours.
var (
	selected = regexp.MustCompile(`(mainstay_[a-z0-9_]+)(\{[^}]*\})?`)
	matcher  = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"`)
	grouped  = regexp.MustCompile(`\b(?:by|on|without|ignoring) \(([^)]*)\)`)
	shown    = regexp.MustCompile(`\$labels\.([a-z_]+)`)
)

func TestTheAlertingRulesNameWhatThereIs(t *testing.T) {
	labels := map[string][]string{} // by metric, as docs/metrics.md is made
	note := func(table string) {
		for line := range strings.Lines(table) {
			cells := strings.Split(line, " | ")
			if name := strings.Trim(cells[0], "| `\n"); strings.HasPrefix(name, "mainstay_") {
				of := strings.FieldsFunc(cells[2], func(r rune) bool { return strings.ContainsRune("`, –", r) })
				if strings.Contains(cells[1], "histogram") {
					labels[name+"_bucket"] = append(of, "le")
					continue
				}
				labels[name] = of
			}
		}
	}
	note(prom.Reference(append(idle(t).levels(), deploy.Copy{}.Levels("live")...)))
	if len(labels) < 80 || !slices.Contains(labels["mainstay_limits_decisions_total"], "tier") {
		t.Fatalf("%d metrics are known", len(labels))
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile(rulesDir + "/mainstay.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			n++
			known := []string{"instance", "job", "le"} // Prometheus' own
			for _, m := range selected.FindAllStringSubmatch(r.Expr, -1) {
				of, ok := labels[m[1]]
				if !ok {
					t.Errorf("%s: there is no metric %s", r.Alert, m[1])
				}
				known = append(known, of...)
				for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
					if !slices.Contains(of, l[1]) {
						t.Errorf("%s: %s has no label %s", r.Alert, m[1], l[1])
					}
				}
			}
			var named []string
			for _, m := range grouped.FindAllStringSubmatch(r.Expr, -1) {
				named = append(named, strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' })...)
			}
			for _, a := range r.Annotations {
				for _, m := range shown.FindAllStringSubmatch(a, -1) {
					named = append(named, m[1])
				}
			}
			for _, l := range named {
				if !slices.Contains(known, l) {
					t.Errorf("%s: nothing in it has a label %s", r.Alert, l)
				}
			}
			if s := r.Labels["severity"]; s != "page" && s != "ticket" || r.Annotations["summary"] == "" {
				t.Errorf("%s: severity %q, summary %q", r.Alert, s, r.Annotations["summary"])
			}
		}
	}
	if n < 12 {
		t.Errorf("%d rules", n)
	}
}

func TestPrometheusTakesTheAlertingRulesAndTheyFire(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("promtool is missing, and CI may not do without")
		}
		t.Skip("promtool is not installed: apt-get install prometheus")
	}
	for _, args := range [][]string{{"check", "rules", "mainstay.rules.yml"}, {"test", "rules", "mainstay.rules_test.yml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = rulesDir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
