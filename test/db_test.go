package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mainstay.dev/mainstay/pooler/pgtest"
)

func TestThePoolerIsSteeredFromTheCommandLine(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	p := ports(t, 1)[0]
	m := setup(t, fmt.Sprintf("pooler: {listen: \"127.0.0.1:%d\", users: {ann: pencil}, databases: {app: {upstream: %q}}}\n", p, pg.URL())).start(filepath.Join(bin, "testapp"))
	u := url.URL{Scheme: "postgres", Host: fmt.Sprintf("127.0.0.1:%d", p), Path: "/app", User: url.UserPassword("ann", "pencil"), RawQuery: "sslmode=disable&application_name=report"}
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "begin"); err != nil {
		t.Fatal(err)
	}
	if code, out := m.verb("db", "top"); code != 0 || !strings.Contains(out, "FINGERPRINT") || !strings.Contains(out, "begin") || !strings.Contains(out, "ann") {
		t.Errorf("%d %s", code, out)
	}
	if code, out := m.verb("db", "pools"); code != 0 || !strings.Contains(out, "transaction") || strings.Contains(out, pg.Password()) {
		t.Errorf("%d %s", code, out)
	}
	code, out := m.verb("db", "clients")
	if code != 0 || !strings.Contains(out, "report") || !strings.Contains(out, "idle in transaction") {
		t.Errorf("%d %s", code, out)
	}
	code, out = m.verb("db", "clients", "--json")
	var clients []struct {
		ID   uint32
		User string
	}
	if err := json.Unmarshal([]byte(out), &clients); err != nil || code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	if code, out = m.verb("db", "pause", "--within", "50ms", "app"); code != 1 || !strings.Contains(out, `1 connections of database "app" are still in use`) {
		t.Errorf("%d %s", code, out)
	}
	if code, out = m.verb("db", "pools"); code != 0 || !strings.Contains(out, "paused") {
		t.Errorf("%d %s", code, out)
	}
	if _, err := conn.Exec(t.Context(), "commit"); err != nil {
		t.Error(err)
	}
	if code, out = m.verb("db", "pause", "app"); code != 0 || out != "done\n" {
		t.Errorf("%d %s", code, out)
	}
	if err := pg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"resume", "reconnect"} {
		if code, out = m.verb("db", verb); code != 0 || out != "done\n" {
			t.Errorf("%s: %d %s", verb, code, out)
		}
	}
	if _, err := conn.Exec(t.Context(), "select 1"); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	for _, c := range clients {
		if c.User != "ann" {
			continue
		}
		if code, out = m.verb("db", "kill", fmt.Sprint(c.ID), "--why", "enough"); code != 0 || out != "1 ended\n" {
			t.Errorf("%d %s", code, out)
		}
	}
	if _, err := conn.Exec(t.Context(), "select 1"); err == nil || !strings.Contains(err.Error(), "an administrator ended it: enough") {
		t.Errorf("the one that was ended: %v", err)
	}
	if code, out = m.verb("db", "resume", "nowhere"); code != 1 || !strings.Contains(out, `database "nowhere"`) {
		t.Errorf("%d %s", code, out)
	}
}
