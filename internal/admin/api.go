package admin

import (
	"io"
	"log/slog"
	"net/http"
	"time"

	"mainstay.dev/mainstay/internal/monitor"
	"mainstay.dev/mainstay/telemetry"
)

// healthz: Mainstay itself is alive.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	say(w, http.StatusOK, "ok")
}

// readyz: requests can be served.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if why := s.notReady(); why != "" {
		say(w, http.StatusServiceUnavailable, "not ready: "+why)
		return
	}
	say(w, http.StatusOK, "ready")
}

// say answers a line of text.
func say(w http.ResponseWriter, status int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, line+"\n") // a client that is gone has lost nothing
}

func (s *Server) notReady() string {
	if s.deps.Ready == nil {
		return ""
	}
	if err := s.deps.Ready(); err != nil {
		return hide(err.Error())
	}
	return ""
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	switch {
	case s.deps.Metrics == nil:
		problem(http.StatusNotFound, "there are no metrics", "").answer(w)
	case s.cfg.OpenMetrics:
		s.deps.Metrics.ServeHTTP(w, r)
	default:
		s.only(browser, s.deps.Metrics.ServeHTTP)(w, r)
	}
}

// hello proves that this is the Mainstay whose token the asker has.
func (s *Server) hello(w http.ResponseWriter, r *http.Request) {
	nonce := r.URL.Query().Get("nonce")
	if !wellFormed(nonce) {
		problem(http.StatusBadRequest, "nonce must be 32 bytes in base64url", "").answer(w)
		return
	}
	answer(w, helloReply{prove(s.access.token, nonce)})
}

type helloReply struct {
	Proof string `json:"proof"`
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	window, p := duration(r, "window", time.Minute)
	if p != nil {
		p.answer(w)
		return
	}
	answer(w, s.current(window))
}

// A Series is the recent past of the planes, for charts.
type Series struct {
	Step   float64                    `json:"step_s"`
	Planes map[string][]monitor.Point `json:"planes"` // oldest first
}

func (s *Server) series(w http.ResponseWriter, r *http.Request) {
	window, p := duration(r, "window", monitor.Retention)
	step, p2 := duration(r, "step", 5*time.Second)
	if p != nil || p2 != nil {
		if p == nil {
			p = p2
		}
		p.answer(w)
		return
	}
	step = max(step.Truncate(time.Second), time.Second)
	out := Series{Step: step.Seconds(), Planes: map[string][]monitor.Point{}}
	for _, name := range []string{"edge", "pooler", "claude"} {
		out.Planes[name] = s.deps.Monitor.Series(name, window, step)
	}
	answer(w, out)
}

// duration reads a parameter such as 5m, between one second and the retention.
func duration(r *http.Request, name string, absent time.Duration) (time.Duration, *Problem) {
	given := r.URL.Query().Get(name)
	if given == "" {
		return absent, nil
	}
	d, err := time.ParseDuration(given)
	if err != nil || d < time.Second || d > monitor.Retention {
		return 0, problem(http.StatusBadRequest, name+" must be a duration from 1s to "+monitor.Retention.String()+", not "+quoted(given), "try "+name+"="+absent.String())
	}
	return d, nil
}

func (s *Server) events(w http.ResponseWriter, _ *http.Request) {
	events := s.deps.Monitor.Events()
	for i := range events {
		events[i] = withoutPasswords(events[i])
	}
	answer(w, struct {
		Events []monitor.Event `json:"events"` // newest first
	}{events})
}

// reload answers 422 with every mistake when the file is refused.
func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	if s.deps.Reload == nil {
		problem(http.StatusNotFound, "this Mainstay has nothing to reload", "").answer(w)
		return
	}
	if err := s.deps.Reload(r.Context()); err != nil {
		problem(http.StatusUnprocessableEntity, err.Error(), "").answer(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

type link struct {
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expires_at"`
}

// loginLink makes a link that lets one browser in, once.
func (s *Server) loginLink(w http.ResponseWriter, r *http.Request) {
	until := time.Now().Add(linkLife)
	answer(w, link{"http://" + r.Host + "/login?t=" + s.access.links.issue(), until})
}

// login turns a one-time link into a session. A browser that opens an old link
// and is in already just goes on.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet { // a look ahead must not use up the link
		return
	}
	if !s.access.links.take(r.URL.Query().Get("t")) {
		if s.access.who(r) == nobody {
			http.Redirect(w, r, "/#link-used", http.StatusSeeOther)
			return
		}
	} else {
		http.SetCookie(w, s.access.begin())
		s.deps.Sink.Emit(telemetry.Event{Time: time.Now(), Part: "admin", Name: "session_begun", Level: slog.LevelInfo, Text: "A browser opened the dashboard by a one-time link."})
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, s.access.end(r))
	w.WriteHeader(http.StatusNoContent)
}
