package hub

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

type client struct {
	ending bool
	heard  []string
	lost   []bool
}

func (c *client) Ending() bool   { return c.ending }
func (c *client) Lost(back bool) { c.lost = append(c.lost, back) }
func (c *client) Notify(frames []byte) {
	_, _, body := pgwire.Split(frames)
	_, channel, payload, _ := Notification(body)
	c.heard = append(c.heard, channel+" "+payload)
}

func body(pid uint32, channel, payload string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, pid), channel+"\x00"+payload+"\x00"...)
}

var mu sync.Mutex // over what servers were asked

// server is a scripted PostgreSQL that answers every query, and keeps what it was asked.
func server(conn net.Conn, asked *[]string, silent func() bool) {
	in := pgwire.NewReader(conn, 1<<16)
	for {
		_, text, err := in.Next()
		if err != nil {
			return
		}
		mu.Lock()
		*asked = append(*asked, strings.TrimSuffix(string(text), "\x00"))
		quiet := silent()
		mu.Unlock()
		if quiet {
			continue
		}
		if _, err := conn.Write(pgwire.AppendReady(nil, pgwire.Idle)); err != nil {
			return
		}
	}
}

func TestASilentConnectionIsReplacedAndTheLossIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked, events []string
		dials := 0
		h := New(Deps{
			Dial: func(context.Context) (*upstream.Conn, error) {
				if dials++; dials == 1 {
					return nil, errors.New("not yet")
				}
				near, far := net.Pipe()
				first := dials == 2
				go server(far, &asked, func() bool { return first && slices.Contains(asked, "") }) // under mu
				return &upstream.Conn{Conn: near, Raw: near, In: pgwire.NewReader(near, 1<<14)}, nil
			},
			Go: func(f func()) { go f() }, Paused: func() bool { return false },
			Report: func(_ slog.Level, name, _ string, _ error) { events = append(events, name) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		c, gone := &client{}, &client{}
		for id, c := range map[uint32]*client{7: c, 8: gone} {
			if err := h.Subscribe(ctx, id, c, []string{"a", `b"c`}, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		h.Leave(8)
		if err := h.Subscribe(ctx, 9, &client{ending: true}, []string{"new"}, time.Minute); !errors.Is(err, errEnding) {
			t.Errorf("one that ends: %v", err)
		}
		h.Leave(9)
		h.hand(body(1, "a", "too early"))
		h.hand(body(1, h.barrier, "-7"))
		h.hand(body(1, "a", "now"))
		h.hand(body(1, "other", "not for it"))
		if len(c.heard) != 1 || c.heard[0] != "a now" || gone.heard != nil {
			t.Errorf("heard %q, and the one that has left %q", c.heard, gone.heard)
		}
		time.Sleep(3 * probeEvery) // the server does not answer the first question whether it lives
		synctest.Wait()
		if !slices.Equal(c.lost, []bool{false, true}) || gone.lost != nil || h.Losses.Load() != 1 {
			t.Errorf("told %v, %v, %d losses", c.lost, gone.lost, h.Losses.Load())
		}
		if got := strings.Join(events, " "); got != "listener_unreachable listener_lost listener_back" {
			t.Errorf("events %s", got)
		}
		h.hand(body(1, `b"c`, "again"))
		if len(c.heard) != 2 {
			t.Errorf("heard %q", c.heard)
		}
		h.Leave(7)
		time.Sleep(2 * probeEvery)
		synctest.Wait()
		if !h.Idle() {
			t.Error("the connection is open for nobody")
		}
		mu.Lock()
		defer mu.Unlock()
		if got := strings.Join(asked, "|"); !strings.Contains(got, `UNLISTEN "new"`) || !strings.Contains(got, `LISTEN "b""c"`) {
			t.Errorf("asked %s", got)
		}
		cancel()
		synctest.Wait()
	})
}

// slowly makes a hub whose server takes its time to answer. It is to be left idle.
func slowly(dial func() error, took time.Duration, events *[]string) *Hub {
	var asked []string
	return New(Deps{
		Dial: func(context.Context) (*upstream.Conn, error) {
			if err := dial(); err != nil {
				return nil, err
			}
			near, far := net.Pipe()
			go server(far, &asked, func() bool { time.Sleep(took); return false })
			return &upstream.Conn{Conn: near, Raw: near, In: pgwire.NewReader(near, 1<<14)}, nil
		},
		Go: func(f func()) { go f() }, Paused: func() bool { return false },
		Report: func(_ slog.Level, name, _ string, _ error) { *events = append(*events, name) },
	})
}

// A silence that is nearly over when a question is asked is none of that question's.
func TestAQuestionIsGivenItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []string
		dials := 0
		h := slowly(func() error {
			if dials++; dials > 1 {
				return errors.New("once is enough")
			}
			return nil
		}, time.Second, &events)
		ctx, cancel := context.WithCancel(t.Context())
		c := &client{}
		for _, channel := range []string{"a", "b"} {
			if err := h.Subscribe(ctx, 7, c, []string{channel}, time.Minute); err != nil {
				t.Fatal(err)
			}
			time.Sleep(probeEvery - 500*time.Millisecond)
		}
		if len(c.lost) > 0 || len(events) > 0 {
			t.Errorf("told %v, events %v", c.lost, events)
		}
		cancel()
		time.Sleep(time.Minute)
	})
}

// Whoever learns from the connection's very first answer that it listens has lost nothing.
func TestNobodyIsToldOfALossBeforeItListened(t *testing.T) {
	var events []string
	h := slowly(nil, 0, &events)
	near, far := net.Pipe()
	h.running = true // in place of run, this test reads
	h.begin(&upstream.Conn{Conn: near, Raw: near})
	defer func() { near.Close(); h.down(t.Context(), nil) }()
	c := &client{}
	asked, err := h.join(t.Context(), 7, c, []string{"a"})
	if err != nil || asked == nil {
		t.Fatal(asked, err)
	}
	in := pgwire.NewReader(far, 1<<14)
	for range 2 { // nothing is answered that has not been sent
		if _, _, err := in.Next(); err != nil {
			t.Fatal(err)
		}
	}
	h.mu.Lock()
	if err := errors.Join(h.answered(), h.answered()); err != nil { // the client can go on
		t.Fatal(err)
	}
	late := h.established()
	h.mu.Unlock()
	if wait, err := h.join(t.Context(), 7, c, []string{"a"}); wait != nil || err != nil {
		t.Error(wait, err)
	}
	h.tellLate(late)
	if len(c.lost) > 0 || len(events) > 0 {
		t.Errorf("told %v, events %v", c.lost, events)
	}
}

func FuzzHand(f *testing.F) {
	f.Add(body(1, "a", "b"))
	f.Add([]byte{0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		h := New(Deps{})
		h.owners = map[uint32]uint32{1: 2}
		h.barrier = "a"
		c := &client{}
		h.members[5] = &member{client: c, channels: map[string]phase{"x": active}}
		h.channels["x"] = map[*member]struct{}{h.members[5]: {}}
		h.hand(b)
	})
}
