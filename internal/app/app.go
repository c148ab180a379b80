// Package app is the composition root: the one place where the parts meet. It
// resolves what the environment adds to the file, binds listeners, wires the
// planes to the sinks, and runs them in order.
//
// Only cmd imports it.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/calls"
	"mainstay.dev/mainstay/internal/config"
	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/docker"
	"mainstay.dev/mainstay/internal/lifecycle"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/local"
	"mainstay.dev/mainstay/internal/monitor"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler"
	"mainstay.dev/mainstay/telemetry"
	"mainstay.dev/mainstay/telemetry/otlp"
	"mainstay.dev/mainstay/telemetry/prom"
)

// Options is what cmd gives an App.
type Options struct {
	// Load reads the file; Reload calls it again.
	Load    func() (*config.Config, error)
	Command deploy.Command // from the command line; goes before app.run
	Environ []string       // Mainstay's own environment
	Version string
	// Logs gets the log. Nothing waits for it but the end, for at most two seconds.
	Logs io.Writer
	// Terminal tells that Logs is read by a person.
	Terminal bool
	Out      io.Writer // for the start-up block
}

// App is Mainstay, wired and not yet running.
type App struct {
	opts    Options
	began   time.Time
	data    *dataFolder
	log     *slog.Logger
	logs    *logControl
	sink    telemetry.Sink
	monitor *monitor.Monitor
	metrics *prom.Sink
	export  *otlp.Sink // nil: traces stay here

	identity *identity.Desk

	redis  *redisLink   // nil: one node
	limits *limits.Gate // nil: off

	edge   *edge.Server
	pooler *pooler.Server // nil: off
	claude *claude.Server // nil: off
	calls  *calls.Ring    // nil: likewise
	local  *local.Server  // nil: off
	deploy *deploy.Deployer
	docker *docker.Driver // nil: the app is no container
	admin  *admin.Server

	current   atomic.Pointer[Resolved]
	reloading sync.Mutex
	ready     atomic.Bool
	closers   []io.Closer
}

