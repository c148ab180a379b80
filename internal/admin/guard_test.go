package admin

import (
	"bytes"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"mainstay.dev/mainstay/internal/monitor"
)

func TestANameThatWasBentToLeadHereIsRefused(t *testing.T) {
	s := newServer(t, nil)
	for host, want := range map[string]int{
		"localhost:9900": 200, "LOCALHOST": 200, "127.0.0.1": 200, "127.0.0.1:1": 200, "[::1]:9900": 200, "[::1]": 200, "127.8.9.1": 200,
		"evil.example": 421, "evil.example:9900": 421, "10.0.0.1:9900": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421,
		"": 421, ":9900": 421, "0.0.0.0:9900": 421, "2130706433": 421, "[::]:9900": 421, "\xff": 421,
	} {
		if w := send(s, "GET", "/api/v1/status", "", func(r *http.Request) { r.Host = host }); w.Code != want {
			t.Errorf("Host %q: %d, want %d", host, w.Code, want)
		}
	}
}

func TestPagesOfOtherOriginsAreRefused(t *testing.T) {
	s := newServer(t, nil)
	cookie := session(t, s)
	here := "http://" + s.address()
	for name, c := range map[string]struct {
		method, path string
		header       map[string]string
		want         int
	}{
		"this dashboard reads":              {"GET", "/api/v1/status", map[string]string{"Sec-Fetch-Site": "same-origin"}, 200},
		"this dashboard acts":               {"POST", "/api/v1/logout", map[string]string{"Origin": here, "Sec-Fetch-Site": "same-origin"}, 204},
		"a user opens the page":             {"GET", "/", map[string]string{"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200},
		"a user follows a link":             {"GET", "/", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200},
		"another site reads":                {"GET", "/api/v1/status", map[string]string{"Origin": "https://evil.example"}, 403},
		"another site reads without a word": {"GET", "/api/v1/status", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403},
		"the app on another port reads":     {"GET", "/api/v1/status", map[string]string{"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"}, 403},
		"another site frames the page":      {"GET", "/", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403},
		"another site posts a form":         {"POST", "/api/v1/logout", map[string]string{"Origin": "https://evil.example"}, 403},
		"a sandboxed page posts":            {"POST", "/api/v1/logout", map[string]string{"Origin": "null"}, 403},
		"a session posts with no origin":    {"POST", "/api/v1/logout", nil, 403},
		"the same host over https":          {"POST", "/api/v1/logout", map[string]string{"Origin": "https://" + s.address()}, 403},
	} {
		w := send(s, c.method, c.path, "", func(r *http.Request) {
			withoutToken(r)
			if name == "this dashboard acts" {
				r.AddCookie(session(t, s))
			} else {
				r.AddCookie(cookie)
			}
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
		})
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d: %s", name, w.Code, c.want, w.Body)
		}
	}
	w := send(s, "POST", "/api/v1/reload", "", func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") })
	if w.Code != 403 {
		t.Errorf("a foreign page with the token: %d, want 403", w.Code)
	}
}

func TestASessionMayLookNotAct(t *testing.T) {
	s := newServer(t, nil)
	c := session(t, s)
	for route, want := range map[string]int{
		"GET /api/v1/status": 200, "GET /api/v1/series": 200, "GET /api/v1/events": 200, "GET /api/v1/deploys": 200, "GET /metrics": 200,
		"POST /api/v1/deploys": 403, "POST /api/v1/deploys/rollback": 403, "POST /api/v1/maintenance": 403, "POST /api/v1/reload": 403, "POST /api/v1/login-link": 403,
	} {
		method, path, _ := strings.Cut(route, " ")
		w := send(s, method, path, "{}", func(r *http.Request) { by(c)(r); r.Header.Set("Origin", "http://"+s.address()) })
		if w.Code != want {
			t.Errorf("%s: %d, want %d", route, w.Code, want)
		}
	}
}

func TestEveryAnswerCarriesTheSecurityHeaders(t *testing.T) {
	s := newServer(t, nil)
	for _, path := range []string{"/", "/assets/main.js", "/api/v1/status", "/nothing", "/healthz", "/login?t=x"} {
		h := send(s, "GET", path, "", nil).Header()
		csp := h.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" ||
			h.Get("Referrer-Policy") != "no-referrer" || h.Get("X-Frame-Options") != "DENY" || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestRefusalsAreLoggedButNotInAFlood(t *testing.T) {
	var logged bytes.Buffer
	s := newServer(t, func(_ *Config, d *Deps) { d.Log = slog.New(slog.NewTextHandler(&logged, nil)) })
	for range 50 {
		send(s, "GET", "/api/v1/status", "", func(r *http.Request) { r.Host = "evil.example" })
		send(s, "GET", "/api/v1/status", "", withoutToken)
	}
	if n := strings.Count(logged.String(), "\n"); n != 1 || !strings.Contains(logged.String(), "evil.example") {
		t.Errorf("%d lines:\n%s", n, logged.String())
	}
}

func TestAListenerThatOthersReachIsRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = New(Config{Listen: "127.0.0.1:9900"}, Deps{Listener: ln, Dir: t.TempDir(), Monitor: monitor.New()})
	if err == nil || !strings.Contains(err.Error(), "which others can reach") {
		t.Errorf("got %v", err)
	}
}
