package edge_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/traffic"
)

// ticker is an app that streams numbered events every second, two lines each, half
// a second between the lines, from the one after the client's last.
func ticker(color string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n := 0
		fmt.Sscan(r.Header.Get("Last-Event-ID"), &n)
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		w.WriteHeader(200)
		say := func(format string, args ...any) bool {
			fmt.Fprintf(w, format, args...)
			return http.NewResponseController(w).Flush() == nil
		}
		for n++; ; n++ {
			if r.URL.Query().Get("ids") != "no" {
				say("id: %d\n", n)
			}
			if !say("data: %s\n", color) {
				return
			}
			time.Sleep(500 * time.Millisecond)
			say("data: %d\n\n", n)
			select {
			case <-time.After(500 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
	}
}

// listener is an EventSource: it comes back with the last id.
type listener struct {
	client *http.Client
	last   string
	got    []string // "blue 1"
	ended  int      // streams that ended
	err    error
}

// follow listens until the n-th event.
func (l *listener) follow(ctx context.Context, url string, n int) {
	for len(l.got) < n && l.err == nil {
		req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
		if l.last != "" {
			req.Header.Set("Last-Event-ID", l.last)
		}
		resp, err := l.client.Do(req)
		if err != nil {
			l.err = err
			return
		}
		in := bufio.NewScanner(resp.Body)
		var data []string
		for len(l.got) < n && in.Scan() {
			switch name, value, _ := strings.Cut(in.Text(), ": "); {
			case name == "id":
				l.last = value
			case name == "data":
				data = append(data, value)
			case in.Text() == "":
				if len(data) != 2 {
					l.err = fmt.Errorf("half an event: %q", data)
				}
				l.got, data = append(l.got, strings.Join(data, " ")), nil
			}
		}
		if len(l.got) < n {
			if l.ended++; len(data) > 0 || in.Err() != nil {
				l.err = fmt.Errorf("cut within an event: %q %w", data, in.Err())
			}
		}
		resp.Body.Close()
	}
}

// A stream of a color that stands by goes on. When that is taken down, the stream
// ends between two events, its client comes back with the id of the last one, and
// green goes on where blue was: nothing is lost and nothing comes twice.
func TestAnEventStreamIsHandedOverBetweenTwoEvents(t *testing.T) {
	for _, proto := range []string{"h1", "h2"} {
		inBubble(t, func(c *edge.Config) { c.Streams.Over = 1000 * time.Hour }, func(t *testing.T, b *bubble) {
			// The random moment at which it would end if no event came must not be the quarter of a second before the next one.
			b.app(t, "blue:80", ticker("blue"))
			b.app(t, "green:80", ticker("green"))
			b.apply(t, one("blue-1", "blue:80"))
			l := &listener{client: b.client}
			if proto == "h2" {
				l.client = b.h2c(t)
			}
			done := make(chan struct{})
			go func() { defer close(done); l.follow(t.Context(), "http://edge/", 20) }()
			time.Sleep(5750 * time.Millisecond)
			b.apply(t, withBackup()) // the switch
			time.Sleep(4 * time.Second)
			synctest.Wait()
			if l.ended > 0 || len(l.got) != 10 {
				t.Errorf("%s: the switch ended %d streams; %v", proto, l.ended, l.got)
			}
			drain := b.apply(t, one("green-2", "green:80"))
			began := time.Now()
			if err := drain(t.Context()); err != nil || time.Since(began) > 1250*time.Millisecond {
				t.Errorf("%s: drained after %v: %v", proto, time.Since(began), err)
			}
			<-done
			if l.err != nil || l.ended != 1 {
				t.Errorf("%s: %d ended, %v", proto, l.ended, l.err)
			}
			for i, got := range l.got {
				if want := map[bool]string{true: "blue", false: "green"}[i < 11]; got != fmt.Sprintf("%s %d", want, i+1) {
					t.Errorf("%s: event %d is %q", proto, i+1, got)
				}
			}
			if x := b.ledger.next(t, 0); x.Code != "ok" || !x.HTTP.Stream {
				t.Errorf("%s: recorded %s", proto, x.Code)
			}
		})
	}
}

func TestWhatBecomesOfAStreamWhenItsColorIsTakenDown(t *testing.T) {
	for _, tc := range []struct {
		name, policy, method, query string
		clean                       bool
		least, most                 time.Duration
	}{
		{"close", "close", "GET", "ids=no", true, 0, 20250 * time.Millisecond}, // half of an event is passed on whole
		{"no id to come back with", "hand_over", "GET", "ids=no", true, 30 * time.Second, 31 * time.Second},
		{"ride", "ride", "GET", "", true, 30 * time.Second, 31 * time.Second},
		{"an answer to a POST", "close", "POST", "", false, 31 * time.Second, 31 * time.Second},
	} {
		inBubble(t, func(c *edge.Config) { c.Streams.SSE = tc.policy }, func(t *testing.T, b *bubble) {
			life, kill := context.WithCancel(t.Context())
			stream := ticker("blue")
			b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				defer context.AfterFunc(life, cancel)()
				stream(w, r.WithContext(ctx))
				panic(http.ErrAbortHandler) // as if the app had died
			})
			b.apply(t, one("blue-1", "blue:80"))
			ended := make(chan bool, 1)
			go func() {
				req, _ := http.NewRequest(tc.method, "http://edge/?"+tc.query, nil)
				resp, err := b.client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				ended <- err == nil && strings.HasSuffix(string(body), "\n\n")
			}()
			time.Sleep(2250 * time.Millisecond)
			drain := b.apply(t, traffic.Plan{Mode: traffic.Hold})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			began := time.Now()
			err := drain(ctx)
			if took := time.Since(began); took < tc.least || took > tc.most || (err == nil) != tc.clean {
				t.Errorf("%s: the drain took %v: %v", tc.name, took, err)
			}
			kill()
			if clean := <-ended; clean != tc.clean {
				t.Errorf("%s: ended cleanly: %v", tc.name, clean)
			}
		})
	}
}

