package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/monitor"
	"mainstay.dev/mainstay/telemetry"
)

// fakeApp is a Deployer that does what a test says.
type fakeApp struct {
	run     func(ctx context.Context, r deploy.Request, progress func(deploy.Progress)) (deploy.Record, error)
	status  deploy.Status
	history []deploy.Record
	order   func(what string, o deploy.Order) (deploy.Record, error)
}

func (f *fakeApp) Deploy(ctx context.Context, r deploy.Request, progress func(deploy.Progress)) (deploy.Record, error) {
	return f.run(ctx, r, progress)
}
func (f *fakeApp) Status() deploy.Status    { return f.status }
func (f *fakeApp) History() []deploy.Record { return f.history }
func (f *fakeApp) Rollback(_ context.Context, o deploy.Order) (deploy.Record, error) {
	return f.order("rollback", o)
}
func (f *fakeApp) Promote(_ context.Context, o deploy.Order) (deploy.Record, error) {
	return f.order("promote", o)
}
func (f *fakeApp) Freeze(_ context.Context, o deploy.Order) (deploy.Record, error) {
	return f.order("freeze", o)
}
func (f *fakeApp) Settle(_ context.Context, o deploy.Order) error {
	_, err := f.order("settle", o)
	return err
}
func (f *fakeApp) Maintenance(on bool, o deploy.Order) error {
	_, err := f.order(fmt.Sprint("maintenance ", on), o)
	return err
}

// newServer makes a server; change may be nil.
func newServer(t *testing.T, change func(*Config, *Deps)) *Server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	m := monitor.New()
	cfg := Config{Listen: ln.Addr().String()}
	d := Deps{
		Listener: ln, Dir: t.TempDir(), Monitor: m, Sink: m,
		Service: "unite-hub", Environment: "test", Version: "1.2.3",
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "mainstay_up 1\n") }),
		Reload:  func(context.Context) error { return nil },
		Ready:   func() error { return nil },
	}
	if change != nil {
		change(&cfg, &d)
	}
	s, err := New(cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// send gives s a request as a program with the token would send it; change may
// take the token away, or anything else.
func send(s *Server, method, path, body string, change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = s.address()
	r.Header.Set("Authorization", "Bearer "+s.access.token)
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, r)
	return w
}

func withoutToken(r *http.Request) { r.Header.Del("Authorization") }

// session logs a browser in.
func session(t *testing.T, s *Server) *http.Cookie {
	t.Helper()
	w := send(s, "POST", "/api/v1/login-link", "", nil)
	var l link
	if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	w = send(s, "GET", strings.TrimPrefix(l.URL, "http://"+s.address()), "", withoutToken)
	if w.Code != http.StatusSeeOther || len(w.Result().Cookies()) != 1 {
		t.Fatalf("login answered %d with cookies %v", w.Code, w.Result().Cookies())
	}
	return w.Result().Cookies()[0]
}

func by(c *http.Cookie) func(*http.Request) {
	return func(r *http.Request) {
		withoutToken(r)
		r.AddCookie(c)
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
}

func TestHealthAndReadinessNeedNoToken(t *testing.T) {
	var notReady error
	s := newServer(t, func(_ *Config, d *Deps) { d.Ready = func() error { return notReady } })
	if w := send(s, "GET", "/healthz", "", withoutToken); w.Code != 200 || w.Body.String() != "ok\n" {
		t.Errorf("healthz: %d %s", w.Code, w.Body)
	}
	if w := send(s, "GET", "/readyz", "", withoutToken); w.Code != 200 {
		t.Errorf("readyz: %d %s", w.Code, w.Body)
	}
	notReady = errors.New("no copy of the app is live")
	if w := send(s, "GET", "/readyz", "", withoutToken); w.Code != 503 || w.Body.String() != "not ready: no copy of the app is live\n" {
		t.Errorf("readyz when not: %d %s", w.Code, w.Body)
	}
	if w := send(s, "GET", "/healthz", "", withoutToken); w.Code != 200 {
		t.Errorf("healthz when not ready: %d", w.Code)
	}
}

func TestEverythingElseNeedsTheToken(t *testing.T) {
	s := newServer(t, nil)
	for _, route := range []string{
		"GET /metrics", "GET /api/v1/status", "GET /api/v1/claude/calls", "GET /api/v1/series", "GET /api/v1/events", "GET /api/v1/deploys",
		"POST /api/v1/deploys", "POST /api/v1/reload", "POST /api/v1/login-link", "POST /api/v1/logout",
	} {
		method, path, _ := strings.Cut(route, " ")
		for name, change := range map[string]func(*http.Request){
			"no token":       withoutToken,
			"a wrong token":  func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+newSecret()) },
			"an empty token": func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") },
			"basic auth":     func(r *http.Request) { r.SetBasicAuth("mainstay", s.access.token) },
			"a made-up cookie": func(r *http.Request) {
				withoutToken(r)
				r.AddCookie(&http.Cookie{Name: s.access.cookie, Value: newSecret()})
			},
			"the token as a cookie": func(r *http.Request) {
				withoutToken(r)
				r.AddCookie(&http.Cookie{Name: s.access.cookie, Value: s.access.token})
			},
		} {
			w := send(s, method, path, "", change)
			var p Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
				t.Errorf("%s with %s: %s: %v", route, name, w.Body, err)
			}
			if w.Code != 401 || p.Status != 401 || p.Mend == "" || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s with %s: %d %+v", route, name, w.Code, p)
			}
		}
	}
}

