package pgtest

import (
	"context"
	"crypto/tls"
	"errors"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

var pg = Shared{Options: Options{Database: "app", TLS: true}}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := pg.Stop(); err != nil {
		panic(err)
	}
	os.Exit(code)
}

func TestAServerAnswersAsItsSuperuserOverTCPAndSocket(t *testing.T) {
	s := pg.Start(t)
	got, err := s.Value(t.Context(), "select current_user || ' ' || current_database()")
	if err != nil || got != "postgres app" {
		t.Fatalf("got %q, %v", got, err)
	}
	socket := "host=" + s.Socket() + " port=" + strconv.Itoa(s.Port()) + " user=postgres password=" + s.Password()
	conn, err := pgconn.Connect(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAWrongPasswordIsRefused(t *testing.T) {
	s := pg.Start(t)
	_, err := pgconn.Connect(t.Context(), s.URLFor("postgres", "wrong", "app"))
	if refused, ok := errors.AsType[*pgconn.PgError](err); !ok || refused.Code != "28P01" {
		t.Fatalf("got %v, want 28P01", err)
	}
}

func TestItsCertificateIsSignedByItsAuthority(t *testing.T) {
	s := pg.Start(t)
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {s.CAFile()}}.Encode()
	conn, err := pgconn.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if state := conn.Conn().(*tls.Conn).ConnectionState(); len(state.VerifiedChains) == 0 {
		t.Fatalf("not verified: %v", state.PeerCertificates)
	}
}

func TestDataOutlivesAKillAndARestart(t *testing.T) {
	s := Start(t, Options{Settings: map[string]string{"work_mem": "7MB"}})
	ctx := t.Context()
	if err := s.Exec(ctx, "create table t as select generate_series(1, 10) n"); err != nil {
		t.Fatal(err)
	}
	addr := s.Addr()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Exec(ctx, "select 1"); err == nil {
		t.Fatal("a killed server answered")
	}
	for range 2 {
		if err := s.Restart(ctx); err != nil {
			t.Fatal(err)
		}
	}
	n, err := s.Value(ctx, "select count(*) from t")
	if err != nil || n != "10" || s.Addr() != addr {
		t.Fatalf("%q rows, %v, at %s (was %s)", n, err, s.Addr(), addr)
	}
	if mem, err := s.Value(ctx, "show work_mem"); err != nil || mem != "7MB" {
		t.Fatalf("work_mem %q, %v", mem, err)
	}
}

func TestStopLeavesNothingBehind(t *testing.T) {
	s := Start(t, Options{Auth: "trust", HBA: []string{"host all nobody all reject"}})
	pid := s.process.cmd.Process.Pid
	if _, err := pgconn.Connect(t.Context(), s.URLFor("nobody", "", "postgres")); err == nil || !strings.Contains(err.Error(), "28000") {
		t.Fatalf("the given pg_hba line was not obeyed: %v", err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", s.dir, err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil {
		t.Errorf("process %d still runs", pid)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("second stop: %v", err)
	}
}

func TestAServerThatCannotStartSaysWhy(t *testing.T) {
	if _, err := findBinaries(0); err != nil {
		refuse(t, err)
	}
	_, err := Open(context.Background(), Options{Settings: map[string]string{"shared_buffers": "banana"}})
	if err == nil || !strings.Contains(err.Error(), "shared_buffers") {
		t.Fatalf("got %v", err)
	}
}
