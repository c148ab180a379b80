package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"mainstay.dev/mainstay/internal/calls"
	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/monitor"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

const stopLimit = 5 * time.Second // for requests under way when Run is told to end

// Deployer is what admin needs of the deployer.
type Deployer interface {
	Deploy(ctx context.Context, r deploy.Request, progress func(deploy.Progress)) (deploy.Record, error)
	Status() deploy.Status
	History() []deploy.Record
	Rollback(ctx context.Context, o deploy.Order) (deploy.Record, error)
	Promote(ctx context.Context, o deploy.Order) (deploy.Record, error)
	Freeze(ctx context.Context, o deploy.Order) (deploy.Record, error)
	Settle(ctx context.Context, o deploy.Order) error
	Maintenance(on bool, o deploy.Order) error
}

// Deps is what a Server works with. Listener, Dir and Monitor are required; a
// function or interface that is nil makes its part of the API answer that there
// is none.
type Deps struct {
	Listener  net.Listener
	Dir       string // data folder: the token and the address are kept here
	Metrics   http.Handler
	Planes    func() []Plane
	Deploys   Deployer
	Databases Databases
	Limits    *limits.Gate // nil: nobody is limited
	Calls     *calls.Ring  // nil: the claude plane is off
	Replays   calls.Replayer
	Reload    func(context.Context) error
	Monitor   *monitor.Monitor
	Levels    func() []telemetry.Level
	Ready     func() error // nil when requests can be served, else why not

	Service, Environment, Version string

	Log  *slog.Logger
	Sink telemetry.Sink
}

// A Server is the private door.
type Server struct {
	cfg      Config
	deps     Deps
	log      *slog.Logger
	host     string // of the listen address
	began    time.Time
	access   *access
	refusals throttle
	http     *http.Server
	busy     sync.RWMutex // read-held by every request under way
}

// New validates, reads the token or makes one, and wires; it starts nothing.
func New(cfg Config, d Deps) (*Server, error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	if err := ps.Err(); err != nil {
		return nil, err
	}
	if d.Listener == nil || d.Dir == "" || d.Monitor == nil {
		return nil, errors.New("admin needs a listener, a data folder and a monitor")
	}
	host, port, err := net.SplitHostPort(d.Listener.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("read the listener's address: %w", err)
	}
	if !loopback(host) {
		return nil, setting.Problems{{Path: "listen", What: "is bound to " + host + ", which others can reach", Mend: "use 127.0.0.1:" + port}}
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Sink == nil {
		d.Sink = telemetry.Discard
	}
	token, err := loadToken(d.Dir, d.Log)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, deps: d, log: d.Log, host: host, began: time.Now(), access: newAccess(token, port), refusals: throttle{every: 10 * time.Second}}
	page, err := newPage()
	if err != nil {
		return nil, err
	}
	s.http = &http.Server{
		Handler:           s.guard(s.routes(page)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(d.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// address is host:port as it is listened on.
func (s *Server) address() string { return s.deps.Listener.Addr().String() }

// Run serves until ctx ends, then lets requests under way finish for at most five
// seconds. While it runs, admin.json in the data folder names the address.
func (s *Server) Run(ctx context.Context) error {
	if err := writeAddress(s.deps.Dir, whereabouts{Address: s.address(), PID: os.Getpid(), Version: s.deps.Version}); err != nil {
		return errors.Join(err, s.deps.Listener.Close())
	}
	defer func() { _ = os.Remove(filepath.Join(s.deps.Dir, addressFile)) }() // a client sees by itself that nobody is there
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.deps.Listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the admin API: %w", err)
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	err := s.http.Shutdown(late)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("requests to the admin API were cut off at the end")
		err = s.http.Close()
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	s.busy.Lock() // those that were cut off end, too
	defer s.busy.Unlock()
	return err
}

// routes lists every path. What a browser's session may use is marked browser,
// what needs the token owner; the rest shows nothing that is private.
func (s *Server) routes(page http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /api/v1/hello", s.hello)
	mux.HandleFunc("GET /api/v1/status", s.only(browser, s.status))
	mux.HandleFunc("GET /api/v1/series", s.only(browser, s.series))
	mux.HandleFunc("GET /api/v1/events", s.only(browser, s.events))
	mux.HandleFunc("GET /api/v1/deploys", s.only(browser, s.deploys))
	mux.HandleFunc("POST /api/v1/deploys", s.only(owner, s.deploy))
	mux.HandleFunc("POST /api/v1/deploys/{order}", s.only(owner, s.order))
	mux.HandleFunc("POST /api/v1/maintenance", s.only(owner, s.maintenance))
	mux.HandleFunc("GET /api/v1/db/{what}", s.only(browser, s.lookDB))
	mux.HandleFunc("POST /api/v1/db/{what}", s.only(owner, s.orderDB))
	mux.HandleFunc("GET /api/v1/limits", s.only(browser, s.limits))
	mux.HandleFunc("GET /api/v1/limits/show", s.only(browser, s.limitsShow))
	mux.HandleFunc("GET /api/v1/limits/audit", s.only(browser, s.limitsAudit))
	mux.HandleFunc("POST /api/v1/limits/reset", s.only(owner, s.limitsReset))
	mux.HandleFunc("POST /api/v1/limits/grant", s.only(owner, s.limitsGrant))
	mux.HandleFunc("POST /api/v1/limits/end", s.only(owner, s.limitsEnd))
	mux.HandleFunc("GET /api/v1/claude/calls", s.only(browser, s.claudeCalls))
	mux.HandleFunc("GET /api/v1/claude/kept/{id}", s.only(owner, s.claudeKept))
	mux.HandleFunc("POST /api/v1/claude/replay", s.only(owner, s.claudeReplay))
	mux.HandleFunc("POST /api/v1/reload", s.only(owner, s.reload))
	mux.HandleFunc("POST /api/v1/login-link", s.only(owner, s.loginLink))
	mux.HandleFunc("POST /api/v1/logout", s.only(browser, s.logout))
	mux.HandleFunc("GET /login", s.login)
	mux.Handle("GET /{$}", page)
	mux.Handle("GET /assets/", page)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		problem(http.StatusNotFound, "there is no "+clip(r.Method)+" "+clip(r.URL.Path)+" here", "").answer(w)
	})
	return mux
}

// throttle lets one thing through in a while.
type throttle struct {
	every time.Duration
	mu    sync.Mutex
	last  time.Time
}

func (t *throttle) allow() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if !t.last.IsZero() && now.Sub(t.last) < t.every {
		return false
	}
	t.last = now
	return true
}
