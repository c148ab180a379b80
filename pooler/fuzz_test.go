package pooler

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// What a client or a server may send at worst, end to end: through the real pooler, with
// a scripted server behind it. After each input a witness asks the server that was used
// last, and must get its own answer.

// A theatre is a pooler in front of a scripted server, for many inputs.
type theatre struct {
	*house
	poison  atomic.Pointer[poison]
	witness *frontend
	asked   int
}

// A poison is what the server answers a query for poison with.
type poison struct {
	answer string
	stays  bool // the server serves on; that takes longer to find out
}

func newTheatre(f *testing.F) *theatre {
	f.Helper()
	fake, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	th := &theatre{}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := fake.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { th.serve(conn) })
		}
	})
	th.house = run(f, config(database("postgres://u:p@"+fake.Addr().String()+"/x?sslmode=disable", one, func(d *Database) { d.Pool.OutageWait = 10 * time.Second })),
		func(d *Deps) { d.Log = slog.New(slog.DiscardHandler) })
	f.Cleanup(func() { _ = th.stop(); fake.Close(); serving.Wait() })
	return th
}

// serve answers as PostgreSQL would, as far as anybody here asks.
func (th *theatre) serve(conn net.Conn) {
	defer conn.Close()
	in := pgwire.NewReader(conn, 1<<16)
	if start, err := in.ReadStartup(); err != nil || start.Kind != pgwire.StartSession {
		return
	}
	out := frame('R', u32(0)) + frame('S', "server_version\x0015.0\x00") + frame('K', u32(77)+u32(78)) + frame('Z', "I")
	failed, copying := false, false
	for {
		if len(out) > 0 {
			if _, err := conn.Write([]byte(out)); err != nil {
				return
			}
		}
		typ, body, err := in.NextLarge(1 << 20)
		if err != nil {
			return
		}
		out = ""
		text, _, _ := strings.Cut(string(body), "\x00")
		switch {
		case copying && (typ == pgwire.CopyDone || typ == pgwire.CopyFail):
			copying, out = false, frame('C', "COPY 1\x00")+frame('Z', "I")
		case copying:
		case typ == pgwire.Sync:
			failed, out = false, frame('Z', "I")
		case typ == pgwire.Query && text == "poison":
			p := th.poison.Load()
			if out = p.answer; !p.stays {
				_, _ = conn.Write([]byte(out))
				return
			}
		case typ == pgwire.Query && strings.HasPrefix(text, "copy"):
			copying, out = true, frame('G', "\x00\x00\x00")
		case typ == pgwire.Query:
			out = frame('T', "\x00\x00") + frame('D', "\x00\x01"+u32(uint32(len(text)))+text) + frame('C', "SELECT 1\x00") + frame('Z', "I")
		case typ == pgwire.FunctionCall:
			out = frame('E', "SERROR\x00C42883\x00Mnone\x00\x00") + frame('Z', "I")
		case failed:
		case typ == pgwire.Execute && len(body) > 1 && body[0] != 0:
			failed, out = true, frame('E', "SERROR\x00C34000\x00Mnone\x00\x00")
		default:
			out = map[byte]string{pgwire.Parse: frame('1', ""), pgwire.Bind: frame('2', ""), pgwire.Describe: frame('n', ""), pgwire.Execute: frame('C', "SELECT 0\x00"), pgwire.Close: frame('3', "")}[typ]
		}
	}
}

// ask lets the witness look: it must get its own answer, or be told that the server is
// gone.
func (th *theatre) ask(t *testing.T) {
	t.Helper()
	for range 3 {
		if th.witness == nil {
			th.witness = newFrontend(t, th.house)
		}
		w := th.witness
		w.t = t
		th.asked++
		want := fmt.Sprintf("witness %d", th.asked)
		_ = w.conn.SetDeadline(time.Now().Add(20 * time.Second)) // a closed one is noticed below
		_, _ = w.conn.Write([]byte(frame('Q', want+"\x00")))
		var got strings.Builder
		for {
			typ, body, err := w.in.Next()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the pooler hangs")
			}
			if err != nil || typ == pgwire.ReadyForQuery {
				break
			}
			if typ == pgwire.DataRow {
				got.Write(body[6:])
			}
			if typ != pgwire.ParameterStatus { // what the server reports is for everybody
				got.WriteByte(typ)
			}
		}
		if got.String() == "T"+want+"DC" {
			return
		}
		if got.String() != "E" && got.String() != "" {
			t.Fatalf("the witness got %q", got.String())
		}
		w.conn.Close()
		th.witness = nil
	}
	t.Fatal("the witness was refused three times")
}

