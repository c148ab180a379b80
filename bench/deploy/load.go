package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// sample is one plain request.
type sample struct {
	at, took time.Duration // since the beginning of the run
	version  string
}

// load is what one proxy is put under, and what came of it. It is open: a request
// is sent when its time has come, whether or not those before were answered.
type load struct {
	base  string
	began time.Time
	http1 *http.Client
	http2 *http.Client // nil: the proxy is not asked by HTTP/2

	requests, failed       atomic.Int64
	slow, slowLost         atomic.Int64
	wsCut, wsTold          atomic.Int64
	sseCut, sseTold, holes atomic.Int64

	mu      sync.Mutex
	samples []sample
	first   []string // the first failures
	big     string   // "equal" or what went wrong
	drip    string
}

func newLoad(addr string, h2 bool) *load {
	l := &load{base: "http://" + addr, began: time.Now()}
	l.http1 = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}, Timeout: 60 * time.Second}
	if h2 {
		p := new(http.Protocols)
		p.SetUnencryptedHTTP2(true)
		l.http2 = &http.Client{Transport: &http.Transport{Protocols: p}, Timeout: 60 * time.Second}
	}
	return l
}

func (l *load) fail(what string, err error) {
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.first) < 5 {
		l.first = append(l.first, fmt.Sprintf("%s at %v: %v", what, time.Since(l.began).Round(time.Millisecond), err))
	}
}

