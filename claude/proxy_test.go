package claude_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

var ids = regexp.MustCompile(`req_[0-9a-f]{24}`) // of the same length always

// same sends one request straight and one through the plane, and compares what the
// upstream saw and what the client got.
func same(t *testing.T, st *stage, direct, method, path, body string, edit func(*http.Request)) {
	t.Helper()
	want := send(t, st.http, method, direct+path, body, edit)
	got := send(t, st.http, method, st.url+path, body, edit)
	for _, h := range []http.Header{want.head, got.head} {
		for name := range h {
			if strings.HasPrefix(name, "Mainstay-") || strings.HasPrefix(name, "Anthropic-Ratelimit") || name == "Date" || name == "Request-Id" {
				delete(h, name) // differ from call to call, or are ours
			}
		}
	}
	want.body, got.body = ids.ReplaceAllString(want.body, "req_"), ids.ReplaceAllString(got.body, "req_")
	if d := cmp.Diff(want.status, got.status) + cmp.Diff(want.head, got.head) + cmp.Diff(want.body, got.body); d != "" {
		t.Errorf("%s %s: %s", method, path, d)
	}
	if got.err != nil {
		t.Errorf("%s %s: %v", method, path, got.err)
	}
}

func TestNothingOfACallIsChangedOnTheWay(t *testing.T) {
	st, fake := over(t, claudetest.Options{Keep: 2, Seed: 3}, nil)
	direct := fake.URL()
	beta := func(r *http.Request) {
		r.Header.Set("Anthropic-Beta", "a-beta-of-tomorrow-2031-01-01,another")
		r.Header["X-Twice"] = []string{"1", "2"}
		r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		r.Header.Set("X-Stainless-Retry-Count", "0")
		r.Header.Set("User-Agent", "")
		r.Header.Set("Cookie", "a=b")
	}
	for _, path := range []string{
		"/v1/echo", "/v1/echo?beta=true&x=%20+y", "/v1/echo?", "/v1/echo/a%2Fb/%C3%A9//c;d=1/../e", "/v1/echo/a|b\"c", "/v1/echo/%7Euser/!$&'()*,=:@",
	} {
		for _, method := range []string{"GET", "POST", "DELETE", "PUT", "PATCH"} {
			exact := func(r *http.Request) {
				beta(r)
				path, query, _ := strings.Cut(path, "?")
				r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.URL.Opaque = "", "", query, path
			}
			same(t, st, direct, method, strings.NewReplacer("|", "", "\"", "").Replace(path), "{\"a\": \"\\u00e9\"}\n\t", beta)
			through := send(t, st.http, method, st.url+"/", "", exact)
			straight := send(t, st.http, method, direct+"/", "", exact)
			var a, b claudetest.Echo
			if err := json.Unmarshal([]byte(through.body), &a); err != nil {
				t.Fatal(err)
			}
			_ = json.Unmarshal([]byte(straight.body), &b)
			a.Host = b.Host
			if a.Header.Get("Accept-Encoding") != "" {
				t.Error("an Accept-Encoding came from nowhere")
			}
			if d := cmp.Diff(b, a); d != "" {
				t.Errorf("%s %s: %s", method, path, d)
			}
		}
	}
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	same(t, st, direct, "POST", "/v1/echo/raw", strings.Repeat(string(all), 1000), func(r *http.Request) {
		beta(r)
		r.Header.Set("Content-Type", "application/octet-stream")
	})
	same(t, st, direct, "POST", "/v1/echo/raw", "", beta)
	same(t, st, direct, "GET", "/v1/echo/stream", "", beta)
	same(t, st, direct, "POST", "/v1/messages/count_tokens", `{"model":"claude-x","messages":[{"role":"user","content":"hi"}]}`, nil)
	same(t, st, direct, "GET", "/v1/models", "", nil)
	same(t, st, direct, "GET", "/v1/models/none", "", nil)
	same(t, st, direct, "PUT", "/v1/messages", "", nil)
	same(t, st, direct, "POST", "/v1/messages", "{", nil)
	if r := st.send("HEAD", "/v1/models", "", nil); r.err != nil || r.body != "" || r.head.Get("Content-Length") == "" {
		t.Errorf("HEAD: %+v", r)
	}
}