// New reads the configuration and wires the parts. It takes the data folder and
// binds the listeners, so that every mistake shows before anything runs; it
// starts nothing.
func New(opts Options) (*App, error) {
	res, err := load(opts)
	if err != nil {
		return nil, err
	}
	a := &App{opts: opts, began: time.Now()}
	a.current.Store(res)
	if err := a.wire(res); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func load(opts Options) (*Resolved, error) {
	c, err := opts.Load()
	if err != nil {
		return nil, err
	}
	return Resolve(c, opts.Command, lookup(opts.Environ))
}

// lookup makes an os.LookupEnv of a list.
func lookup(environ []string) config.Env {
	return func(name string) (string, bool) {
		v := getenv(environ, name)
		return v, v != ""
	}
}

// Check says what New would find wrong in a configuration without taking or
// binding anything.
func Check(res *Resolved) error {
	var ps setting.Problems
	_, err := identity.Compile(res.Identity)
	ps.Below("identity", setting.Of(err))
	_, err = edge.Compile(res.Edge)
	ps.Below("edge", setting.Of(err))
	if res.LimitsOn() {
		_, err = limits.Compile(res.Limits)
		ps.Below("limits", setting.Of(err))
	}
	if res.Redis != "" {
		_, err = redisOption(res.Redis)
		ps = append(ps, setting.Of(err)...)
	}
	if res.PoolerOn() {
		_, err = pooler.Compile(res.Pooler)
		ps.Below("pooler", setting.Of(err))
	}
	if res.ClaudeOn {
		_, err = claude.Compile(res.Claude)
		ps.Below("claude", setting.Of(err))
	}
	return res.Locate(ps)
}

func (a *App) wire(res *Resolved) error {
	if err := Check(res); err != nil {
		return err
	}
	data, err := openData(res.Data)
	if err != nil {
		return res.Locate(setting.Of(err))
	}
	a.data = data
	a.closers = append(a.closers, data)
	ls, err := a.bind(res)
	if err != nil {
		return err
	}
	creds, err := loadCredentials(res.Data)
	if err != nil {
		return err
	}
	if err := a.wireTelemetry(res); err != nil {
		return err
	}
	if err := a.wireIdentity(res); err != nil {
		return err
	}
	if err := a.wireLimits(res); err != nil {
		return err
	}
	return a.wirePlanes(res, ls, creds)
}

// listeners are the bound addresses; nil where a plane is off.
type listeners struct{ edge, edgeTLS, pooler, claude, local, admin net.Listener }

// bind opens every listener, and names all that cannot be had at once.
func (a *App) bind(res *Resolved) (ls listeners, err error) {
	var ps setting.Problems
	for _, l := range []struct {
		path, addr string
		on         bool
		to         *net.Listener
	}{
		{"edge.listen", res.Edge.Listen, res.Edge.Listen != "", &ls.edge},
		{"edge.tls.listen", res.Edge.TLS.Listen, res.Edge.TLS.Listen != "", &ls.edgeTLS},
		{"pooler.listen", res.Pooler.Listen, res.PoolerOn(), &ls.pooler},
		{"claude.listen", res.Claude.Listen, res.ClaudeOn, &ls.claude},
		{"local.listen", res.Local.Listen, res.LocalOn(), &ls.local},
		{"admin.listen", res.Admin.Listen, true, &ls.admin},
	} {
		if !l.on {
			continue
		}
		ln, err := net.Listen("tcp", l.addr)
		switch {
		case err == nil:
			*l.to = ln
			a.closers = append(a.closers, ln)
		case errors.Is(err, syscall.EADDRINUSE):
			ps.Add(l.path, l.addr+" is in use by another program", "stop it, or name another address")
		case errors.Is(err, syscall.EACCES):
			ps.Add(l.path, l.addr+" needs a privilege that Mainstay lacks", "use a port from 1024 on, or grant CAP_NET_BIND_SERVICE")
		default:
			ps.Add(l.path, "cannot be listened on: "+err.Error(), "name a host:port of this machine")
		}
	}
	return ls, res.Locate(ps)
}

func (a *App) wirePlanes(res *Resolved, ls listeners, creds credentials) error {
	var ps setting.Problems
	var err error
	a.edge, err = edge.New(res.Edge, edge.Deps{Listener: ls.edge, TLS: ls.edgeTLS, Identity: a.identity, Limits: a.limits, Log: a.part("edge"), Sink: a.sink})
	ps.Below("edge", setting.Of(err))
	env := environment{base: a.opts.Environ, service: res.Service, environment: res.Environment, creds: creds}
	if res.PoolerOn() {
		a.pooler, err = pooler.New(res.Pooler, pooler.Deps{Listener: ls.pooler, Log: a.part("pooler"), Sink: a.sink, Grants: creds.grants(res.Database)})
		ps.Below("pooler", setting.Of(err))
		env.database, env.poolerAddr = res.Database, dialable(ls.pooler)
		env.upstream = res.Pooler.Databases[res.Database].Upstream.Reveal()
	}
	if res.ClaudeOn {
		d := claude.Deps{Listener: ls.claude, Dir: res.Data, Log: a.part("claude"), Sink: a.sink, Identity: a.identity, Colors: colors}
		if a.limits != nil {
			d.Limits = a.limits
		}
		a.claude, err = claude.New(res.Claude, d)
		ps.Below("claude", setting.Of(err))
		env.claudeAddr = dialable(ls.claude)
	}
	if ls.local != nil {
		a.local, err = local.New(res.Local, local.Deps{Listener: ls.local, Limits: a.limits, Open: a.identity.Open, Log: a.part("local")})
		ps.Below("local", setting.Of(err))
		env.localAddr = dialable(ls.local)
	}
	driver, err := a.driver(res, &env)
	if err != nil {
		return err
	}
	a.deploy, err = deploy.New(res.App, deploy.Deps{Edge: a.edge, Driver: driver, Env: env.of, Evidence: evidence{a.monitor}, Burning: a.burning, Dir: filepath.Join(res.Data, "app"), Log: a.part("deploy"), Sink: a.sink})
	ps.Below("app", setting.Of(err))
	if len(ps) > 0 {
		return res.Locate(ps)
	}
	a.admin, err = admin.New(res.Admin, admin.Deps{
		Listener: ls.admin, Dir: res.Data, Metrics: a.metrics.Handler(), Planes: a.planes, Deploys: a.deploy, Limits: a.limits, Databases: a.databases(), Calls: a.calls, Replays: replays{a.claude},
		Reload: a.Reload, Monitor: a.monitor, Levels: a.levels, Ready: a.Ready,
		Service: res.Service, Environment: res.Environment, Version: a.opts.Version, Log: a.part("admin"), Sink: a.sink,
	})
	if err != nil {
		ps.Below("admin", setting.Of(err))
		return res.Locate(ps)
	}
	return nil
}

func (a *App) part(name string) *slog.Logger { return a.log.With("part", name) }

// dialable is the address at which this machine reaches a listener.
func dialable(ln net.Listener) string {
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return ln.Addr().String()
	}
	host := addr.IP.String()
	if addr.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, fmt.Sprint(addr.Port))
}

