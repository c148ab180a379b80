package deadline

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pair is a connection as the server has it, and its other end.
func pair(t *testing.T) (*Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln = Listen(ln)
	defer ln.Close()
	there, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	here, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	return here.(*Conn), there
}

func TestADeadlineEndsARead(t *testing.T) {
	c, there := pair(t)
	for name, set := range map[string]func(time.Time) error{"read": c.SetReadDeadline, "both": c.SetDeadline} {
		for _, in := range []time.Duration{-time.Hour, 0, time.Millisecond, 20 * time.Millisecond} {
			at := time.Now().Add(in)
			if err := set(at); err != nil {
				t.Fatal(err)
			}
			_, err := c.Read(make([]byte, 1))
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s, %v: %v", name, in, err)
			}
			if time.Now().Before(at) {
				t.Errorf("%s, %v: too early", name, in)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s, %v: read again: %v", name, in, err)
			}
		}
		if err := set(time.Time{}); err != nil {
			t.Fatal(err)
		}
		_, _ = there.Write([]byte("x"))
		if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("%s: without a deadline: %d, %v", name, n, err)
		}
	}
}

func TestADeadlineThatHasPassedWakesAReader(t *testing.T) {
	c, _ := pair(t)
	_ = c.SetReadDeadline(time.Now().Add(time.Hour))
	ended := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	_ = c.SetReadDeadline(time.Unix(1, 0))
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestADeadlineEndsAWrite(t *testing.T) {
	c, _ := pair(t)
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	for piece := make([]byte, 1<<20); ; {
		if _, err := c.Write(piece); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			return
		}
	}
}

// A side tells its connection nothing before it has to, and arms its timer once for all
// that is put off.
func TestWhatIsPutOffIsNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []time.Time // the side's lock guards it
		s := &side{set: func(t time.Time) error { told = append(told, t); return nil }}
		said := func() []time.Time {
			s.mu.Lock()
			defer s.mu.Unlock()
			return slices.Clone(told)
		}
		begun := time.Now()
		for range 100 { // as many requests, a second each
			_ = s.note(time.Now().Add(10 * time.Second))
			time.Sleep(time.Second)
			_ = s.note(time.Time{})
			_ = s.note(time.Now().Add(2 * time.Minute))
			_ = s.note(time.Time{})
		}
		if len(said()) != 0 {
			t.Errorf("told %d times", len(said()))
		}
		end := time.Now().Add(10 * time.Second)
		_ = s.note(end)
		synctest.Wait()
		time.Sleep(10*time.Second - 1)
		synctest.Wait()
		if len(said()) != 0 {
			t.Error("told too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if len(said()) != 1 || !said()[0].Equal(end) {
			t.Errorf("%v after %v; want %v", said(), time.Since(begun), end)
		}
		_ = s.note(time.Time{}) // which takes back what was told
		_ = s.note(time.Time{})
		if len(said()) != 2 || !said()[1].IsZero() {
			t.Errorf("%v", said())
		}
		_ = s.note(time.Now().Add(time.Hour))
		_ = s.note(time.Now().Add(time.Minute)) // sooner than the timer
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(said()) != 3 {
			t.Errorf("%v", said())
		}
	})
}

func TestNothingIsToldOfAClosedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0 // guarded by the side's lock
		s := &side{set: func(time.Time) error { told++; return net.ErrClosed }}
		_ = s.note(time.Now().Add(time.Second))
		s.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		s.mu.Lock()
		went := told
		s.mu.Unlock()
		if went != 0 {
			t.Error("its timer went on")
		}
		for _, at := range []time.Time{{}, time.Now().Add(time.Hour), time.Unix(1, 0)} {
			if err := s.note(at); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v: %v", at, err)
			}
		}
	})
}

func TestNotingAllocatesNothing(t *testing.T) {
	c, _ := pair(t)
	_ = c.SetDeadline(time.Now().Add(time.Hour))
	if n := testing.AllocsPerRun(100, func() {
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Hour))
		_ = c.SetWriteDeadline(time.Time{})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// net/http's own deadlines work through it: a client that sends no more of a header, or
// of a body, or nothing at all, is let go.
func TestAServerLetsGoOfWhoSendsNothing(t *testing.T) {
	const short = 30 * time.Millisecond
	addr := serve(t, &http.Server{ReadHeaderTimeout: short, IdleTimeout: short, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(short))
		if _, err := io.ReadAll(r.Body); errors.Is(err, os.ErrDeadlineExceeded) {
			http.Error(w, "late", http.StatusRequestTimeout)
		}
	})})
	for name, sent := range map[string]string{
		"idle":   "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"header": "GET / HTTP/1.1\r\nHost: ",
		"body":   "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(sent))
		if _, err := io.Copy(io.Discard, conn); err != nil { // ends when the server lets go
			t.Errorf("%s: %v", name, err)
		}
		_ = conn.Close()
	}
}

func TestAServerKeepsWhoGoesOn(t *testing.T) {
	const long = time.Minute
	addr := serve(t, &http.Server{ReadHeaderTimeout: long, IdleTimeout: long, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})})
	conns := &http.Transport{}
	defer conns.CloseIdleConnections()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				res, err := (&http.Client{Transport: conns}).Post("http://"+addr, "text/plain", strings.NewReader("hello"))
				if err != nil {
					t.Error(err)
					return
				}
				if said, err := io.ReadAll(res.Body); err != nil || string(said) != "hello" {
					t.Errorf("%q, %v", said, err)
				}
				_ = res.Body.Close()
			}
		})
	}
	wg.Wait()
}

// serve runs srv until the test ends, and returns its address.
func serve(t *testing.T, srv *http.Server) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.Serve(Listen(ln)) }()
	return ln.Addr().String()
}

func BenchmarkSetReadDeadline(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	there, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer there.Close()
	tcp, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer tcp.Close()
	for name, c := range map[string]net.Conn{"net": tcp, "noted": newConn(tcp.(*net.TCPConn))} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				_ = c.SetReadDeadline(time.Time{})
			}
		})
	}
}
