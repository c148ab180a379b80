//go:build pgxsuite

package pooler

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPgxsOwnSuite runs the tests of pgx itself against a PostgreSQL directly and
// through the pooler in both modes, and prints the numbers. It is a measure, not a
// gate, and takes some minutes:
//
//	go test -tags pgxsuite -run PgxsOwnSuite -v -timeout 30m ./pooler
func TestPgxsOwnSuite(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/jackc/pgx/v5").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pgx")
	if err := os.CopyFS(dir, os.DirFS(strings.TrimSpace(string(out)))); err != nil {
		t.Fatal(err)
	}
	s := pg.Start(t)
	if err := s.Exec(t.Context(), "create database pgx_test"); err != nil {
		t.Fatal(err)
	}
	url := s.URLFor(s.User(), s.Password(), "pgx_test")
	psql := exec.Command("psql", "-q", "-X", "-f", filepath.Join(dir, "testsetup", "postgresql_setup.sql"), url)
	if out, err := psql.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	direct := pgxSuite(t, dir, url)
	for _, mode := range []string{modeTransaction, modeSession} {
		cfg := config(database(url, func(d *Database) { d.Mode = mode; d.Pool.Max = 40 }))
		cfg.Databases["pgx_test"] = cfg.Databases["app"]
		h := run(t, cfg)
		through := pgxSuite(t, dir, strings.Replace(h.url(s.User(), ""), "/app", "/pgx_test", 1))
		for name, action := range through {
			if action == "fail" && direct[name] == "pass" {
				t.Logf("%s: fails through the pooler in %s mode", name, mode)
			}
		}
		t.Logf("%s mode: %s; directly: %s", mode, tally(through), tally(direct))
	}
}

// pgxSuite returns how each top-level test ended.
func pgxSuite(t *testing.T, dir, url string) map[string]string {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-mod=mod", "-json", "-count=1", "-timeout", "250s", ".", "./pgconn", "./pgtype", "./pgxpool", "./stdlib")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PGX_TEST_DATABASE="+url, "GOFLAGS=-mod=mod")
	out, _ := cmd.CombinedOutput() // some fail
	ends := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var e struct{ Action, Package, Test string }
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Test != "" && !strings.Contains(e.Test, "/") && slices.Contains([]string{"pass", "fail", "skip"}, e.Action) {
			ends[e.Package+" "+e.Test] = e.Action
		}
	}
	if len(ends) == 0 {
		t.Fatalf("nothing ran:\n%.3000s", out)
	}
	return ends
}

func tally(ends map[string]string) string {
	n := map[string]int{}
	for _, action := range ends {
		n[action]++
	}
	return fmt.Sprintf("%d pass, %d fail, %d skip of %d", n["pass"], n["fail"], n["skip"], len(ends))
}