// Run serves until ctx ends, then stops the parts one by one, last first: the
// edge drains while everything that its requests need still works.
func (a *App) Run(ctx context.Context) error {
	defer a.close()
	var parts []lifecycle.Part
	if a.export != nil {
		parts = append(parts, lifecycle.Part{Name: "telemetry", Run: lifecycle.Simple(a.export.Run)})
	}
	if a.redis != nil {
		parts = append(parts, lifecycle.Part{Name: "redis", Run: lifecycle.Simple(a.redis.Run)})
	}
	if a.limits != nil {
		parts = append(parts, lifecycle.Part{Name: "limits", Run: lifecycle.Simple(a.limits.Run)})
	}
	parts = append(parts,
		lifecycle.Part{Name: "identity", Run: lifecycle.Simple(a.identity.Run)},
		lifecycle.Part{Name: "admin", Run: lifecycle.Simple(a.admin.Run)})
	if a.local != nil {
		parts = append(parts, lifecycle.Part{Name: "local", Run: lifecycle.Simple(a.local.Run)})
	}
	if a.pooler != nil {
		parts = append(parts, lifecycle.Part{Name: "pooler", Run: lifecycle.Simple(a.pooler.Run)})
	}
	if a.claude != nil {
		parts = append(parts, lifecycle.Part{Name: "claude", Run: lifecycle.Simple(a.claude.Run)})
	}
	parts = append(parts,
		lifecycle.Part{Name: "app", Run: a.deploy.Run},
		lifecycle.Part{Name: "edge", Run: lifecycle.Simple(a.edge.Run)})
	return lifecycle.Run(ctx, a.part("app"), a.started, parts...)
}

func (a *App) started() {
	a.ready.Store(true)
	a.banner()
}

// Ready reports whether requests can be served, and if not, why.
func (a *App) Ready() error {
	if !a.ready.Load() {
		return errors.New("starting")
	}
	st := a.deploy.Status()
	live := st.Live
	if live == nil {
		return errors.New("no copy of the app is live")
	}
	if st.Maintenance {
		return errors.New("maintenance mode is on; mainstay maintenance off ends it")
	}
	if live.State != deploy.Healthy && (st.Old == nil || st.Old.Share == 0 || st.Old.State != deploy.Healthy) {
		return fmt.Errorf("the live copy of the app (%s) is %s: %s", live.ID, live.State, live.Reason)
	}
	return nil
}

// Kill ends the copies of the app at once, and the log. It is for the second signal:
// the process that calls it ends right after.
func (a *App) Kill() {
	a.part("app").Warn("stopped at once; what was in flight is cut")
	a.deploy.Kill()
	a.closeLog()
}

// close gives back what New took; a listener that a part has closed is closed
// twice without harm. The log is the last, since the others may use it.
func (a *App) close() {
	for _, c := range slices.Backward(a.closers) {
		_ = c.Close()
	}
	a.closeLog()
}

func (a *App) closeLog() {
	if a.logs != nil {
		_ = a.logs.queue.Close() // who does not read the log is not told so by it
	}
}

// Levels of all parts, for the metrics.
func (a *App) levels() []telemetry.Level {
	ls := append(append(a.edge.Levels(), a.deploy.Levels()...), a.monitor.Levels()...)
	ls = append(ls, a.identityLevels()...)
	if a.pooler != nil {
		ls = append(ls, a.pooler.Levels()...)
	}
	if a.claude != nil {
		ls = append(ls, a.claude.Levels()...)
	}
	if a.export != nil {
		ls = append(ls, a.export.Levels()...)
	}
	if a.limits != nil {
		ls = append(ls, a.limits.Levels()...)
	}
	if a.local != nil {
		ls = append(ls, a.local.Levels()...)
	}
	ls = append(ls, a.logs.queue.Levels()...)
	ready := 0.0
	if a.Ready() == nil {
		ready = 1
	}
	return append(ls,
		telemetry.Level{Name: "mainstay_ready", Help: "1 if requests can be served.", Value: ready},
		telemetry.Level{Name: "mainstay_start_time_seconds", Help: "When Mainstay started, in Unix time.", Value: float64(a.began.Unix())})
}

// host is the name of this machine, for the resource of traces.
func host() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
