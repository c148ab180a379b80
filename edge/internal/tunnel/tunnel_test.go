package tunnel

import (
	"bytes"
	"net"
	"testing"
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
			c := New(&deadlines{Conn: s})
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
	c := New(&deadlines{Conn: s})
	bye := []byte{0x88, 2, 0x03, 0xe8}
	c.Write(bye)
	c.Farewell()
	if !bytes.Equal(s.Bytes(), bye) {
		t.Errorf("%x", s.Bytes())
	}
}

func FuzzNoFrameIsCutAndNothingIsLostBefore(f *testing.F) {
	f.Add([]byte{0x81, 2, 'h', 'i'}, []byte{0x82, 126, 0})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s := &sink{}
		c := New(&deadlines{Conn: s})
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

func (*deadlines) SetDeadline(time.Time) error { return nil }
