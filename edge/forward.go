package edge

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// discardLog silences the reverse proxy: what it would say is in the record.
var discardLog = log.New(io.Discard, "", 0)

// forward carries the request to t and the answer back. OK means that an answer
// was passed on; any other code that nothing has been answered yet. It gives the
// place on t back, also when the answer breaks off and net/http unwinds the stack.
func (l *lane) forward(t *target) (Code, error) {
	defer t.leave()
	l.target, l.code, l.err = t, OK, nil
	l.x.Color, l.x.HTTP.Target = t.color, t.address
	began := time.Now()
	defer func() {
		l.x.Try(telemetry.Attempt{Start: began, Took: time.Since(began), Target: t.address, Status: l.x.HTTP.Status, Cause: causeOf(l.code)})
	}()
	hr := l.hr
	if l.up != nil {
		hr.Body = &try{upload: l.up}
	}
	l.proxy.ServeHTTP(&l.out, hr)
	return l.code, l.err
}

func causeOf(c Code) string {
	if c == OK {
		return ""
	}
	return string(c)
}

// RoundTrip makes the lane the reverse proxy's transport.
func (l *lane) RoundTrip(r *http.Request) (*http.Response, error) {
	return l.target.transport.RoundTrip(r)
}

// untold are the headers in which a proxy tells of the client, and those that
// make some frameworks serve another path than the one that was asked for. From a
// peer that nobody trusts they are lies until shown otherwise.
var untold = []string{
	"X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "True-Client-Ip", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "Fastly-Client-Ip",
	"X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Server", "X-Forwarded-Ssl", "X-Forwarded-Scheme", "X-Forwarded-Path",
	"X-Original-Url", "X-Original-Host", "X-Rewrite-Url", "X-Scheme", "Front-End-Https",
}

// rewrite turns the client's request into the one for the target. The reverse
// proxy has removed hop-by-hop and X-Forwarded headers from the copy already.
func (l *lane) rewrite(pr *httputil.ProxyRequest) {
	out, h := pr.Out, pr.Out.Header
	out.URL.Scheme, out.URL.Host = "http", l.target.address
	out.URL.RawQuery = pr.In.URL.RawQuery // as it came: the app is the one to judge it
	out.Host = l.Host

	peer := l.x.Caller
	if l.Peer != l.Client {
		peer = l.Peer.String()
	}
	proto, host := "http", l.Host
	if l.Secure {
		proto = "https"
	}
	chain, elements := peer, ""
	if l.Trusted {
		if p := l.header("X-Forwarded-Proto"); p == "http" || p == "https" {
			proto = p
		}
		if f := l.header("X-Forwarded-Host"); f != "" {
			host = f
		}
		if f := l.header("X-Forwarded-For"); f != "" {
			chain = f + ", " + peer
		}
		if f := l.header("Forwarded"); f != "" {
			elements = f + ", "
		}
	} else {
		for _, name := range untold {
			delete(h, name)
		}
	}
	// One array for all values: they may be read after the lane has gone back to
	// its pool, so they cannot be the lane's.
	values := [...]string{chain, proto, host, l.x.Caller, elements + element(l.Peer.Is6(), peer, host, proto), l.ID, l.x.Trace.Traceparent()}
	for i, name := range told {
		h[name] = values[i : i+1 : i+1]
	}
	if l.x.Trace.State == "" {
		delete(h, "Tracestate")
	}
}

// set is http.Header.Set for a name that is canonical already.
func set(h http.Header, name, value string) { h[name] = []string{value} }

// told are the headers that rewrite sets, in the order of its values.
var told = [...]string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-Ip", "Forwarded", "X-Request-Id", "Traceparent"}

// element is this hop's part of the Forwarded header (RFC 7239).
func element(is6 bool, peer, host, proto string) string {
	if is6 {
		peer = `"[` + peer + `]"`
	}
	if strings.ContainsAny(host, `"\`) { // no host has one; a forged X-Forwarded-Host may
		host = strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(host)
	}
	return "for=" + peer + `;host="` + host + `";proto=` + proto
}

// answered sees the target's answer before its header is passed on.
func (l *lane) answered(resp *http.Response) error {
	x := l.x
	x.FirstByte = time.Since(x.Start)
	resp.Header.Del("Mainstay-Code") // ours alone
	if resp.Header.Get("X-Request-Id") == "" {
		set(resp.Header, "X-Request-Id", l.ID)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		x.HTTP.Upgraded = strings.ToLower(resp.Header.Get("Upgrade"))
		x.HTTP.Status = resp.StatusCode // the reverse proxy writes it past us
		return nil
	}
	if x.HTTP.Stream = strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"); !x.HTTP.Stream {
		resp.Body = watch(resp.Body, l.s.policy.Load().cfg.Timeouts.Stall)
	}
	return nil
}

// failed is called in place of an answer. It writes none: ServeHTTP decides
// whether another target is tried.
func (l *lane) failed(_ http.ResponseWriter, hr *http.Request, err error) {
	l.code, l.err = l.classify(hr.Context(), err), err
}

func (l *lane) classify(ctx context.Context, err error) Code {
	_, uploaded := l.up.result()
	if uploaded != "" && uploaded != ClientGone {
		return uploaded
	}
	if ctx.Err() != nil || uploaded == ClientGone {
		return ClientGone
	}
	if _, ok := errors.AsType[*dialError](err); ok {
		return TargetUnreachable
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return TargetTimeout
	}
	return TargetBroke
}

// watched is an answer's body that is given up when the target falls silent in
// the middle of it.
type watched struct {
	io.ReadCloser
	limit time.Duration
	timer *time.Timer
}

func watch(body io.ReadCloser, limit time.Duration) io.ReadCloser {
	if body == http.NoBody {
		return body
	}
	return &watched{body, limit, nil}
}

func (w *watched) Read(p []byte) (int, error) {
	if w.timer == nil {
		w.timer = time.AfterFunc(w.limit, func() { w.ReadCloser.Close() })
	} else {
		w.timer.Reset(w.limit)
	}
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	return n, err
}
