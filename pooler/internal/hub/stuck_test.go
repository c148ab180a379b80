package hub

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// A halting connection's writes wait, but for the first, until they are told to go on:
// neither a deadline nor a Close ends that.
type halting struct {
	net.Conn
	writes int
	told   chan struct{}
}

func (c *halting) Write(b []byte) (int, error) {
	if c.writes++; c.writes > 1 {
		<-c.told
	}
	return c.Conn.Write(b)
}

// halted is a hub that listens to channel a for client 7, and whose server takes nothing
// more until it is told; asked is what each of its connections was asked.
type halted struct {
	*Hub
	ctx   context.Context
	told  chan struct{}
	asked []*[]string
	c     *client
}

func newHalted(t *testing.T, ctx context.Context) *halted {
	s := &halted{ctx: ctx, told: make(chan struct{}), c: &client{}}
	s.Hub = New(Deps{
		Dial: func(context.Context) (*upstream.Conn, error) {
			near, far := net.Pipe()
			asked := &[]string{}
			s.asked = append(s.asked, asked)
			go server(far, asked, func() bool { return false })
			conn := near
			if len(s.asked) == 1 {
				conn = &halting{Conn: near, told: s.told}
			}
			return &upstream.Conn{Conn: conn, Raw: conn, In: pgwire.NewReader(conn, 1<<14)}, nil
		},
		Go: func(f func()) { go f() }, Paused: func() bool { return false },
		Report: func(slog.Level, string, string, error) {},
	})
	if err := s.Subscribe(ctx, 7, s.c, []string{"a"}, time.Minute); err != nil {
		t.Fatal(err)
	}
	s.hand(body(1, s.barrier, "-7"))
	s.hand(body(1, "a", "heard"))
	return s
}

// was is what the connection of this number was asked, without its first statement.
func (s *halted) was(n int) string {
	synctest.Wait()
	mu.Lock()
	defer mu.Unlock()
	return strings.Join((*s.asked[n])[1:], "|")
}

// closed reports whether a channel is.
func closed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// The pooler asks for the levels, and whether the hub is idle, while it holds the lock that
// the event loops need.
func TestNobodyWaitsForAServerThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := newHalted(t, ctx)
		defer close(s.told)
		late := make(chan error, 1)
		go func() { late <- s.Subscribe(ctx, 8, &client{}, []string{"b"}, askLimit/2) }()
		synctest.Wait()
		if !s.mu.TryLock() {
			t.Fatal("the lock is held while the server takes nothing")
		}
		s.mu.Unlock()
		if listeners, channels := s.Levels(); listeners != 2 || channels != 2 || s.Idle() || len(s.Clients()) != 2 {
			t.Errorf("%d clients listen to %d channels", listeners, channels)
		}
		synced, heard := s.Sync(), s.AwaitBarrier(7, s.c)
		if err := <-late; !errors.Is(err, errLate) {
			t.Errorf("a LISTEN that is not taken: %v", err)
		}
		s.Leave(8)
		s.Unsubscribe(7, []string{"none"})
		if closed(synced) || closed(heard) {
			t.Error("the server has said nothing")
		}

		// It is given up in time, though the write still waits, and the loss is told.
		<-synced
		<-heard
		if err := s.Subscribe(ctx, 9, &client{}, []string{"c"}, time.Minute); err != nil {
			t.Error(err)
		}
		if synctest.Wait(); !slices.Equal(s.c.lost, []bool{false, true}) || s.Losses.Load() != 1 {
			t.Errorf("told %v, %d losses", s.c.lost, s.Losses.Load())
		}
		if got := s.was(0); got != "" {
			t.Errorf("a connection that takes nothing took %s", got)
		}
		s.hand(body(1, "a", "again"))
		if !slices.Equal(s.c.heard, []string{"a heard", "a again"}) {
			t.Errorf("heard %q", s.c.heard)
		}
	})
}

func TestAWriteThatIsStuckEndsWithThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which waits for all that the hub has started
		ctx, cancel := context.WithCancel(t.Context())
		near, far := net.Pipe()
		defer far.Close()
		h := New(Deps{
			Dial: func(context.Context) (*upstream.Conn, error) {
				return &upstream.Conn{Conn: near, Raw: near, In: pgwire.NewReader(near, 1<<14)}, nil
			},
			Go: func(f func()) { go f() }, Paused: func() bool { return false },
		})
		late := make(chan error, 1)
		go func() { late <- h.Subscribe(ctx, 7, &client{}, []string{"a"}, time.Second) }()
		synctest.Wait()
		cancel()
		if err := <-late; !errors.Is(err, errLate) {
			t.Error(err)
		}
		h.Leave(7)
		if synctest.Wait(); !h.Idle() {
			t.Error("it goes on")
		}
	})
}