func TestMetricsAreOpenOnlyWhenConfigured(t *testing.T) {
	s := newServer(t, nil)
	if w := send(s, "GET", "/metrics", "", nil); w.Code != 200 || w.Body.String() != "mainstay_up 1\n" {
		t.Errorf("with the token: %d %s", w.Code, w.Body)
	}
	s = newServer(t, func(c *Config, _ *Deps) { c.OpenMetrics = true })
	if w := send(s, "GET", "/metrics", "", withoutToken); w.Code != 200 {
		t.Errorf("open: %d %s", w.Code, w.Body)
	}
}

func TestALinkLetsOneBrowserInOnce(t *testing.T) {
	s := newServer(t, nil)
	w := send(s, "POST", "/api/v1/login-link", "", nil)
	var l link
	if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil || time.Until(l.ExpiresAt) > linkLife {
		t.Fatalf("%s: %v", w.Body, err)
	}
	path := strings.TrimPrefix(l.URL, "http://"+s.address())
	send(s, "HEAD", path, "", withoutToken) // a preview must not use it up
	w = send(s, "GET", path, "", withoutToken)
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" {
		t.Fatalf("%d to %q", w.Code, w.Header().Get("Location"))
	}
	c := w.Result().Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.MaxAge != int(sessionLife/time.Second) || c.Path != "/" {
		t.Errorf("cookie %+v", c)
	}
	if strings.Contains(c.Value, s.access.token) {
		t.Error("the cookie holds the token")
	}
	w = send(s, "GET", path, "", withoutToken)
	if len(w.Result().Cookies()) != 0 || w.Header().Get("Location") != "/#link-used" {
		t.Errorf("a second use: cookies %v, to %q", w.Result().Cookies(), w.Header().Get("Location"))
	}
	if w = send(s, "GET", path, "", by(c)); w.Header().Get("Location") != "/" {
		t.Errorf("a second use of who is in: to %q", w.Header().Get("Location"))
	}
	if w = send(s, "GET", "/login?t="+s.access.token, "", withoutToken); len(w.Result().Cookies()) != 0 {
		t.Error("the token works as a link")
	}
	if e := s.deps.Monitor.Events(); len(e) != 1 || e[0].Name != "session_begun" {
		t.Errorf("events %+v", e)
	}
}

func TestLogoutEndsTheSession(t *testing.T) {
	s := newServer(t, nil)
	c := session(t, s)
	w := send(s, "POST", "/api/v1/logout", "", func(r *http.Request) { by(c)(r); r.Header.Set("Origin", "http://"+s.address()) })
	if w.Code != 204 || w.Result().Cookies()[0].MaxAge >= 0 {
		t.Fatalf("%d %v", w.Code, w.Result().Cookies())
	}
	if w = send(s, "GET", "/api/v1/status", "", by(c)); w.Code != 401 {
		t.Errorf("the old cookie: %d, want 401", w.Code)
	}
}