func TestHeadersBetweenNeighboursStayThere(t *testing.T) {
	var got http.Header
	h := func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("Proxy-Authenticate", "Basic")
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "{}")
		w.Header().Set("X-Sum", "42")
	}
	inBubble(t, http.HandlerFunc(h), nil, func(t *testing.T, st *stage) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", st.url+"/v1/new", nil)
		for _, name := range []string{"Keep-Alive", "Proxy-Authorization", "Te", "Upgrade", "X-Private"} {
			req.Header.Set(name, "x")
		}
		req.Header.Set("Connection", "x-private")
		req.Header.Set("User-Agent", "")
		res, err := st.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		if names := slices.Collect(maps.Keys(got)); len(names) != 0 {
			t.Errorf("upstream got %v", got)
		}
		if res.Header.Get("Keep-Alive") != "" || res.Header.Get("Proxy-Authenticate") != "" || res.Trailer.Get("X-Sum") != "42" {
			t.Errorf("client got %v and %v", res.Header, res.Trailer)
		}
	})
}

func TestUsageModelAndEndAreReadOffEveryAnswer(t *testing.T) {
	for _, zip := range []bool{false, true} {
		st, fake := over(t, claudetest.Options{Gzip: zip}, nil)
		cached := strings.Replace(hello, `"messages"`, `"system":[{"type":"text","text":"`+strings.Repeat("long ", 200)+`","cache_control":{"type":"ephemeral"}}],"messages"`, 1)
		tool := strings.Replace(hello, `"messages"`, `"tools":[{"name":"t","input_schema":{"type":"object"}}],"tool_choice":{"type":"any"},"messages"`, 1)
		stream := func(body string) string { return strings.TrimSuffix(body, "}") + `,"stream":true}` }
		for i, body := range []string{hello, helloS, cached, cached, stream(cached), tool, stream(tool)} {
			before := fake.Counts()
			r := st.send("POST", "/v1/messages", body, func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip") })
			if (r.head.Get("Content-Encoding") == "gzip") != zip {
				t.Fatal("the encoding did not pass")
			}
			x, after := st.book.last(t, i+1), fake.Counts()
			g, in := x.GenAI, after.InputTokens-before.InputTokens
			if g.InputTokens+g.CacheReadTokens+g.CacheWriteTokens != in || g.OutputTokens != after.OutputTokens-before.OutputTokens || g.Model != "claude-sonnet-5" {
				t.Errorf("gzip %v, call %d: %+v, want %d in and %d out", zip, i, g, in, after.OutputTokens-before.OutputTokens)
			}
			want := "end_turn"
			if i >= 5 {
				want = "tool_use"
			}
			if g.StopReason != want || (i == 3 || i == 4) != (g.CacheReadTokens > 0) || (i == 2) != (g.CacheWriteTokens > 0) || g.UpstreamID != r.head.Get("Request-Id") {
				t.Errorf("gzip %v, call %d: %+v", zip, i, g)
			}
			if x.BytesIn != int64(len(body)) || x.BytesOut != int64(len(r.body)) || x.Route != "/v1/messages" || x.FirstByte <= 0 || x.FirstByte > x.Took {
				t.Errorf("%d in, %d out, %v", x.BytesIn, x.BytesOut, x.FirstByte)
			}
		}
		fake.Next(claudetest.ErrorMiddle)
		r := st.send("POST", "/v1/messages", helloS, func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip") })
		if x := st.book.last(t, 8); x.Code != "stream_error" || x.GenAI.ErrorType != "overloaded_error" {
			t.Errorf("gzip %v: %v %+v", zip, r.err, x)
		}
		fake.Next(claudetest.EndEarly)
		r = st.send("POST", "/v1/messages", helloS, func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip") })
		if x := st.book.last(t, 9); x.Code != "upstream_cut" || r.err == nil {
			t.Errorf("gzip %v: %v %+v", zip, r.err, x)
		}
	}
}

func TestWhatARequestAsksForIsWrittenDownButNotWhatItSays(t *testing.T) {
	for _, body := range []string{hello, helloS} {
		st, _ := over(t, claudetest.Options{}, patient)
		body = strings.Replace(body, `"max_tokens":64`, `"max_tokens":64,"temperature":0.25,"top_p":1e-1,"top_k":"many","stop_sequences":["canary"]`, 1)
		st.post(strings.Replace(body, `"top_k":"many"`, `"top_k":5`, 1))
		g := st.book.last(t, 1).GenAI
		if g.Asked != "claude-sonnet-5" || g.Model != "claude-sonnet-5" || g.MaxTokens != 64 || g.Temperature != "0.25" || g.TopP != "1e-1" || g.TopK != "5" || !strings.HasPrefix(g.AnswerID, "msg_") {
			t.Errorf("%+v", g)
		}
		if st.post(body); st.book.last(t, 2).GenAI.TopK != "" || strings.Contains(fmt.Sprintf("%+v %s", st.book.last(t, 2), st.logs), "canary") {
			t.Errorf("%+v", st.book.last(t, 2).GenAI)
		}
	}
}

func TestColorsAreKnownByTheirPrefix(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Keep: 1})
	st := start(t, setup{upstream: fake.Start(t) + "/base/", colors: []string{"blue", "dark red"}})
	addr := strings.TrimPrefix(st.url, "http://")
	for i, c := range []struct{ base, path, color, uri string }{
		{claude.BaseURL(addr, "blue"), "/v1/models", "blue", "/base/v1/models"},
		{claude.BaseURL(addr, "dark red"), "/v1/models?x=1", "dark red", "/base/v1/models?x=1"},
		{claude.BaseURL(addr, ""), "/v1/models", "unknown", "/base/v1/models"},
		{claude.BaseURL(addr, "green"), "/v1/models", "unknown", "/base/@green/v1/models"},
		{claude.BaseURL(addr, "blue"), "", "blue", "/base/"},
		{claude.BaseURL(addr, "blue"), "/@blue/x", "blue", "/base/@blue/x"},
		{st.url, "/@bluebird/x", "unknown", "/base/@bluebird/x"},
		{st.url, "/%40blue/v1/a%2Fb", "blue", "/base/v1/a%2Fb"},
	} {
		send(t, st.http, "GET", c.base+c.path, "", nil)
		if x := st.book.last(t, i+1); x.Color != c.color || fake.Requests()[0].URI != c.uri {
			t.Errorf("%s%s: color %s, upstream saw %s", c.base, c.path, x.Color, fake.Requests()[0].URI)
		}
	}
	for addr, want := range map[string]string{
		":8700": "http://127.0.0.1:8700/@b", "0.0.0.0:8700": "http://127.0.0.1:8700/@b", "[::1]:9": "http://[::1]:9/@b", "claude.internal:80": "http://claude.internal:80/@b",
	} {
		if got := claude.BaseURL(addr, "b"); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestTheKeyIsNeverWrittenDown(t *testing.T) {
	st, fake := over(t, claudetest.Options{Keys: []string{key}}, nil)
	fake.Next(claudetest.Overloaded, claudetest.Reset, claudetest.BadGateway)
	replies := []reply{st.post(hello)}
	for _, edit := range []func(*http.Request){
		func(r *http.Request) { r.Header.Del("X-Api-Key"); r.Header.Set("Authorization", "Bearer "+key) },
		func(r *http.Request) { r.URL.RawQuery = "key=" + key },
	} {
		replies = append(replies, st.send("POST", "/v1/messages", hello, edit))
	}
	fake.Close()
	replies = append(replies, st.post(hello))
	if _, err := st.Prepare(claude.Config{Upstream: "http://" + key}); err == nil {
		t.Error("a bad configuration was taken")
	}
	var all strings.Builder
	for _, r := range replies {
		fmt.Fprintln(&all, r.head, r.body)
	}
	pages := st.book.pages(t, len(replies))
	for _, x := range pages {
		fmt.Fprintf(&all, "%+v\n", *x)
	}
	fmt.Fprintf(&all, "%+v %s", st.Stats(), st.logs)
	if strings.Contains(all.String(), key) {
		t.Errorf("the key stands in:\n%s", all.String())
	}
	if a, b := pages[0].Caller, pages[1].Caller; a != b || !strings.HasPrefix(a, "key:") || len(a) != 16 {
		t.Errorf("fingerprints %q and %q", a, b)
	}
	if len(replies) != 4 || replies[1].status != 200 || replies[3].status != 502 {
		t.Errorf("%+v", replies)
	}
}

func TestOverHTTP2(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Keep: 1})
	var proto string
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto = r.Proto
		fake.ServeHTTP(w, r)
	}))
	upstream.EnableHTTP2 = true
	upstream.StartTLS()
	defer upstream.Close()
	st := start(t, setup{upstream: upstream.URL})
	claude.Trust(st.Server, upstream.Certificate())
	fake.Next(claudetest.None, claudetest.Reset, claudetest.Truncated, claudetest.None, claudetest.None, claudetest.Cut)
	for i, c := range []struct{ body, code string }{{hello, "ok"}, {hello, "ok"}, {helloS, "ok"}, {helloS, "upstream_cut"}} {
		r := st.post(c.body)
		if x := st.book.last(t, i+1); x.Code != c.code || r.status != 200 || proto != "HTTP/2.0" || (r.err != nil) != (c.code != "ok") {
			t.Errorf("call %d over %s: %d, %v, %+v", i, proto, r.status, r.err, x)
		}
	}
}

