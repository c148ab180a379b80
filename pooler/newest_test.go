package pooler

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"mainstay.dev/mainstay/pooler/pgtest"
)

// newest is a server of a version with what Debian's has not: TLS from the first byte
// on, and protocol 3.2.
var newest = pgtest.Shared{Options: pgtest.Options{Database: "app", TLS: true, Version: 18}}

// An opening tells the first byte that each connection to a server began with.
type opening struct {
	net.Listener
	byTLS, other atomic.Int32
}

// before relays connections to a server, and looks at their first bytes.
func before(t *testing.T, addr string) *opening {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &opening{Listener: ln}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // the test is over
			}
			go o.relay(conn, addr)
		}
	}()
	return o
}

func (o *opening) relay(client net.Conn, addr string) {
	defer client.Close()
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer server.Close()
	var first [1]byte
	if _, err := io.ReadFull(client, first[:]); err != nil {
		return
	}
	if first[0] == 0x16 { // a handshake (RFC 8446, 5.1)
		o.byTLS.Add(1)
	} else {
		o.other.Add(1)
	}
	if _, err := server.Write(first[:]); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(client, server) // either end may close it
		client.Close()
	}()
	_, _ = io.Copy(server, client)
}

func TestPostgreSQL18IsEnteredWithTLSFromTheFirstByteOn(t *testing.T) {
	s := newest.Start(t)
	o := before(t, s.Addr())
	port := o.Addr().(*net.TCPAddr).Port
	upstream := fmt.Sprintf("postgres://postgres:%s@localhost:%d/app?sslnegotiation=direct&sslmode=verify-full&sslrootcert=%s&channel_binding=require", s.Password(), port, s.CAFile())
	h := run(t, config(database(upstream, one)))
	conn := h.connect(t)
	if got := value(t, conn, "select version() || ' ' || ssl from pg_stat_ssl where pid = pg_backend_pid()"); !strings.HasPrefix(got, "PostgreSQL 18") || !strings.HasSuffix(got, "true") {
		t.Error(got)
	}
	if byTLS, other := o.byTLS.Load(), o.other.Load(); byTLS == 0 || other != 0 {
		t.Errorf("%d connections began with a handshake, %d did not", byTLS, other)
	}
	// A cancel request goes the same way.
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), "select pg_sleep(60)")
		failed <- err
	}()
	await(t, "the query runs", func() bool { // a server that it has not reached yet cancels nothing
		n, err := s.Value(t.Context(), "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'")
		return err == nil && n == "1"
	})
	if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, <-failed, "57014")
	if other := o.other.Load(); other != 0 {
		t.Errorf("%d connections did not begin with a handshake", other)
	}
}
