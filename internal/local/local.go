// Package local is the door for the app itself, on loopback: limits/check, by which
// the app asks for more than a request costs at the edge. Whoever can connect may
// ask, as with Redis on the same machine; pages in a browser may not.
//
// Only app imports it.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

// Config is the local section.
type Config struct {
	Listen string `yaml:"listen" doc:"Address of the door, on loopback. The app finds it in MAINSTAY_LOCAL."`
}

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() { *c = Config{Listen: "127.0.0.1:9901"} }

// Validate reports every mistake.
func (c *Config) Validate(ps *setting.Problems) {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil || !loopback(host) {
		ps.Add("listen", "must be an address of this machine alone, since whoever reaches it may ask", "try 127.0.0.1:9901")
	}
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// Deps is what a Server works with; Listener is required.
type Deps struct {
	Listener net.Listener
	Limits   *limits.Gate // nil: limits/check answers that there are none
	// Open reads an identity that the edge has sealed for the app; nil: none is read.
	Open func(text string) (identity.Who, string)
	Log  *slog.Logger
}

// A Server is the door.
type Server struct {
	deps     Deps
	http     *http.Server
	receipts receipts

	checks  [3]atomic.Uint64 // by outcome
	refused atomic.Uint64    // requests that were not understood or not let in
}

// The bounds of a request.
const (
	maxBody   = 64 << 10
	readLimit = 5 * time.Second
	stopLimit = 5 * time.Second
)

// New wires the door; it starts nothing.
func New(cfg Config, d Deps) (*Server, error) {
	var ps setting.Problems
	if cfg.Validate(&ps); len(ps) > 0 {
		return nil, ps
	}
	if d.Listener == nil {
		return nil, errors.New("the local door needs a listener")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{deps: d}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/limits/check", s.check)
	mux.HandleFunc("POST /v1/limits/settle", s.settle)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		s.refuse(w, http.StatusNotFound, "there is nothing here but POST /v1/limits/check and /v1/limits/settle")
	})
	s.http = &http.Server{
		Handler:           s.guard(mux),
		ReadHeaderTimeout: readLimit,
		ReadTimeout:       2 * readLimit,
		WriteTimeout:      2 * readLimit,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(d.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Run serves until ctx ends, then lets requests under way finish for five seconds.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.deps.Listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the local door: %w", err)
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	if err := s.http.Shutdown(late); err != nil {
		_ = s.http.Close() // cuts what is left
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// guard keeps browsers out: names that were bent to lead here (DNS rebinding), and
// pages, which cannot send JSON without a preflight that nobody answers.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
		switch {
		case !loopback(strings.Trim(host, "[]")):
			s.refuse(w, http.StatusMisdirectedRequest, "this door answers to loopback names only")
		case r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "":
			s.refuse(w, http.StatusForbidden, "this door is for the app, not for pages in a browser")
		case r.Method == http.MethodPost && !strings.EqualFold(strings.TrimSpace(kind), "application/json"):
			s.refuse(w, http.StatusUnsupportedMediaType, "send JSON, with Content-Type: application/json")
		default:
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			next.ServeHTTP(w, r)
		}
	})
}

// refuse answers with a problem (RFC 9457), and counts it.
func (s *Server) refuse(w http.ResponseWriter, status int, detail string) {
	s.refused.Add(1)
	b, _ := json.Marshal(struct { // strings and an int: cannot fail
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{http.StatusText(status), status, detail})
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that is gone has lost nothing
}

// The outcomes of a check.
var outcomes = [...]string{"allowed", "refused", "undecided"}

// Levels is how the door stands, for the metrics.
func (s *Server) Levels() []telemetry.Level {
	var ls []telemetry.Level
	for i, o := range outcomes {
		ls = append(ls, telemetry.Level{
			Name: "mainstay_local_checks_total", Help: "limits/check by the app, by outcome; undecided: it made no sense, or its client went away.", Counter: true,
			Labels: []telemetry.Label{{Name: "outcome", Value: o}}, Value: float64(s.checks[i].Load()),
		})
	}
	return append(ls,
		telemetry.Level{Name: "mainstay_local_refused_total", Help: "Requests at the local door that were not understood or not let in.", Value: float64(s.refused.Load()), Counter: true})
}