func TestACertificateThatNobodyTrustsIsNotTriedAgain(t *testing.T) {
	upstream := httptest.NewUnstartedServer(http.NotFoundHandler())
	upstream.Config.ErrorLog = log.New(io.Discard, "", 0)
	upstream.StartTLS()
	defer upstream.Close()
	st := start(t, setup{upstream: upstream.URL})
	if r := st.post(hello); r.status != 502 || r.head.Get("Mainstay-Attempts") != "1" {
		t.Errorf("%+v", r)
	}
}

func TestTheTraceOfTheCallerIsContinuedAndLeftAsItIs(t *testing.T) {
	st, fake := over(t, claudetest.Options{Keep: 1}, nil)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Traceparent", parent) })
	x := st.book.last(t, 1)
	if fmt.Sprintf("%x-%x", x.Trace.TraceID, x.Trace.Parent) != parent[3:52] || fake.Requests()[0].Header.Get("Traceparent") != parent {
		t.Errorf("%x below %x; upstream saw %q", x.Trace.TraceID, x.Trace.Parent, fake.Requests()[0].Header.Get("Traceparent"))
	}
	st.post(hello)
	if x := st.book.last(t, 2); x.Trace.TraceID == [16]byte{} || fake.Requests()[0].Header.Get("Traceparent") != "" {
		t.Error("a call without a trace got none, or one was shown to the upstream")
	}
}

