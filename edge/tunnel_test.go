package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/traffic"
)

// webSocket opens one through the edge; the app says hi, in two pieces a second apart.
func (b *bubble) webSocket(t *testing.T) (rest chan string) {
	t.Helper()
	c, err := b.mem.Dial(t.Context(), "tcp", "edge:80")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	rest = make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(r)
		c.Close()
		rest <- string(all)
	}()
	return rest
}

func chat(w http.ResponseWriter, r *http.Request) { tunnelOf("websocket")(w, r) }

// tunnelOf is an app that takes what comes and says nothing.
func tunnelOf(protocol string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n")
		rw.Flush()
		io.Copy(io.Discard, c)
	}
}

func TestTunnelsOfARetiredTargetGetACloseFrameSpreadOverTime(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", chat)
		b.app(t, "green:80", echo("green"))
		b.apply(t, one("blue-1", "blue:80"))
		var open []chan string
		for range 10 {
			open = append(open, b.webSocket(t))
		}
		p := one("green-2", "green:80")
		p.Targets = append(p.Targets, traffic.Target{ID: "blue-1", Address: "blue:80", Color: "blue", Backup: true})
		b.apply(t, p)
		time.Sleep(time.Hour)
		synctest.Wait()
		for _, rest := range open {
			select {
			case got := <-rest:
				t.Fatalf("a tunnel was ended by a switch: %x", got)
			default:
			}
		}
		drain := b.apply(t, one("green-2", "green:80"))
		began := time.Now()
		if err := drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took <= time.Second || took > 26*time.Second {
			t.Errorf("ended after %v", took)
		}
		for i, rest := range open {
			if got := <-rest; !bytes.Equal([]byte(got), []byte{0x88, 2, 0x03, 0xe9}) {
				t.Errorf("got %x", got)
			}
			if x := b.ledger.next(t, i); x.Code != "ok" || x.HTTP.Upgraded != "websocket" {
				t.Errorf("recorded %s", x.Code)
			}
		}
	})
}

func TestATunnelThatRidesEndsAtTheDrainLimitAndIsToldSo(t *testing.T) {
	inBubble(t, func(c *edge.Config) { c.Streams.WebSocket = "ride" }, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", chat)
		b.apply(t, one("blue-1", "blue:80"))
		for _, stop := range []func(){
			func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				_ = b.apply(t, traffic.Plan{Mode: traffic.Hold})(ctx)
				b.apply(t, one("blue-2", "blue:80"))
			},
			b.stop,
		} {
			rest := b.webSocket(t)
			began := time.Now()
			stop()
			if got, took := <-rest, time.Since(began); got != "\x88\x02\x03\xe9" || took < 30*time.Second || took > 35*time.Second {
				t.Errorf("got %x after %v", got, took)
			}
		}
	})
}

func TestATunnelThatCanBeToldNothingIsCutAtTheDrainLimitAndRecordedSo(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", tunnelOf("foo"))
		b.apply(t, one("blue-1", "blue:80"))
		_, in := b.raw(t, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n")
		if resp, _ := read(t, in); resp.StatusCode != 101 {
			t.Fatal(resp.Status)
		}
		b.stop()
		if rest, _ := io.ReadAll(in); len(rest) > 0 {
			t.Errorf("got %x", rest)
		}
		if x := b.ledger.next(t, 0); x.Code != "stopping" {
			t.Errorf("recorded %s", x.Code)
		}
	})
}

func TestAnEdgeThatStopsSaysSoToTunnelsAndKeptConnections(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				chat(w, r)
				return
			}
			time.Sleep(10 * time.Second)
		})
		b.apply(t, one("blue-1", "blue:80"))
		rest := b.webSocket(t)
		kept := &http.Client{Transport: &http.Transport{DialContext: b.mem.Dial}}
		closes := make(chan bool, 1)
		go func() {
			resp, err := kept.Get("http://edge/")
			if err != nil {
				t.Error(err)
				closes <- false
				return
			}
			resp.Body.Close()
			closes <- resp.Close
		}()
		synctest.Wait()
		b.stop()
		if !<-closes {
			t.Error("the answer does not say Connection: close")
		}
		if got := <-rest; got != "\x88\x02\x03\xe9" {
			t.Errorf("got %x", got)
		}
		if x := b.ledger.next(t, 1); x.Code != "ok" {
			t.Errorf("recorded %s", x.Code)
		}
	})
}
