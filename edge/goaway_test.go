package edge_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"mainstay.dev/mainstay/edge"
)

// h2conn is one HTTP/2 connection, frame by frame.
type h2conn struct {
	net.Conn
	*http2.Framer
	block  bytes.Buffer
	enc    *hpack.Encoder
	goAway *http2.GoAwayFrame
	closed bool // by the edge, in order
}

func openH2(t *testing.T, c net.Conn) *h2conn {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	h := &h2conn{Conn: c, Framer: http2.NewFramer(c, bufio.NewReader(c))}
	h.enc = hpack.NewEncoder(&h.block)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *h2conn) ask(t *testing.T, stream uint32, path string) {
	t.Helper()
	h.block.Reset()
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", path}} {
		_ = h.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
}

// until reads frames until one satisfies ok, or the edge closes the connection.
func (h *h2conn) until(t *testing.T, ok func(http2.Frame) bool) {
	t.Helper()
	for {
		f, err := h.ReadFrame()
		if err != nil {
			if h.closed = errors.Is(err, io.EOF); !h.closed {
				t.Errorf("read: %v", err)
			}
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = h.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = h.WritePing(true, f.Data)
			}
		case *http2.GoAwayFrame:
			h.goAway = &http2.GoAwayFrame{LastStreamID: f.LastStreamID, ErrCode: f.ErrCode}
		}
		if ok(f) {
			return
		}
	}
}

// answer reads the whole answer on a stream.
func (h *h2conn) answer(t *testing.T, stream uint32) (body string, whole bool) {
	t.Helper()
	h.until(t, func(f http2.Frame) bool {
		if f.Header().StreamID != stream {
			return false
		}
		if d, ok := f.(*http2.DataFrame); ok {
			body += string(d.Data())
		}
		whole = f.Header().Flags.Has(http2.FlagDataEndStream)
		return whole
	})
	return body, whole
}

func secure(t *testing.T) func(*edge.Config) {
	cert, key := writeCertificate(t, "a")
	return func(c *edge.Config) { c.TLS.Listen, c.TLS.Cert, c.TLS.Key = "127.0.0.1:0", cert, key }
}

func dialBoth(t *testing.T, h *house) map[string]net.Conn {
	t.Helper()
	plain, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	coded, err := tls.Dial("tcp", h.tls, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	if p := coded.ConnectionState().NegotiatedProtocol; p != "h2" {
		t.Fatalf("the edge chose %q", p)
	}
	return map[string]net.Conn{"h2c": plain, "TLS": coded}
}

// RFC 9113, 6.8: a server that stops says so by GOAWAY, answers what it has taken,
// and closes the connection.
func TestAnEdgeThatStopsSendsGOAWAYAndFinishesItsStreams(t *testing.T) {
	h := start(t, defaults(secure(t)))
	begun, release := make(chan struct{}, 2), make(chan struct{})
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-release
		io.WriteString(w, "whole")
	}))
	conns := map[string]*h2conn{}
	for name, c := range dialBoth(t, h) {
		conns[name] = openH2(t, c)
		conns[name].ask(t, 1, "/")
		<-begun
	}
	h.stop()
	for name, c := range conns {
		c.until(t, func(http2.Frame) bool { return c.goAway != nil })
		if c.goAway == nil || c.goAway.ErrCode != http2.ErrCodeNo || c.goAway.LastStreamID < 1 {
			t.Fatalf("%s: GOAWAY %+v", name, c.goAway)
		}
	}
	close(release)
	for name, c := range conns {
		if body, whole := c.answer(t, 1); body != "whole" || !whole {
			t.Errorf("%s: %q, whole %v", name, body, whole)
		}
		c.until(t, func(http2.Frame) bool { return false })
		if !c.closed {
			t.Errorf("%s: the connection is still open", name)
		}
	}
	if err := <-h.done; err != nil {
		t.Error(err)
	}
	h.done <- nil
}

// A client's connection belongs to the edge, not to a color: its next request goes
// to the new one, and nobody is told to connect anew.
func TestASwitchLeavesTheClientsConnectionsAlone(t *testing.T) {
	h := start(t, defaults(secure(t)))
	blue := app(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "blue") })
	green := app(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "green") })
	drain := h.serve(t, blue)
	conns := map[string]*h2conn{}
	for name, c := range dialBoth(t, h) {
		conns[name] = openH2(t, c)
	}
	kept, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	in := bufio.NewReader(kept)
	for i, want := range []string{"blue", "green", "blue"} {
		for name, c := range conns {
			c.ask(t, uint32(2*i+1), "/")
			if body, _ := c.answer(t, uint32(2*i+1)); body != want || c.goAway != nil {
				t.Errorf("%s: %q, GOAWAY %v", name, body, c.goAway)
			}
		}
		fmt.Fprint(kept, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, body := read(t, in)
		if body != want || resp.Close {
			t.Errorf("kept connection: %q, closes %v", body, resp.Close)
		}
		drain = h.serve(t, map[bool]string{true: green, false: blue}[i == 0])
	}
	if err := drain(t.Context()); err != nil {
		t.Error(err)
	}
}