// What was asked meanwhile is asked in its order, and whoever waits for an answer waits for
// one to a question that was sent since.
func TestWhatWaitsToBeSentKeepsItsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := newHalted(t, ctx)
		first := s.Sync()
		synctest.Wait() // it is being written
		if second := s.Sync(); second == first {
			t.Error("an answer that may be under way is waited for")
		}
		joined := make(chan error, 2)
		go func() { joined <- s.Subscribe(ctx, 8, &client{}, []string{"b"}, time.Minute) }()
		synctest.Wait()
		s.Unsubscribe(7, []string{"a"})
		go func() { joined <- s.Subscribe(ctx, 7, s.c, []string{"a"}, time.Minute) }()
		synctest.Wait()
		last, same := s.Sync(), s.Sync()
		if last != same {
			t.Error("two questions wait to be sent where one does")
		}
		s.hand(body(1, s.barrier, "-7"))
		s.hand(body(1, "a", "too early"))
		if closed(first) || closed(last) || len(joined) > 0 {
			t.Error("the server has said nothing")
		}
		close(s.told)
		for range 2 {
			if err := <-joined; err != nil {
				t.Error(err)
			}
		}
		<-first
		<-last
		if got, want := s.was(0), `||LISTEN "b";|UNLISTEN "a";|LISTEN "a";`; got != want {
			t.Errorf("asked %s, not %s", got, want)
		}
		s.hand(body(1, s.barrier, "-7"))
		s.hand(body(1, "a", "now"))
		if !slices.Equal(s.c.heard, []string{"a heard", "a now"}) || s.c.lost != nil {
			t.Errorf("heard %q, told %v", s.c.heard, s.c.lost)
		}
	})
}

func TestWhatWaitsToBeSentIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := newHalted(t, ctx)
		for range 10_000 {
			if err := s.Subscribe(ctx, 8, &client{}, []string{"b"}, 0); !errors.Is(err, errLate) {
				t.Fatal(err)
			}
			s.Leave(8)
			s.Sync()
		}
		s.mu.Lock()
		if s.backlog > 2*maxBacklog || s.unsent > maxBacklog/10 {
			t.Errorf("%d statements of %d bytes wait", s.unsent, s.backlog)
		}
		s.mu.Unlock()
		done := make(chan error, 1)
		go func() { done <- s.Subscribe(ctx, 9, &client{}, []string{"c"}, time.Minute) }()
		synctest.Wait()
		close(s.told)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := s.was(0); !strings.HasSuffix(got, `|LISTEN "c";`) || s.backlog != 0 || s.unsent != 0 {
			t.Errorf("asked at last %s; %d statements of %d bytes wait", got[max(0, len(got)-80):], s.unsent, s.backlog)
		}
		if s.c.lost != nil {
			t.Errorf("told %v", s.c.lost)
		}
	})
}

func TestAServerThatOnlyTalksIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		dials, silent := 0, make(chan struct{})
		h := New(Deps{
			Dial: func(context.Context) (*upstream.Conn, error) {
				near, far := net.Pipe()
				if dials++; dials > 1 {
					go server(far, &asked, func() bool { return false })
				} else {
					go talk(far, silent)
				}
				return &upstream.Conn{Conn: near, Raw: near, In: pgwire.NewReader(near, 1<<14)}, nil
			},
			Go: func(f func()) { go f() }, Paused: func() bool { return false },
			Report: func(slog.Level, string, string, error) {},
		})
		ctx, cancel := context.WithCancel(t.Context())
		for _, channel := range []string{"a", "b"} {
			if err := h.Subscribe(ctx, 7, &client{}, []string{channel}, time.Hour); err != nil {
				t.Error(err)
			}
		}
		cancel()
		<-silent
	})
}

// talk is a server that answers one query, and then says something each second.
func talk(conn net.Conn, silent chan struct{}) {
	defer close(silent)
	_, _, err := pgwire.NewReader(conn, 1<<14).Next()
	for typ, content := byte(pgwire.ReadyForQuery), []byte{pgwire.Idle}; err == nil; typ, content = pgwire.NoticeResponse, []byte{0} {
		_, err = conn.Write(pgwire.Append(nil, typ, content))
		time.Sleep(time.Second)
	}
}

func TestAQuestionThatIsNotSentIsNeitherAnsweredNorLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		h := New(Deps{Go: func(func()) {}}) // nothing is sent
		conn := &upstream.Conn{Conn: near, Raw: near, In: pgwire.NewReader(near, 1<<14)}
		h.begin(conn)
		h.mu.Lock()
		if err := h.answered(); !errors.Is(err, errUnasked) || len(h.confirmed) > 0 {
			t.Error(err)
		}
		h.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 3*probeEvery)
		defer cancel()
		if err := h.read(ctx, conn); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
