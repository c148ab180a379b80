package edge_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/traffic"
)

// raw opens a connection to the edge, says text and returns the reader.
func (b *bubble) raw(t *testing.T, text string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := b.mem.Dial(t.Context(), "tcp", "edge:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprint(c, text); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// h2c is a client that speaks HTTP/2 without TLS.
func (b *bubble) h2c(t *testing.T) *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p, DialContext: b.mem.Dial}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// hasty is an app that answers when it has the header, whatever becomes of the
// body, and notes the paths that it was asked for.
func (b *bubble) hasty(t *testing.T, name, answer string) func() []string {
	ln := b.mem.Listen(name)
	t.Cleanup(func() { ln.Close() })
	var mu sync.Mutex
	var paths []string
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				in := bufio.NewReader(c)
				for {
					req, err := http.ReadRequest(in)
					if err != nil {
						c.Close()
						return
					}
					mu.Lock()
					paths = append(paths, req.URL.Path)
					mu.Unlock()
					go io.WriteString(c, answer)
					io.Copy(io.Discard, req.Body)
				}
			}()
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(paths)
	}
}

func read(t *testing.T, in *bufio.Reader) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// An app may refuse an upload before it has come; the client, which waits for the
// answer before it sends more, must not wait for its own silence to be noticed.
func TestAnEarlyAnswerDoesNotWaitForTheRestOfTheBody(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.hasty(t, "blue:80", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		b.apply(t, one("blue-1", "blue:80"))
		for _, framing := range []string{"Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
			began := time.Now()
			_, in := b.raw(t, "POST / HTTP/1.1\r\nHost: a\r\n"+framing)
			resp, body := read(t, in)
			if took := time.Since(began); resp.StatusCode != 403 || body != "no" || took > time.Second {
				t.Errorf("%q: %s %q after %v", framing, resp.Status, body, took)
			}
		}
	})
}

// What comes after an early answer is body still. Read as a new request, it would
// be one that whoever shares the connection never made (pause-based desync).
func TestTheRestOfABodyIsNeverTakenForARequest(t *testing.T) {
	for _, code := range []string{"answered early", "refused"} {
		for _, framing := range []string{"Content-Length: 1000", "Content-Length: 9000000", "Transfer-Encoding: chunked"} {
			for _, pause := range []time.Duration{0, time.Minute} {
				inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
					paths := b.hasty(t, "blue:80", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					if code == "answered early" {
						b.apply(t, one("blue-1", "blue:80"))
					}
					c, in := b.raw(t, "POST /first HTTP/1.1\r\nHost: a\r\n"+framing+"\r\n\r\n4\r\nhalf\r\n")
					resp, _ := read(t, in)
					if !resp.Close {
						t.Errorf("%s, %s: the client is not told that the connection ends", code, framing)
					}
					time.Sleep(pause)
					_ = c.SetDeadline(time.Now().Add(time.Minute))
					_, err := fmt.Fprint(c, "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
					if err == nil {
						_, err = in.ReadByte()
					}
					if err == nil || strings.Contains(strings.Join(paths(), " "), "smuggled") {
						t.Errorf("%s, %s: the connection lives on (%v); the app saw %v", code, framing, err, paths())
					}
				})
			}
		}
	}
}

// A client that never sends the body it announced must not hold the connection
// after it has had its answer.
func TestARefusedClientThatKeepsItsBodyIsHungUpOn(t *testing.T) {
	for what, plan := range map[string]traffic.Plan{"408": one("blue-1", "blue:80"), "503": {Mode: traffic.Maintenance}} {
		inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
			b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
			b.apply(t, plan)
			c, in := b.raw(t, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
			if resp, _ := read(t, in); fmt.Sprint(resp.StatusCode) != what {
				t.Fatalf("%s: got %s", what, resp.Status)
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("%s: still open after a minute: %v", what, err)
			}
		})
	}
}

func TestABodyThatIsNotFramedAsHTTPIsABadRequest(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
		b.apply(t, one("blue-1", "blue:80"))
		_, in := b.raw(t, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n")
		resp, _ := read(t, in)
		if resp.StatusCode != 400 || resp.Header.Get("Mainstay-Code") != "bad_request" || !resp.Close {
			t.Errorf("%s %v", resp.Status, resp.Header)
		}
	})
}

// net/http ends a handler that has written nothing with 200 OK. A client that only
// closed its sending side would read that as the app's answer.
func TestAClientThatHalfClosesIsNotToldOK(t *testing.T) {
	h := start(t, defaults())
	inside := make(chan struct{}, 2)
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	for i, text := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf"} {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, text)
		<-inside
		_ = c.(*net.TCPConn).CloseWrite()
		if got, _ := io.ReadAll(c); len(got) > 0 {
			t.Errorf("%q was answered %q", text, got)
		}
		if x := h.ledger.next(t, i); x.Code != "client_gone" || x.HTTP.Status != 499 {
			t.Errorf("%q: recorded %s %d", text, x.Code, x.HTTP.Status)
		}
	}
}

func TestABodyThatWasReadWholeKeepsTheConnection(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		b.apply(t, one("blue-1", "blue:80"))
		c, in := b.raw(t, "")
		for framing, want := range map[string]string{"Content-Length: 4\r\n\r\nbody": "body", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n": "body", "\r\n": ""} {
			fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\n"+framing)
			if resp, body := read(t, in); resp.Close || resp.StatusCode != 200 || body != want {
				t.Errorf("%q: %s, close %v, %q", framing, resp.Status, resp.Close, body)
			}
			time.Sleep(time.Minute) // nothing of the request may end the idle connection
		}
	})
}

// The target takes the connection and never reads: the deadline for the answer
// only begins when the request is sent, so sending needs one of its own.
func TestATargetThatDoesNotReadIsGivenUp(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		ln := b.mem.Listen("blue:80")
		defer ln.Close()
		go func() {
			for {
				if _, err := ln.Accept(); err != nil {
					return
				}
			}
		}()
		b.apply(t, one("blue-1", "blue:80"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if status, code, body := b.get(ctx); status != 504 || code != "target_timeout" {
			t.Errorf("%d %s %s", status, code, body)
		}
	})
}

// The body outlives the request for a moment in the transport's hands.
func TestAnHTTP2UploadThatIsAnsweredEarlyHarmsNothing(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.hasty(t, "blue:80", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nenough")
		b.apply(t, one("blue-1", "blue:80"))
		client := b.h2c(t)
		for range 20 {
			pr, pw := io.Pipe()
			req, _ := http.NewRequest("POST", "http://edge/", pr)
			go io.WriteString(pw, "some of it")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "enough" {
				t.Errorf("%q %v", body, err)
			}
			resp.Body.Close()
			pw.Close()
			synctest.Wait()
		}
	})
}
