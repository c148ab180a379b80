package admin

import (
	"net"
	"net/http"
	"net/url"
	"strings"
)

const maxBody = 1 << 20

// guard lets through what is meant for this door and sets the headers of every
// answer. It defends a browser's user: against names that were bent to lead here
// (DNS rebinding), and against pages of other origins.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.busy.RLock()
		defer s.busy.RUnlock()
		secure(w.Header())
		if !s.meantForUs(r.Host) {
			s.refuse(w, r, problem(http.StatusMisdirectedRequest, "the Host header "+quoted(r.Host)+" is not an address of this listener", "use http://"+s.address()))
			return
		}
		if !sameOrigin(r) {
			s.refuse(w, r, problem(http.StatusForbidden, "the request comes from a page of another origin", "open the dashboard itself: run mainstay dashboard"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

func secure(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// meantForUs accepts loopback names and the listen address, at any port: an ssh
// tunnel has another port at its near end.
func (s *Server) meantForUs(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
	}
	return loopback(host) || host == s.host
}

// sameOrigin reports whether r was sent by this dashboard, by the user, or by no
// browser. Browsers send Origin with every unsafe request, and Sec-Fetch-Site
// with every request; programs send neither and have no session to steal.
func sameOrigin(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		return err == nil && u.Scheme == "http" && u.Host != "" && strings.EqualFold(u.Host, r.Host)
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return true
	}
	// Following a link to a page is what the web is for; it may not do more.
	return safe(r.Method) && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

func safe(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// only admits visitors of that rank at least. A browser's session may act only
// from this dashboard, and its page says so in Origin.
func (s *Server) only(least visitor, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who := s.access.who(r)
		switch {
		case who == nobody:
			s.refuse(w, r, problem(http.StatusUnauthorized, "this needs the admin token, or a session in the dashboard", "run mainstay dashboard and open the link it prints"))
		case who < least:
			s.refuse(w, r, problem(http.StatusForbidden, "a dashboard session may look, not act", "use the mainstay command line"))
		case who == browser && !safe(r.Method) && r.Header.Get("Origin") == "":
			s.refuse(w, r, problem(http.StatusForbidden, "a session's request must name its origin", "use a current browser"))
		default:
			next(w, r)
		}
	}
}

// refuse answers and, since somebody may be trying doors, logs. A browser that
// merely has no session yet, or no longer, is nothing to log.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, p *Problem) {
	innocent := p.Status == http.StatusUnauthorized && r.Header.Get("Authorization") == ""
	if !innocent && s.refusals.allow() {
		s.log.Warn("request refused", "method", clip(r.Method), "path", clip(r.URL.Path), "caller", r.RemoteAddr, "status", p.Status, "why", p.Detail)
	}
	p.answer(w)
}

// quoted shows something a client sent.
func quoted(s string) string { return `"` + clip(s) + `"` }

func clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
