package tunnel

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sink is a connection that keeps what is written.
type sink struct {
	net.Conn
	bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) { return s.Buffer.Write(p) }

func (s *sink) Read(p []byte) (int, error) { return s.Buffer.Read(p) }

func TestTheCloseFrameComesBetweenTwoFrames(t *testing.T) {
	long := append([]byte{0x82, 126, 1, 0}, make([]byte, 256)...)
	huge := append([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}, make([]byte, 1<<16)...)
	for _, frame := range [][]byte{{0x81, 2, 'h', 'i'}, {0x89, 0}, long, huge} {
		stream := bytes.Repeat(frame, 3)
		for _, at := range []int{0, 1, len(frame) - 1, len(frame), len(frame) + 1} {
			s := &sink{}
			c := New(&deadlines{Conn: s}, true, func() {})
			if _, err := c.Write(stream[:at]); err != nil {
				t.Fatal(err)
			}
			c.Farewell()
			if n, err := c.Write(stream[at:]); n != len(stream)-at || err != nil {
				t.Fatal(n, err)
			}
			whole := (at + len(frame) - 1) / len(frame)
			want := append(bytes.Repeat(frame, whole), goingAway...)
			if !bytes.Equal(s.Bytes(), want) {
				t.Errorf("frames of %d, farewell at %d: %d bytes, want %d", len(frame), at, s.Len(), len(want))
			}
		}
	}
}

func TestAnAppThatClosedItselfIsNotInterrupted(t *testing.T) {
	s := &sink{}
	c := New(&deadlines{Conn: s}, true, func() {})
	bye := []byte{0x88, 2, 0x03, 0xe8}
	c.Write(bye)
	c.Farewell()
	if !bytes.Equal(s.Bytes(), bye) {
		t.Errorf("%x", s.Bytes())
	}
}

func TestATunnelOfWhichOneSideHasFinishedDoesNotLinger(t *testing.T) {
	for _, tc := range []struct {
		webSocket bool
		finish    func(c *Conn, client net.Conn)
		says      int // how often the app goes on speaking, every 4 seconds
		want      time.Duration
	}{
		{true, func(c *Conn, client net.Conn) { client.Close(); c.Read(make([]byte, 1)) }, 0, 5 * time.Second},
		{true, func(c *Conn, client net.Conn) { c.CloseWrite() }, 0, 5 * time.Second},
		{false, func(c *Conn, client net.Conn) { client.Close(); c.Read(make([]byte, 1)) }, 0, time.Minute},
		{false, func(c *Conn, client net.Conn) { c.CloseWrite() }, 10, time.Minute + 36*time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			client, edge := net.Pipe()
			hung := make(chan struct{})
			c := New(edge, tc.webSocket, func() { close(hung) })
			defer c.Close()
			began := time.Now()
			tc.finish(c, client)
			go io.Copy(io.Discard, client)
			for i := range tc.says {
				if i > 0 {
					time.Sleep(4 * time.Second)
				}
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			<-hung
			if took := time.Since(began); took != tc.want {
				t.Errorf("WebSocket %v: ended after %v, want %v", tc.webSocket, took, tc.want)
			}
		})
	}
}

func TestATunnelThatBothSidesUseIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, edge := net.Pipe()
		c := New(edge, true, func() { t.Error("hung up") })
		time.Sleep(24 * time.Hour)
		go client.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		time.Sleep(24 * time.Hour)
		c.Close()
		client.Close()
	})
}

// stuck is a client that takes nothing: a Write ends when a deadline is set.
type stuck struct {
	deadlines
	once              sync.Once
	writing, deadline chan struct{}
}

func (s *stuck) Write([]byte) (int, error) {
	s.once.Do(func() { close(s.writing) })
	<-s.deadline
	return 0, os.ErrDeadlineExceeded
}

func (s *stuck) SetWriteDeadline(at time.Time) error {
	if !at.IsZero() {
		close(s.deadline)
	}
	return nil
}

// Its app's Write holds the lock that a farewell needs.
func TestAClientThatTakesNothingIsNotWaitedForWithItsFarewell(t *testing.T) {
	s := &stuck{writing: make(chan struct{}), deadline: make(chan struct{})}
	c := New(s, true, func() {})
	wrote := make(chan error)
	go func() { _, err := c.Write([]byte{0x81, 2, 'h', 'i'}); wrote <- err }()
	<-s.writing
	c.Farewell()
	if err := <-wrote; err == nil {
		t.Error("the write went on")
	}
}

func FuzzNoFrameIsCutAndNothingIsLostBefore(f *testing.F) {
	f.Add([]byte{0x81, 2, 'h', 'i'}, []byte{0x82, 126, 0})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s := &sink{}
		c := New(&deadlines{Conn: s}, true, func() {})
		c.Write(a)
		if !bytes.Equal(s.Bytes(), a) {
			t.Fatal("what came before was changed")
		}
		c.Farewell()
		if n, err := c.Write(b); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
		if !bytes.HasPrefix(append(append([]byte{}, a...), b...), bytes.TrimSuffix(s.Bytes(), goingAway)) {
			t.Fatalf("%x %x gave %x", a, b, s.Bytes())
		}
	})
}

// deadlines takes deadlines and forgets them.
type deadlines struct{ net.Conn }

func (*deadlines) SetDeadline(time.Time) error      { return nil }
func (*deadlines) SetWriteDeadline(time.Time) error { return nil }
