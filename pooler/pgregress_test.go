//go:build pgregress && linux

package pooler

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mainstay.dev/mainstay/pooler/pgtest"
)

// TestPostgreSQLsOwnSuite runs PostgreSQL's regression suite directly and through the
// pooler, and prints the numbers. It is a measure, not a gate; bench/pooler/regress.sh
// fetches the suite and starts it. MAINSTAY_WAYS=direct,transaction,session chooses.
func TestPostgreSQLsOwnSuite(t *testing.T) {
	dir := os.Getenv("MAINSTAY_REGRESS")
	if dir == "" {
		t.Skip("MAINSTAY_REGRESS does not name the folder of the suite; run bench/pooler/regress.sh")
	}
	ways := strings.Split(os.Getenv("MAINSTAY_WAYS"), ",")
	if ways[0] == "" {
		ways = []string{"direct", modeTransaction, modeSession}
	}
	var direct map[string]bool
	for _, way := range ways {
		passes := regress(t, dir, way)
		n := 0
		for _, test := range slices.Sorted(maps.Keys(passes)) {
			switch {
			case passes[test]:
				n++
			case direct == nil || direct[test]:
				t.Logf("%s: %s fails", way, test)
			}
		}
		t.Logf("%s: %d of %d pass", way, n, len(passes))
		if way == "direct" {
			direct = passes
		}
	}
}

// regress runs the suite in one way, with a PostgreSQL of its own, and returns which
// tests pass.
func regress(t *testing.T, dir, way string) map[string]bool {
	server, err := pgtest.Open(t.Context(), pgtest.Options{
		Auth: "trust", Database: "regression", Settings: map[string]string{"max_connections": "60", "max_prepared_transactions": "2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	// As pg_regress does with a database that it creates itself.
	for _, set := range []string{"lc_messages = 'C'", "lc_monetary = 'C'", "lc_numeric = 'C'", "lc_time = 'C'", "bytea_output = 'hex'", "timezone_abbreviations = 'Default'"} {
		if err := server.Exec(t.Context(), "alter database regression set "+set); err != nil {
			t.Fatal(err)
		}
	}
	addr := server.Addr()
	if way != "direct" {
		cfg := config(database(server.URL(), func(d *Database) { d.Mode = way; d.Pool.Max = 40 }))
		cfg.Databases["regression"] = cfg.Databases["app"]
		addr = run(t, cfg).addr
	}
	out := filepath.Join(dir, "out", way)
	if err := os.RemoveAll(out); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{out, filepath.Join(out, "testtablespace")} {
		if err := os.MkdirAll(folder, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	who := giveToPostgres(t, out)
	host, port, _ := net.SplitHostPort(addr)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	bin := strings.TrimSpace(output(t, "pg_config", "--bindir"))
	libs := strings.TrimSpace(output(t, "pg_config", "--pkglibdir"))
	schedule := "--schedule=" + filepath.Join(dir, "src", "parallel_schedule")
	args := []string{
		"--use-existing", "--host=" + host, "--port=" + port, "--user=" + server.User(), "--dbname=regression", "--bindir=" + bin,
		"--inputdir=" + filepath.Join(dir, "src"), "--outputdir=" + out, "--dlpath=" + filepath.Join(dir, "lib"), "--max-concurrent-tests=20",
	}
	if tests := os.Getenv("MAINSTAY_TESTS"); tests != "" {
		args = append(args, strings.Fields(tests)...)
	} else {
		args = append(args, schedule)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(libs, "pgxs", "src", "test", "regress", "pg_regress"), args...)
	cmd.Dir, cmd.SysProcAttr = out, &syscall.SysProcAttr{Credential: who, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	told, _ := cmd.CombinedOutput() // some fail
	passes := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^(?:test|    ) +(\w+(?:\.\w+)*) +\.\.\. (ok|FAILED|failed)`).FindAllSubmatch(told, -1) {
		passes[string(m[1])] = string(m[2]) == "ok"
	}
	if len(passes) == 0 {
		t.Fatalf("nothing ran:\n%.3000s", told)
	}
	if err := os.WriteFile(filepath.Join(out, "told"), told, 0o600); err != nil {
		t.Fatal(err)
	}
	return passes
}

// giveToPostgres makes a folder the property of the user whom PostgreSQL runs as, if
// that is another: the suite lets the server write there.
func giveToPostgres(t *testing.T, dir string) *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(account.Uid)
	gid, _ := strconv.Atoi(account.Gid)
	for _, folder := range []string{dir, filepath.Join(dir, "testtablespace")} {
		if err := os.Chown(folder, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func output(t *testing.T, program string, args ...string) string {
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", program, err))
	}
	return string(bytes.TrimSpace(out))
}
