package edge_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/edge/edgetest"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
)

// larder is an edge in a bubble that keeps answers for an hour after they are fresh. A
// caller, told by its address, may ask once an hour; what comes after is beyond its
// limit.
type larder struct {
	*bubble
	t     *testing.T
	gate  *limits.Gate
	asked atomic.Int64 // requests that the app saw
	next  int          // the next address that has not asked yet
	cfg   limits.Config
}

// inLarder runs f with an app that answers with the headers and the status that the
// request names in X-Answer ("Name: value|Name: value", "Status: 404").
func inLarder(t *testing.T, change func(*edge.Config, *limits.Config), f func(*larder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &larder{t: t, bubble: &bubble{mem: edgetest.NewNetwork(), ledger: &ledger{}, done: make(chan error, 1)}}
		l.gate = gate(t, func(c *limits.Config) {
			c.Tiers["free"] = limits.Tier{Requests: 1, Window: time.Hour}
			c.Degrade.Stale.For = time.Hour
			c.Allow = []string{"address:10.0.0.1"}
			l.cfg = *c
		})
		cfg := defaults()
		if change != nil {
			change(&cfg, &l.cfg)
			g, err := limits.NewGate(l.cfg, limits.Deps{})
			if err != nil {
				t.Fatal(err)
			}
			l.gate = g
		}
		s, err := edge.New(cfg, edge.Deps{Listener: l.mem.Listen("edge:80"), Dial: l.mem.Dial, Sink: l.ledger, Limits: l.gate,
			Identity: desk(t, func(c *identity.Config) { c.TrustedProxies, c.Rewriting = []string{"loopback"}, []string{"loopback"} })})
		if err != nil {
			t.Fatal(err)
		}
		l.Server = s
		ctx, cancel := context.WithCancel(t.Context())
		go func() { l.done <- s.Run(ctx) }()
		l.client = &http.Client{Transport: &http.Transport{DialContext: l.mem.Dial, DisableKeepAlives: true, DisableCompression: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		l.app(t, "blue:80", l.answer)
		l.apply(t, one("blue-1", "blue:80"))
		f(l)
		cancel()
		if err := <-l.done; err != nil {
			t.Error(err)
		}
	})
}

func (l *larder) answer(w http.ResponseWriter, r *http.Request) {
	n := l.asked.Add(1)
	status := 200
	for line := range strings.SplitSeq(r.Header.Get("X-Answer"), "|") {
		switch name, value, _ := strings.Cut(line, ": "); name {
		case "":
		case "Status":
			status, _ = strconv.Atoi(value)
		case "Size":
			size, _ := strconv.Atoi(value)
			defer func() { _, _ = w.Write(make([]byte, size)) }()
		case "Break": // after the beginning
			defer panic(http.ErrAbortHandler)
		default:
			w.Header().Add(name, value)
		}
	}
	w.WriteHeader(status)
	if status != 204 && status != 304 {
		fmt.Fprintf(w, "answer %d", n)
	}
}

// ask sends a request from an address. line is "GET /path" or "GET host/path"; headers
// are pairs.
func (l *larder) ask(from, line string, headers ...string) (resp *http.Response, body string) {
	l.t.Helper()
	method, where, _ := strings.Cut(line, " ")
	host, path, _ := strings.Cut(where, "/")
	var send io.Reader
	if len(headers) > 0 && headers[0] == "Body" {
		send, headers = strings.NewReader(headers[1]), headers[2:]
	}
	req, err := http.NewRequestWithContext(l.t.Context(), method, "http://edge/"+path, send)
	if err != nil {
		l.t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	req.Header.Set("X-Forwarded-For", from)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	if resp, err = l.client.Do(req); err != nil {
		return nil, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp, err.Error()
	}
	return resp, string(b)
}

// fill asks the app in the name of somebody who is never limited.
func (l *larder) fill(line, answer string, headers ...string) (body string) {
	l.t.Helper()
	_, body = l.ask("10.0.0.1", line, append(headers, "X-Answer", answer)...)
	return body
}

// beyond asks in the name of somebody who is over the limit, and makes sure that the app
// does not see it.
func (l *larder) beyond(line string, headers ...string) (resp *http.Response, body string) {
	l.t.Helper()
	l.next++
	from := fmt.Sprintf("10.1.%d.%d", l.next/250, l.next%250+1)
	l.ask(from, "OPTIONS /nothing")
	seen := l.asked.Load()
	resp, body = l.ask(from, line, headers...)
	if l.asked.Load() != seen {
		l.t.Errorf("%s: the app was asked", line)
	}
	return resp, body
}

// status is what somebody beyond the limit gets.
func (l *larder) status(line string, headers ...string) int {
	l.t.Helper()
	resp, _ := l.beyond(line, headers...)
	return resp.StatusCode
}

func TestACallerOverItsLimitGetsWhatIsKept(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		first := l.fill("GET /list", `Cache-Control: max-age=60|ETag: "v1"|Content-Type: application/json|X-RateLimit-Limit: 7|X-Request-Id: theirs`)
		time.Sleep(10 * time.Second)
		for _, at := range []struct {
			wait                time.Duration
			age, status, detail string
		}{{0, "10", "ttl=50", "limited"}, {80 * time.Second, "90", "ttl=-30", "stale-limited"}} {
			time.Sleep(at.wait)
			resp, body := l.beyond("GET /list")
			if resp.StatusCode != 200 || body != first {
				t.Fatalf("%d %q, want %q", resp.StatusCode, body, first)
			}
			for name, want := range map[string]string{
				"Age": at.age, "Cache-Status": "Mainstay; hit; " + at.status + "; detail=" + at.detail, "Cache-Control": "no-store", "Etag": `"v1"`, "Content-Type": "application/json",
				"Content-Length": fmt.Sprint(len(first)), "Retry-After": "", "Mainstay-Code": "", "X-Ratelimit-Remaining": "0", "X-Ratelimit-Limit": "1", "Ratelimit-Policy": `"address";q=1;w=3600`,
			} {
				if got := strings.Join(resp.Header[name], "!"); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if !strings.HasPrefix(resp.Header.Get("Ratelimit"), `"address";r=0;t=`) || resp.Header.Get("X-Request-Id") == "theirs" || resp.Header.Get("Date") == "" {
				t.Errorf("%v", resp.Header)
			}
		}
		resp, _ := l.beyond("GET /other")
		if resp.StatusCode != 429 || resp.Header.Get("Mainstay-Code") != "limited" || resp.Header.Get("Retry-After") == "" {
			t.Errorf("nothing is kept of it: %d %v", resp.StatusCode, resp.Header)
		}
		time.Sleep(time.Hour)
		if got := l.status("GET /list"); got != 429 {
			t.Errorf("after fresh and stale: %d", got)
		}
		x := l.ledger.next(t, 2)
		if x.Code != "limited" || x.HTTP.Status != 200 || x.HTTP.Cache != "stale" || x.Err == nil || x.BytesOut != int64(len(first)) || x.Tries != 0 {
			t.Errorf("recorded as %+v", x)
		}
		if x = l.ledger.next(t, 6); x.HTTP.Status != 429 || x.HTTP.Cache != "" {
			t.Errorf("a refusal is recorded as %d from %q", x.HTTP.Status, x.HTTP.Cache)
		}
		st := l.Stats().Kept
		if st.Given["limited"] != 2 || st.Missed["limited"] != 2 || st.Stored != 1 || st.Weight != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAKeptAnswerHeedsConditionsAndHEAD(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		l.fill("GET /list", `Cache-Control: max-age=60|ETag: "v1"|Last-Modified: Mon, 02 Jan 2006 15:04:05 GMT|Content-Type: text/plain`)
		for name, tc := range map[string]struct {
			headers []string
			status  int
		}{
			"the same tag":            {[]string{"If-None-Match", `"v0", W/"v1"`}, 304},
			"another tag":             {[]string{"If-None-Match", `"v0"`}, 200},
			"not since":               {[]string{"If-Modified-Since", "Mon, 02 Jan 2006 15:04:05 GMT"}, 304},
			"since":                   {[]string{"If-Modified-Since", "Mon, 02 Jan 2006 15:04:04 GMT"}, 200},
			"the app's to judge":      {[]string{"If-Match", `"v1"`}, 429},
			"the app's to judge, too": {[]string{"If-Unmodified-Since", "Mon, 02 Jan 2006 15:04:05 GMT"}, 429},
			"a part":                  {[]string{"Range", "bytes=0-1"}, 200},
		} {
			resp, body := l.beyond("GET /list", tc.headers...)
			if resp.StatusCode != tc.status || tc.status == 200 && body != "answer 1" {
				t.Errorf("%s: %d %q", name, resp.StatusCode, body)
			}
			if tc.status == 304 && (body != "" || resp.Header.Get("Etag") != `"v1"` || resp.Header.Get("Content-Type") != "" || resp.Header.Get("Age") != "0" || resp.Header.Get("Ratelimit") == "") {
				t.Errorf("%s: %q %v", name, body, resp.Header)
			}
		}
		if resp, body := l.beyond("HEAD /list"); resp.StatusCode != 200 || body != "" || resp.ContentLength != 8 {
			t.Errorf("HEAD: %d %q, length %d", resp.StatusCode, body, resp.ContentLength)
		}
	})
}

// What is kept of one request, and who may have it.
func TestNobodyGetsAnAnswerThatIsNotMeantForHim(t *testing.T) {
	h := func(pairs ...string) []string { return pairs }
	const lasting = "Cache-Control: max-age=60"
	key := h("X-Api-Key", apiKey)
	for _, tc := range []struct {
		name   string
		first  string
		sent   []string // with the first request
		answer string
		then   string
		sends  []string // with the second
		want   int
	}{
		{"a lifetime", "GET /a", nil, lasting, "GET /a", nil, 200},
		{"a redirect", "GET /a", nil, lasting + "|Status: 301|Location: /b", "GET /a", nil, 301},
		{"a page that is not there", "GET /a", nil, lasting + "|Status: 404", "GET /a", nil, 404},
		{"no content", "GET /a", nil, lasting + "|Status: 204", "GET /a", nil, 204},
		{"nothing said", "GET /a", nil, "", "GET /a", nil, 429},
		{"private", "GET /a", nil, "Cache-Control: private, max-age=60", "GET /a", nil, 429},
		{"no-store", "GET /a", nil, "Cache-Control: public, no-store", "GET /a", nil, 429},
		{"no-cache", "GET /a", nil, "Cache-Control: public, no-cache", "GET /a", nil, 429},
		{"a cookie is set", "GET /a", nil, "Cache-Control: public, max-age=60|Set-Cookie: a=b", "GET /a", nil, 429},
		{"an error", "GET /a", nil, lasting + "|Status: 500", "GET /a", nil, 429},
		{"events", "GET /a", nil, lasting + "|Content-Type: text/event-stream", "GET /a", nil, 429},
		{"a body beyond the limit", "GET /a", nil, lasting + "|Size: 1000001", "GET /a", nil, 429},
		{"a header beyond the limit", "GET /a", nil, lasting + "|X-Large: " + strings.Repeat("x", 32000), "GET /a", nil, 429},
		{"an answer that broke off", "GET /a", nil, lasting + "|Content-Length: 100|Break: 1", "GET /a", nil, 429},

		{"another path", "GET /a", nil, lasting, "GET /b", nil, 429},
		{"another spelling", "GET /a", nil, lasting, "GET /%61", nil, 429},
		{"another query", "GET /a?x=1", nil, lasting, "GET /a?x=2", nil, 429},
		{"an empty query", "GET /a", nil, lasting, "GET /a?", nil, 429},
		{"another host", "GET one.example/a", nil, lasting, "GET two.example/a", nil, 429},
		{"the same host", "GET one.example/a", nil, lasting, "GET ONE.example/a", nil, 200},
		{"another host, says a proxy", "GET /a", h("X-Forwarded-Host", "one.example"), lasting, "GET /a", h("X-Forwarded-Host", "two.example"), 429},
		{"another scheme, says a proxy", "GET /a", h("X-Forwarded-Proto", "https"), lasting, "GET /a", nil, 429},
		{"another path, says a proxy", "GET /a", h("X-Original-Url", "/b"), lasting, "GET /a", nil, 429},
		{"asked for another path by a proxy", "GET /a", nil, lasting, "GET /a", h("X-Original-Url", "/b"), 429},

		{"another language", "GET /a", h("Accept-Language", "de"), lasting + "|Vary: accept-language", "GET /a", h("Accept-Language", "en"), 429},
		{"no language", "GET /a", h("Accept-Language", "de"), lasting + "|Vary: accept-language", "GET /a", nil, 429},
		{"the same language", "GET /a", h("Accept-Language", "de"), lasting + "|Vary: accept-language", "GET /a", h("Accept-Language", "de"), 200},
		{"it varies in everything", "GET /a", nil, lasting + "|Vary: *", "GET /a", nil, 429},
		{"it varies in what a proxy says", "GET /a", nil, lasting + "|Vary: X-Forwarded-For", "GET /a", nil, 429},
		{"it varies in who asks", "GET /a", nil, lasting + "|Vary: Mainstay-Identity", "GET /a", nil, 429},
		{"it varies in cookies, of which there are none", "GET /a", nil, lasting + "|Vary: Accept, Cookie", "GET /a", nil, 200},
		{"it varies in cookies, and now there is one", "GET /a", nil, "Cache-Control: public|Vary: Cookie", "GET /a", h("Cookie", "a=b"), 429},
		{"it varies in cookies", "GET /a", h("Cookie", "a=b"), "Cache-Control: public|Vary: Cookie", "GET /a", h("Cookie", "a=b"), 429},
		{"an encoding of which it does not tell", "GET /a", h("Accept-Encoding", "br"), lasting + "|Content-Encoding: br", "GET /a", nil, 429},
		{"an origin of which it does not tell", "GET /a", h("Origin", "https://one.example"), lasting + "|Access-Control-Allow-Origin: https://one.example", "GET /a", h("Origin", "https://two.example"), 429},
		{"a part of a Next.js page", "GET /a", h("Rsc", "1"), lasting, "GET /a", nil, 429},
		{"a page for its part", "GET /a", nil, lasting, "GET /a", h("Rsc", "1"), 429},

		{"of one with a cookie", "GET /a", h("Cookie", "a=b"), lasting, "GET /a", nil, 429},
		{"of one with a cookie, for all", "GET /a", h("Cookie", "a=b"), "Cache-Control: public, max-age=60", "GET /a", nil, 200},
		{"of one with a cookie, for all caches", "GET /a", h("Cookie", "a=b"), "Cache-Control: s-maxage=60", "GET /a", nil, 200},
		{"for one with a cookie", "GET /a", nil, lasting, "GET /a", h("Cookie", "a=b"), 429},
		{"for one with a cookie, for all", "GET /a", nil, "Cache-Control: public", "GET /a", h("Cookie", "a=b"), 200},
		{"of one with a token", "GET /a", h("Authorization", "Bearer x"), lasting, "GET /a", nil, 429},
		{"of one with a token, and must-revalidate", "GET /a", h("Authorization", "Bearer x"), lasting + ", must-revalidate", "GET /a", nil, 429},
		{"of one with a token, for all", "GET /a", h("Authorization", "Bearer x"), "Cache-Control: public", "GET /a", nil, 200},
		{"for one with a token", "GET /a", nil, lasting, "GET /a", h("Authorization", "Bearer x"), 429},
		{"of one with a key", "GET /a", key, lasting, "GET /a", nil, 429},
		{"of one with a key of the app's own", "GET /a", h("X-Auth-Token", "x"), lasting, "GET /a", nil, 429},

		{"of a part", "GET /a", h("Range", "bytes=0-1"), lasting, "GET /a", nil, 429},
		{"who wants none of it kept", "GET /a", h("Cache-Control", "no-store"), lasting, "GET /a", nil, 429},
		{"who wants it new", "GET /a", nil, lasting, "GET /a", h("Cache-Control", "no-cache"), 429},
		{"who wants it new, in old words", "GET /a", nil, lasting, "GET /a", h("Pragma", "no-cache"), 429},
		{"who reloads the page", "GET /a", nil, lasting, "GET /a", h("Cache-Control", "max-age=0"), 200},
		{"of a GET with a body", "GET /a", h("Body", "x"), lasting, "GET /a", nil, 429},
		{"for a GET with a body", "GET /a", nil, lasting, "GET /a", h("Body", "x"), 429},
		{"of a GET that means another method", "GET /a", h("X-HTTP-Method-Override", "DELETE"), lasting, "GET /a", nil, 429},
		{"for who wants events", "GET /a", nil, lasting, "GET /a", h("Accept", "text/event-stream"), 429},
		{"for another method", "GET /a", nil, lasting, "PUT /a", nil, 429},
		{"of HEAD", "HEAD /a", nil, lasting, "GET /a", nil, 429},
		{"of POST", "POST /a", nil, lasting, "GET /a", nil, 429},
	} {
		inLarder(t, nil, func(l *larder) {
			l.fill(tc.first, tc.answer, tc.sent...)
			if got := l.status(tc.then, tc.sends...); got != tc.want {
				t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
			}
		})
	}
}

func TestStaleUseEndsWhereTheAppSaysSo(t *testing.T) {
	for control, last := range map[string]time.Duration{ // of a lifetime of 60 s
		"max-age=60": time.Minute + time.Hour, "max-age=60, stale-if-error=30": 90 * time.Second, "max-age=60, stale-while-revalidate=40": 100 * time.Second,
		"max-age=60, must-revalidate": time.Minute, "max-age=60, proxy-revalidate": time.Minute, "s-maxage=60": time.Minute, "s-maxage=60, stale-if-error=30": 90 * time.Second,
	} {
		inLarder(t, nil, func(l *larder) {
			l.fill("GET /a", "Cache-Control: "+control)
			time.Sleep(last - time.Second)
			if got := l.status("GET /a"); got != 200 {
				t.Errorf("%s: a second before its end %d", control, got)
			}
			time.Sleep(time.Second)
			if got := l.status("GET /a"); got != 429 {
				t.Errorf("%s: at its end %d", control, got)
			}
		})
	}
}

func TestTheAppsNewestWordCounts(t *testing.T) {
	const lasting = "Cache-Control: max-age=60"
	for name, tc := range map[string]struct {
		again   string // what the app answers afterwards
		headers []string
		want    int
	}{
		"another answer":             {lasting, nil, 200},
		"it is private now":          {"Cache-Control: private", nil, 429},
		"it is gone":                 {"Status: 404", nil, 429},
		"it wants a login":           {"Status: 401", nil, 429},
		"it fails":                   {"Status: 500", nil, 200},
		"it is not modified":         {"Status: 304", nil, 200},
		"it is busy":                 {"Status: 429", nil, 200},
		"a request makes no sense":   {"Status: 400", nil, 200},
		"it is private for one user": {"Cache-Control: private", []string{"Cookie", "a=b"}, 200},
	} {
		inLarder(t, nil, func(l *larder) {
			l.fill("GET /a", lasting)
			last := l.fill("GET /a", tc.again, tc.headers...)
			resp, body := l.beyond("GET /a")
			if resp.StatusCode != tc.want || name == "another answer" && body != last {
				t.Errorf("%s: %d %q", name, resp.StatusCode, body)
			}
		})
	}
}

func TestVariantsOfAResourceAreBounded(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		for i := range 20 {
			l.fill("GET /a", "Cache-Control: max-age=60|Vary: Accept-Language", "Accept-Language", fmt.Sprint("l", i))
		}
		for i := range 20 {
			resp, body := l.beyond("GET /a", "Accept-Language", fmt.Sprint("l", i))
			if i < 12 && resp.StatusCode != 429 || i >= 12 && (body != fmt.Sprint("answer ", i+1) || resp.StatusCode != 200) {
				t.Errorf("language %d: %d %q", i, resp.StatusCode, body)
			}
		}
		if st := l.Stats().Kept; st.Entries != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestWhatIsKeptHasABound(t *testing.T) {
	inLarder(t, func(_ *edge.Config, c *limits.Config) { c.Degrade.Stale.Memory, c.Degrade.Stale.Largest = 1e6, 50e3 }, func(l *larder) {
		for i := range 100 {
			l.fill(fmt.Sprint("GET /", i), "Cache-Control: max-age=60|Size: 40000")
		}
		st := l.Stats().Kept
		if st.Weight > 1e6 || st.Weight < 400e3 || st.Evicted < 50 || st.Stored != 100 || st.Entries < 10 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAReloadCanEndTheStepAndBeginItAgain(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		l.fill("GET /a", "Cache-Control: max-age=60")
		change := func(f func(*limits.Stale)) error {
			f(&l.cfg.Degrade.Stale)
			commit, err := l.gate.Prepare(l.cfg)
			if err == nil {
				commit()
			}
			return err
		}
		if err := change(func(s *limits.Stale) { s.Memory *= 2 }); err == nil || !strings.Contains(err.Error(), "degrade.stale: memory and largest cannot change while running") {
			t.Errorf("got %v", err)
		}
		if err := change(func(s *limits.Stale) { s.Memory /= 2; s.For = 0 }); err != nil {
			t.Fatal(err)
		}
		if got := l.status("GET /a"); got != 429 {
			t.Errorf("it is off, and answers %d", got)
		}
		l.fill("GET /b", "Cache-Control: max-age=60")
		if st := l.Stats().Kept; st.Entries != 0 {
			t.Errorf("it is off, and has %+v", st)
		}
		if err := change(func(s *limits.Stale) { s.For = time.Minute }); err != nil {
			t.Fatal(err)
		}
		if a, b := l.status("GET /a"), l.status("GET /b"); a != 429 || b != 429 {
			t.Errorf("from before it was off: %d %d", a, b)
		}
		l.fill("GET /b", "Cache-Control: max-age=60")
		if got := l.status("GET /b"); got != 200 {
			t.Errorf("it is on again, and answers %d", got)
		}
	})
}

func TestOnlyTheClassesThatTheStepNamesAreKept(t *testing.T) {
	inLarder(t, func(_ *edge.Config, c *limits.Config) {
		c.Routes = []limits.Route{{Name: "reads", Path: "/read/*", Cost: 1}, {Name: "others", Path: "/*", Cost: 1}}
		c.Degrade.Stale.Routes = []string{"reads"}
	}, func(l *larder) {
		for path, want := range map[string]int{"/read/a": 200, "/a": 429} {
			l.fill("GET "+path, "Cache-Control: max-age=60")
			if got := l.status("GET " + path); got != want {
				t.Errorf("%s: %d, want %d", path, got, want)
			}
		}
	})
}
