package pgtest

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

// TB is the part of testing.TB that this package needs.
type TB interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Start runs a server for one test and stops it at the test's end. Where no
// PostgreSQL can run the test is skipped, with the reason; with CI=true in the
// environment it fails instead. The default folder is a temporary one.
func Start(tb TB, opts Options) *Server {
	tb.Helper()
	s, err := openWithin(time.Minute, opts)
	if err != nil {
		refuse(tb, err)
		return nil
	}
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Logf("stop postgres: %v", err)
		}
	})
	return s
}

func openWithin(limit time.Duration, opts Options) (*Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return Open(ctx, opts)
}

// refuse ends a test that has no server to run against.
func refuse(tb TB, err error) {
	tb.Helper()
	if errors.Is(err, ErrUnavailable) && os.Getenv("CI") != "true" {
		tb.Skipf("%v", err)
	}
	tb.Fatalf("start PostgreSQL: %v", err)
}

// Shared is one server for all tests of a package: started by the first test that
// asks, stopped by TestMain.
//
//	var pg pgtest.Shared
//
//	func TestMain(m *testing.M) {
//		code := m.Run()
//		pg.Stop()
//		os.Exit(code)
//	}
type Shared struct {
	Options Options // read by the first Start

	once   sync.Once
	server *Server
	err    error
}

// Start returns the server. It skips or fails the test as [Start] does.
func (s *Shared) Start(tb TB) *Server {
	tb.Helper()
	s.once.Do(func() { s.server, s.err = openWithin(time.Minute, s.Options) })
	if s.err != nil {
		refuse(tb, s.err)
		return nil
	}
	return s.server
}

// Stop ends the server, if it was ever started.
func (s *Shared) Stop() error {
	if s.server == nil {
		return nil
	}
	return s.server.Stop()
}