func TestAReloadThatIsRefusedTellsEveryMistake(t *testing.T) {
	mistakes := errors.New("mainstay.yaml:3 edge.drain: must be positive; try 30s\nmainstay.yaml:9 pooler.listen: must be host:port")
	var result error
	s := newServer(t, func(_ *Config, d *Deps) { d.Reload = func(context.Context) error { return result } })
	if w := send(s, "POST", "/api/v1/reload", "", nil); w.Code != 204 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	result = mistakes
	w := send(s, "POST", "/api/v1/reload", "", nil)
	var p Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != 422 || p.Detail != mistakes.Error() {
		t.Errorf("%d %+v %v", w.Code, p, err)
	}
}

func TestStatusTellsPlanesAppAndLevels(t *testing.T) {
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Planes = func() []Plane { return []Plane{{Name: "edge", State: "on", Listen: "http://127.0.0.1:8080"}} }
		d.Deploys = &fakeApp{status: deploy.Status{Live: &deploy.Copy{ID: "blue-1", Color: "blue"}}}
		d.Levels = func() []telemetry.Level {
			return []telemetry.Level{{Name: "mainstay_pooler_servers", Labels: []telemetry.Label{{Name: "state", Value: "idle"}}, Value: 3}}
		}
		d.Ready = func() error { return errors.New("starting") }
	})
	s.deps.Monitor.Record(&telemetry.Exchange{Plane: "edge", Code: "ok", Color: "blue", Took: time.Millisecond})
	var st Status
	w := send(s, "GET", "/api/v1/status?window=30s", "", nil)
	if err := json.Unmarshal(w.Body.Bytes(), &st); err != nil {
		t.Fatal(err)
	}
	if st.Service != "unite-hub" || st.Ready || st.Reason != "starting" || st.App.Live.ID != "blue-1" ||
		st.Planes[0].Figures.Count != 1 || st.Planes[0].Figures.Colors["blue"].Count != 1 || st.Levels[0].Labels["state"] != "idle" {
		t.Errorf("%s", w.Body)
	}
	var series Series
	w = send(s, "GET", "/api/v1/series?window=1m&step=10s", "", nil)
	if err := json.Unmarshal(w.Body.Bytes(), &series); err != nil || series.Step != 10 || len(series.Planes) != 3 {
		t.Errorf("%s: %v", w.Body, err)
	}
	for _, bad := range []string{"window=x", "window=0s", "window=24h", "window=-1m"} {
		if w := send(s, "GET", "/api/v1/status?"+bad, "", nil); w.Code != 400 || !strings.Contains(w.Body.String(), "try window=1m0s") {
			t.Errorf("%s: %d %s", bad, w.Code, w.Body)
		}
	}
	if w := send(s, "GET", "/api/v1/series?step=x", "", nil); w.Code != 400 {
		t.Errorf("step=x: %d", w.Code)
	}
}

func TestAnUnknownPathIsAProblemWithAName(t *testing.T) {
	s := newServer(t, nil)
	for _, route := range []string{"GET /nothing", "GET /assets/nothing", "GET /assets/../files.go", "DELETE /api/v1/status", "PUT /"} {
		method, path, _ := strings.Cut(route, " ")
		if w := send(s, method, path, "", nil); w.Code != 404 && w.Code != 307 && w.Code != 301 {
			t.Errorf("%s: %d", route, w.Code)
		}
	}
}

func TestThePageIsServedWithoutATokenAndHoldsNothingPrivate(t *testing.T) {
	s := newServer(t, nil)
	w := send(s, "GET", "/", "", withoutToken)
	if w.Code != 200 || !strings.Contains(w.Body.String(), "mainstay dashboard") || strings.Contains(w.Body.String(), "unite-hub") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for asset, kind := range map[string]string{"main.js": "text/javascript", "look.css": "text/css", "mark.svg": "image/svg+xml"} {
		w := send(s, "GET", "/assets/"+asset, "", withoutToken)
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), kind) {
			t.Errorf("%s: %d %s", asset, w.Code, w.Header().Get("Content-Type"))
		}
		again := send(s, "GET", "/assets/"+asset, "", func(r *http.Request) { r.Header.Set("If-None-Match", w.Header().Get("ETag")) })
		if again.Code != 304 {
			t.Errorf("%s asked again: %d", asset, again.Code)
		}
	}
}