func TestATargetWithoutAPathIsRefused(t *testing.T) {
	st, fake := over(t, claudetest.Options{}, nil)
	r := st.send("OPTIONS", "/", "", func(r *http.Request) { r.URL = &url.URL{Scheme: "http", Host: r.URL.Host, Opaque: "*"} })
	if r.status != 400 && r.status != 200 || fake.Counts().Requests != 0 { // net/http may answer OPTIONS * itself
		t.Errorf("%+v", r)
	}
	if r := st.send("GET", "/", "", func(r *http.Request) { r.URL.Opaque = "//evil.test/v1/models" }); fake.Counts().Requests != 1 {
		t.Errorf("an absolute target went elsewhere: %+v", r)
	}
}

// FuzzTheBodyPasses compares bodies and paths sent through the plane with what
// arrives.
func FuzzTheBodyPasses(f *testing.F) {
	f.Add("echo", "a=1", []byte("{}"))
	f.Add("a/b;c/%2e/..", "%zz", []byte("\x00\xff"))
	f.Add("//@blue", "", bytes.Repeat([]byte("x"), 70_000))
	var got struct {
		uri  string
		body []byte
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.uri = r.RequestURI
		got.body, _ = io.ReadAll(r.Body)
		_, _ = w.Write(got.body)
	}))
	f.Cleanup(upstream.Close)
	front := httptest.NewUnstartedServer(nil)
	f.Cleanup(front.Close)
	var cfg claude.Config
	cfg.SetDefaults()
	cfg.Upstream = upstream.URL
	st, err := claude.New(cfg, claude.Deps{Listener: front.Listener})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- st.Run(ctx) }()
	f.Cleanup(func() { cancel(); <-ran })
	f.Fuzz(func(t *testing.T, path, query string, body []byte) {
		u := &url.URL{Scheme: "http", Host: front.Listener.Addr().String(), Path: "/v1/" + path, RawQuery: query}
		if strings.ContainsAny(query, " \r\n\x00#") || strings.IndexFunc(query, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
			t.Skip("no query")
		}
		req, err := http.NewRequestWithContext(t.Context(), "POST", u.String(), bytes.NewReader(body))
		if err != nil {
			t.Skip("no URL")
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		back, err := io.ReadAll(res.Body)
		if err != nil || !bytes.Equal(got.body, body) || !bytes.Equal(back, body) || got.uri != req.URL.RequestURI() {
			t.Errorf("%v: %q became %q; %d bytes became %d and then %d", err, req.URL.RequestURI(), got.uri, len(body), len(got.body), len(back))
		}
	})
}

func TestAnUnreadableEncodingStillPasses(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(z, "event: message_start\ndata: {}\n\n")
	_ = z.Close()
	for _, c := range []struct{ encoding, body string }{
		{"br", "\x00\x01 no brotli"}, {"gzip", "no gzip"}, {"gzip", zipped.String()[:20]}, {"gzip", zipped.String() + "rubbish"},
	} {
		for _, kind := range []string{"text/event-stream", "application/json"} {
			inBubble(t, answers(says(200, c.body, "Content-Encoding", c.encoding, "Content-Type", kind)), nil, func(t *testing.T, st *stage) {
				r := st.post(helloS)
				if x := st.book.last(t, 1); r.body != c.body || x.HTTP.Status != 200 {
					t.Errorf("%s: %q became %q, %v", kind, c.body, r.body, r.err)
				}
			})
		}
	}
}