// run drives everything until ctx ends, and waits for what was begun.
func (l *load) run(ctx context.Context) {
	var wg sync.WaitGroup
	every := func(perSecond int, send func()) {
		wg.Go(func() {
			tick := time.NewTicker(time.Second / time.Duration(perSecond))
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					wg.Go(send)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	every(200, func() { l.plain(l.http1) })
	if l.http2 != nil {
		every(50, func() { l.plain(l.http2) })
	}
	every(5, func() { l.expect("slow answer", "GET", "/slow?ms=700", nil, "") })
	payload := bytes.Repeat([]byte("x"), 200_000)
	every(5, func() { // of unknown length, so in chunks
		l.expect("upload", "POST", "/upload", io.MultiReader(bytes.NewReader(payload)), strconv.Itoa(len(payload)))
	})
	for range 40 {
		wg.Go(func() { l.socket(ctx) })
	}
	for range 20 {
		wg.Go(func() { l.events(ctx) })
	}
	for range 10 {
		wg.Go(func() {
			time.Sleep(beforeFirst / 2)
			l.slow.Add(1)
			if _, err := l.ask(l.http1, "GET", "/slow?ms="+strconv.Itoa(int(slowFor.Milliseconds())), nil); err != nil {
				l.slowLost.Add(1)
			}
		})
	}
	wg.Go(l.download)
	wg.Go(l.follow)
	wg.Wait()
}

func (l *load) ask(c *http.Client, method, path string, body io.Reader) (string, error) {
	req, err := http.NewRequest(method, l.base+path, body)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status + " " + resp.Header.Get("Mainstay-Code"))
	}
	return string(b), err
}

func (l *load) plain(c *http.Client) {
	at := time.Since(l.began)
	l.requests.Add(1)
	version, err := l.ask(c, "GET", "/", nil)
	if err != nil {
		l.fail("request", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, sample{at, time.Since(l.began) - at, version})
}

func (l *load) expect(what, method, path string, body io.Reader, want string) {
	l.requests.Add(1)
	got, err := l.ask(l.http1, method, path, body)
	if err == nil && want != "" && got != want {
		err = fmt.Errorf("answered %.40q", got)
	}
	if err != nil {
		l.fail(what, err)
	}
}

// socket keeps a WebSocket, and opens another when it ends. One that ends without
// a close frame that says so was cut.
func (l *load) socket(ctx context.Context) {
	for ctx.Err() == nil {
		c, _, err := websocket.Dial(ctx, strings.Replace(l.base, "http", "ws", 1)+"/ws", nil)
		if err != nil {
			if ctx.Err() == nil {
				l.fail("WebSocket", err)
				time.Sleep(100 * time.Millisecond)
			}
			continue
		}
		for err == nil {
			_, _, err = c.Read(ctx)
		}
		_ = c.CloseNow()
		switch {
		case ctx.Err() != nil:
		case websocket.CloseStatus(err) == websocket.StatusGoingAway:
			l.wsTold.Add(1)
		default:
			l.wsCut.Add(1)
		}
	}
}

// events keeps an event stream, and goes on where it ended. One that ends within
// an event, or not in order, was cut.
func (l *load) events(ctx context.Context) {
	last := 0
	for ctx.Err() == nil {
		req, _ := http.NewRequestWithContext(ctx, "GET", l.base+"/sse", nil)
		req.Header.Set("Last-Event-ID", strconv.Itoa(last))
		resp, err := (&http.Client{Transport: l.http1.Transport}).Do(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			if ctx.Err() == nil {
				l.fail("event stream", cmpErr(err, resp))
				time.Sleep(100 * time.Millisecond)
			}
			continue
		}
		in, open := bufio.NewScanner(resp.Body), false
		for in.Scan() {
			if text, ok := strings.CutPrefix(in.Text(), "data: "); ok {
				n, _ := strconv.Atoi(text)
				if n != last+1 {
					l.holes.Add(1)
				}
				last, open = n, true
			} else if in.Text() == "" {
				open = false
			}
		}
		resp.Body.Close()
		switch {
		case ctx.Err() != nil:
		case in.Err() != nil || open:
			l.sseCut.Add(1)
		default:
			l.sseTold.Add(1)
		}
	}
}

func cmpErr(err error, resp *http.Response) error {
	if err != nil {
		return err
	}
	resp.Body.Close()
	return errors.New(resp.Status)
}

// download takes 100 MB in about 20 seconds.
func (l *load) download() {
	l.big = func() string {
		resp, err := l.http1.Get(l.base + "/big")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		h := sha256.New()
		for err == nil {
			_, err = io.CopyN(h, resp.Body, bigSize/100)
			time.Sleep(200 * time.Millisecond)
		}
		if !errors.Is(err, io.EOF) {
			return err.Error()
		}
		return equal(hex.EncodeToString(h.Sum(nil)) == bigHash())
	}()
}

// follow reads the stream of half a minute.
func (l *load) follow() {
	l.drip = func() string {
		text, err := l.ask(l.http1, "GET", "/drip", nil)
		if err != nil {
			return err.Error()
		}
		i := strings.LastIndexByte(text, '\n') + 1
		sum := sha256.Sum256([]byte(text[:i]))
		return equal(hex.EncodeToString(sum[:]) == text[i:])
	}()
}

func equal(same bool) string {
	if same {
		return "equal"
	}
	return "another hash"
}

// aflip is one switch.
type aflip struct {
	begun, done time.Duration
	to          string
}

// judge tells the p99 of requests near a switch, how long after its beginning the
// new version was first seen (the median), and how many requests that began after
// its end saw the old one.
func (l *load) judge(flips []aflip) (p99, fresh time.Duration, stale int) {
	const near = 250 * time.Millisecond
	var window, firsts []time.Duration
	slices.SortFunc(l.samples, func(a, b sample) int { return int(a.at - b.at) })
	for i, f := range flips {
		until := f.done + time.Hour
		if i+1 < len(flips) {
			until = flips[i+1].begun
		}
		from, _ := slices.BinarySearchFunc(l.samples, f.begun-near, func(s sample, at time.Duration) int { return int(s.at - at) })
		seen := false
		for _, s := range l.samples[from:] {
			if s.at > until {
				break
			}
			if s.at < f.done+near {
				window = append(window, s.took)
			}
			if s.at >= f.begun && s.version == f.to && !seen {
				seen = true
				firsts = append(firsts, s.at+s.took-f.begun)
			}
			if s.at > f.done && s.at+s.took < until && s.version != f.to {
				stale++
			}
		}
	}
	return quantile(window, 0.99), quantile(firsts, 0.5), stale
}

func quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	slices.Sort(ds)
	return ds[min(len(ds)-1, int(q*float64(len(ds))))]
}
