package edge_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"testing"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/traffic"
)

func TestAnHTTP2StreamOutlivesItsSilence(t *testing.T) {
	inBubble(t, func(c *edge.Config) { c.Streams.Heartbeat = 0 }, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", r.URL.Query().Get("type"))
			if r.URL.Path == "/hints" {
				w.WriteHeader(http.StatusEarlyHints)
				time.Sleep(time.Minute)
			}
			fmt.Fprint(w, "first ")
			w.(http.Flusher).Flush()
			time.Sleep(4 * time.Minute)
			fmt.Fprint(w, "last")
		})
		b.apply(t, one("blue-1", "blue:80"))
		for _, path := range []string{"/?type=text/event-stream", "/?type=text/plain", "/hints?type=text/plain"} {
			resp, err := b.h2c(t).Get("http://edge" + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(body) != "first last" || resp.ProtoMajor != 2 {
				t.Errorf("%s: %q %v", path, body, err)
			}
		}
	})
}

// A client that opens no window must not hold its stream for good.
func TestAnHTTP2ClientThatDoesNotReadIsGivenUp(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10000000")
			_, _ = w.Write(make([]byte, 10_000_000))
		})
		b.apply(t, one("blue-1", "blue:80"))
		resp, err := b.h2c(t).Get("http://edge/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		time.Sleep(time.Minute)
		if x := b.ledger.next(t, 0); x.Code != "client_gone" {
			t.Errorf("recorded %s", x.Code)
		}
	})
}

func TestARefusalLeavesTheHTTP2ConnectionAlone(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.apply(t, traffic.Plan{Mode: traffic.Maintenance})
		client := b.h2c(t)
		conns := map[net.Conn]bool{}
		for range 3 {
			req, _ := http.NewRequest("GET", "http://edge/", nil)
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { conns[i.Conn] = true }})
			resp, err := client.Do(req.WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			time.Sleep(time.Second)
		}
		if len(conns) != 1 {
			t.Errorf("3 refused requests took %d connections", len(conns))
		}
	})
}
