package pooler

import (
	"context"
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// The end comes with the query: it is no news any more when the query has been sent.
func TestAClientThatHangsUpWithItsQueryFreesItsServer(t *testing.T) {
	h := run(t, config(database(pg.Start(t).URL(), one)))
	do(t, h.connect(t), "select 1") // there is a server
	c := newFrontend(t, h)
	raw, err := c.conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	corked := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 1) })
	if err := errors.Join(corked, err); err != nil {
		t.Fatal(err)
	}
	c.send(frame('Q', "select pg_sleep(601)\x00"))
	c.conn.Close()
	runs := func() string {
		n, err := pg.Start(t).Value(context.Background(), "select count(*) from pg_stat_activity where query like '%pg_sleep(601)%' and pid <> pg_backend_pid() and state = 'active'")
		if err != nil {
			t.Error(err)
		}
		return n
	}
	await(t, "the client is known to be gone", func() bool { return h.ledger.codes()[string(ClientGone)] == 1 }) // until it is read, nothing runs either
	await(t, "the server is free, and nothing runs on", func() bool { return h.Stats().Databases[0].Active == 0 && runs() == "0" })
}
