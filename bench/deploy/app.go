package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

const (
	bigSize  = 100_000_000
	dripFor  = 30 * time.Second
	slowFor  = 8 * time.Second
	pieceLen = 64 << 10

	beforeFirst = 3 * time.Second // from the beginning of the load to the first switch
)

// piece is the n-th part of what is downloaded.
func piece(n int) []byte {
	b := make([]byte, pieceLen)
	for i := range b {
		b[i] = byte(i*7 + n*13 + i>>8)
	}
	return b
}

// bigHash is the hash of the whole download.
func bigHash() string {
	h := sha256.New()
	for n, left := 0, bigSize; left > 0; n++ {
		p := piece(n)
		k := min(left, len(p))
		h.Write(p[:k])
		left -= k
	}
	return hex.EncodeToString(h.Sum(nil))
}

// app is one version of the app on a port of its own.
func app(version string) (addr string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, version) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		fmt.Fprint(w, version)
	})
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, n)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(bigSize))
		for n, left := 0, bigSize; left > 0; n++ {
			p := piece(n)
			k, err := w.Write(p[:min(left, len(p))])
			if err != nil {
				return
			}
			left -= k
		}
	})
	mux.HandleFunc("/drip", drip)
	mux.HandleFunc("/sse", sse)
	mux.HandleFunc("/ws", ws)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(ln) }() // ends with the process
	return ln.Addr().String(), nil
}

// drip answers for half a minute, a little at a time, and ends with the hash.
func drip(w http.ResponseWriter, _ *http.Request) {
	h := sha256.New()
	for n := range int(dripFor / (100 * time.Millisecond)) {
		line := fmt.Sprintf("line %d\n", n)
		h.Write([]byte(line))
		if _, err := io.WriteString(w, line); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Fprint(w, hex.EncodeToString(h.Sum(nil)))
}

// sse streams numbered events, from the one after the client's last.
func sse(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.Header.Get("Last-Event-ID"))
	w.Header().Set("Content-Type", "text/event-stream")
	for n++; r.Context().Err() == nil; n++ {
		fmt.Fprintf(w, "id: %d\ndata: %d\n\n", n, n)
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// ws says a number five times a second.
func ws(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	ctx := c.CloseRead(r.Context())
	for n := 0; ctx.Err() == nil; n++ {
		if c.Write(ctx, websocket.MessageText, []byte(strconv.Itoa(n))) != nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}