// leave ends a client that has sent what it has, and waits until the pooler has too.
func leave(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.(*net.TCPConn).CloseWrite() // it may be closed already
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the pooler hangs")
	}
	conn.Close()
}

func FuzzWhatAClientSends(f *testing.F) {
	for _, seed := range []string{
		frame('Q', "select 1\x00"), frame('P', "n\x00select\x00\x00\x00") + frame('B', "\x00n\x00\x00\x00\x00\x00\x00\x00") + frame('E', "\x00\x00\x00\x00\x00") + frame('S', ""),
		frame('Q', "copy x\x00") + frame('d', "1\n") + frame('c', ""), frame('c', "") + frame('f', "\x00") + frame('H', ""), frame('X', ""), frame('F', ""),
		frame('P', "n\x00deallocate all\x00\x00\x00") + frame('B', "\x00n\x00") + frame('E', "") + frame('C', "Sn\x00") + frame('D', "S\x00") + frame('S', ""),
		frame('Q', "listen a; begin\x00") + frame('Q', "set x = 1\x00") + frame('S', ""), "Q\xff\xff\xff\xff", "B\x00\x00\x00\x04", frame('P', "") + frame('B', "") + frame('C', "") + frame('D', ""), "\x00\x00\x00\x08\x04\xd2\x16\x2f",
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	th := newTheatre(f)
	f.Fuzz(func(t *testing.T, send []byte, loggedIn bool) {
		if loggedIn {
			c := newFrontend(t, th.house)
			_, _ = c.conn.Write(send) // it may be closed in the middle
			leave(t, c.conn)
		} else {
			conn, err := net.Dial("tcp", th.addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(send)
			leave(t, conn)
		}
		th.ask(t)
		th.ledger.forget()
	})
}

func FuzzWhatAServerAnswers(f *testing.F) {
	for _, seed := range []string{
		frame('C', "SELECT 1\x00") + frame('Z', "I"), frame('Z', "I") + frame('Z', "I"), frame('D', "\x00\x01"+u32(7)+"stolen!") + frame('C', "SELECT 1\x00") + frame('Z', "I") + frame('D', "\x00\x01"+u32(7)+"stolen!"),
		frame('E', "SERROR\x00\x00") + frame('Z', "E"), frame('E', ""), frame('N', ""), frame('A', u32(1)+"a\x00b\x00") + frame('Z', "I"), frame('A', ""), frame('S', "a\x00b\x00") + frame('Z', "T"), frame('S', ""),
		frame('G', "") + frame('Z', "I"), frame('H', "") + frame('d', "x") + frame('c', "") + frame('Z', "I"), frame('W', ""), "D\xff\xff\xff\xff", "D\x00\x00\x00\x03", frame('1', ""), frame('3', ""), frame('Z', ""), frame('Z', "II"), frame('s', ""), frame('V', ""), "",
	} {
		f.Add([]byte(seed), byte(0))
		f.Add([]byte(seed), byte(1))
	}
	th := newTheatre(f)
	f.Fuzz(func(t *testing.T, answer []byte, how byte) {
		th.poison.Store(&poison{string(answer), how%16 == 0})
		c := newFrontend(t, th.house)
		send := frame('Q', "poison\x00")
		if how%2 == 1 {
			send += frame('H', "")
		}
		_, _ = c.conn.Write([]byte(send))
		leave(t, c.conn)
		th.ask(t)
		th.ledger.forget()
	})
}

// forget empties the ledger, which would grow with every input.
func (l *ledger) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.exchanges, l.events = nil, nil
}