func TestEventStreamsEndSpreadOverTimeWhenTheEdgeStops(t *testing.T) {
	inBubble(t, func(c *edge.Config) { c.Streams.SSE = "close" }, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "data: hi\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		b.apply(t, one("blue-1", "blue:80"))
		took := make(chan time.Duration, 10)
		var began time.Time
		for i := range 10 {
			client := b.client
			if i%2 > 0 {
				client = b.h2c(t)
			}
			go func() {
				resp, err := client.Get("http://edge/")
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil || string(body) != "data: hi\n\n" {
					t.Errorf("%d: %q %v", i, body, err)
				}
				took <- time.Since(began)
			}()
		}
		synctest.Wait()
		began = time.Now()
		b.stop()
		least, most := time.Hour, time.Duration(0)
		for range 10 {
			d := <-took
			least, most = min(least, d), max(most, d)
		}
		if most > 15*time.Second || most-least < time.Second {
			t.Errorf("ended %v to %v after the stop", least, most)
		}
	})
}

func TestASilentEventStreamGetsHeartbeats(t *testing.T) {
	quiet := func(header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			time.Sleep(40 * time.Second)
			fmt.Fprint(w, "data: half\n")
			w.(http.Flusher).Flush()
			time.Sleep(40 * time.Second)
			fmt.Fprint(w, "data: whole\n\n")
			w.(http.Flusher).Flush()
			time.Sleep(20 * time.Second)
		}
	}
	const event, beat = "data: half\ndata: whole\n\n", ": keep-alive\n\n"
	for _, tc := range []struct {
		name   string
		header []string
		want   string
	}{
		{"plain", nil, beat + beat + event + beat},
		{"encoded", []string{"Content-Encoding", "gzip"}, event},
		{"not to be changed", []string{"Cache-Control", "no-cache, No-Transform"}, event},
	} {
		inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
			b.app(t, "blue:80", quiet(tc.header...))
			b.apply(t, one("blue-1", "blue:80"))
			for _, client := range []*http.Client{b.client, b.h2c(t)} {
				req, _ := http.NewRequest("GET", "http://edge/", nil)
				req.Header.Set("Accept-Encoding", "identity") // keeps this client from undoing it
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(body) != tc.want {
					t.Errorf("%s, HTTP/%d: %q %v", tc.name, resp.ProtoMajor, body, err)
				}
			}
		})
	}
}

func TestAHeartbeatNoticesThatTheClientHasGone(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		b.apply(t, one("blue-1", "blue:80"))
		// It neither reads nor hangs up, as one whose machine lost its power.
		c, in := b.raw(t, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if x := b.ledger.next(t, 0); x.Code != "client_gone" {
			t.Errorf("recorded %s", x.Code)
		}
		c.Close()
	})
}