func TestNoSecretShows(t *testing.T) {
	const canary = "hunter2canary"
	leaky := "node app.js --db postgres://app:" + canary + "@db/app --key sk-ant-api03-" + canary
	var logged bytes.Buffer
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Log = slog.New(slog.NewJSONHandler(&logged, nil))
		d.Planes = func() []Plane {
			return []Plane{{Name: "pooler", State: "on", Upstream: "postgres://app:" + canary + "@db:5432/app"}}
		}
		d.Ready = func() error { return errors.New(leaky) }
		d.Deploys = &fakeApp{
			status: deploy.Status{
				Live:      &deploy.Copy{Command: leaky, Reason: leaky, LastExit: leaky},
				Deploying: &deploy.Underway{Text: leaky},
			},
			history: []deploy.Record{{Number: 1, Command: deploy.Command{"sh", "-c", leaky}, Error: leaky, Why: leaky, Steps: []deploy.Progress{{Text: leaky}}}},
			run: func(_ context.Context, _ deploy.Request, progress func(deploy.Progress)) (deploy.Record, error) {
				progress(deploy.Progress{Text: leaky})
				return deploy.Record{Number: 2, Error: leaky}, errors.New(leaky)
			},
		}
	})
	s.deps.Sink.Emit(telemetry.Event{Name: "n", Text: leaky, Attrs: []slog.Attr{slog.String("a", leaky)}})
	var all strings.Builder
	for _, route := range []string{"GET /api/v1/status", "GET /api/v1/deploys", "GET /api/v1/events", "POST /api/v1/deploys", "GET /readyz", "GET /metrics", "GET /api/v1/hello?nonce=" + newSecret()} {
		method, path, _ := strings.Cut(route, " ")
		all.WriteString(send(s, method, path, "{}", nil).Body.String())
	}
	send(s, "GET", "/api/v1/status", "", func(r *http.Request) { r.Host = "evil.example" })
	for what, text := range map[string]string{"an answer": all.String(), "the log": logged.String()} {
		for _, secret := range []string{canary, s.access.token} {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows %s:\n%s", what, secret, text)
			}
		}
	}
	if !strings.Contains(all.String(), "postgres://app:***@db/app") {
		t.Error("what is not secret is gone, too")
	}
	if s.deps.Deploys.History()[0].Error != leaky {
		t.Error("masking changed the deployer's own record")
	}
}

// run runs s until the returned function is called, which waits for its end.
func run(t *testing.T, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	c := NewClient(s.deps.Dir)
	for { // Run writes the address first thing; until then nobody can ask
		if _, _, err := c.find(); err == nil {
			return stop
		}
		select {
		case err := <-done:
			t.Fatalf("Run ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

func ExampleProblem() {
	fmt.Println(problem(http.StatusConflict, "another deploy is at work: phil's, since 12:00", "wait for its end"))
	// Output: another deploy is at work: phil's, since 12:00; wait for its end
}

func TestConfigMistakesNameTheMend(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:9900": "", "localhost:9900": "", "[::1]:9900": "", "127.0.0.2:0": "",
		"0.0.0.0:9900": "use 127.0.0.1:9900", ":9900": "use 127.0.0.1:9900", "10.1.2.3:80": "ssh -L 80:127.0.0.1:80",
		"admin.example.com:9900": "must be a loopback address", "9900": "try 127.0.0.1:9900", "": "try 127.0.0.1:9900", "127.0.0.1:http": "must be a number", "127.0.0.1:65536": "must be a number",
	} {
		_, err := New(Config{Listen: listen}, Deps{})
		if want == "" {
			if err == nil || strings.Contains(err.Error(), "listen:") {
				t.Errorf("%q: %v", listen, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", listen, err, want)
		}
	}
	var c Config
	c.SetDefaults()
	if c.Listen != "127.0.0.1:9900" || c.OpenMetrics {
		t.Errorf("defaults %+v", c)
	}
}

func TestRoutesAreAllTested(t *testing.T) {
	// A new route must say who may use it; this list is a reminder to add it to
	// TestEverythingElseNeedsTheToken, or to say here that it is open to all.
	open := []string{"/healthz", "/readyz", "/api/v1/hello", "/login", "/", "/assets/main.js"}
	s := newServer(t, nil)
	for _, path := range open {
		if w := send(s, "GET", path, "", withoutToken); slices.Contains([]int{401, 403, 404}, w.Code) {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}
