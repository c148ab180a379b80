package app

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

// Reload applies the file again, all of it or none: every part compiles its
// section before any part changes, and a commit cannot fail.
func (a *App) Reload(context.Context) error {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	commit, err := a.prepare()
	if err != nil {
		a.event(slog.LevelError, "reload_refused", "The configuration was refused; nothing changed.", slog.Any("err", err))
		return fmt.Errorf("reload refused, nothing changed:\n%w", err)
	}
	commit()
	a.event(slog.LevelInfo, "reloaded", "The configuration was read again and is in force.")
	return nil
}

func (a *App) prepare() (commit func(), err error) {
	next, err := load(a.opts)
	if err != nil {
		return nil, err
	}
	old := a.current.Load()
	var ps setting.Problems
	fixed(&ps, old, next)
	var commits []func()
	part := func(section string, commit func(), err error) {
		ps.Below(section, setting.Of(err))
		commits = append(commits, commit)
	}
	c, err := a.identity.Prepare(next.Identity)
	part("identity", c, err)
	c, err = a.edge.Prepare(next.Edge)
	part("edge", c, err)
	if a.limits != nil && next.LimitsOn() {
		c, err = a.limits.Prepare(next.Limits)
		part("limits", c, err)
	}
	if a.pooler != nil && next.PoolerOn() {
		c, err = a.pooler.Prepare(next.Pooler)
		part("pooler", c, err)
	}
	if a.claude != nil && next.ClaudeOn {
		c, err = a.claude.Prepare(next.Claude)
		part("claude", c, err)
	}
	c, err = a.deploy.Prepare(next.App)
	part("app", c, err)
	if a.docker != nil {
		c, err = a.docker.Prepare(next.App.Docker)
		part("app", c, err)
	}
	if err := next.Locate(ps); err != nil {
		return nil, err
	}
	return func() {
		for _, commit := range commits {
			commit()
		}
		a.logs.set(next.Telemetry.Logs, a.opts.Terminal)
		if a.calls != nil {
			a.calls.Resize(next.Claude.Calls)
		}
		a.current.Store(next)
	}, nil
}

// fixed notes the settings that only a restart can change.
func fixed(ps *setting.Problems, old, next *Resolved) {
	tel, was := next.Telemetry, old.Telemetry
	tel.Logs.Level, was.Logs.Level = "", ""
	tel.Logs.Exchanges, was.Logs.Exchanges = "", ""
	for _, f := range []struct {
		path      string
		old, next any
	}{
		{"service", old.Service, next.Service},
		{"environment", old.Environment, next.Environment},
		{"redis", old.Redis, next.Redis},
		{"limits", old.LimitsOn(), next.LimitsOn()}, // they can change, but not come and go
		{"local", old.Local, next.Local},
		{"local", old.LocalOn(), next.LocalOn()},
		{"data", old.Data, next.Data},
		{"app.image", old.App.Image != "", next.App.Image != ""},             // another driver
		{"app.targets", len(old.App.Targets) > 0, len(next.App.Targets) > 0}, // likewise
		{"admin", old.Admin, next.Admin},
		{"telemetry", was, tel},
	} {
		if !reflect.DeepEqual(f.old, f.next) {
			ps.Add(f.path, "cannot change while running", "restart Mainstay")
		}
	}
	if old.PoolerOn() != next.PoolerOn() || old.Database != next.Database {
		ps.Add("pooler", "cannot be switched on or off, or lead the app to another database, while running", "restart Mainstay")
	}
	if old.ClaudeOn != next.ClaudeOn {
		ps.Add("claude", "cannot be switched on or off while running", "restart Mainstay")
	}
}

func (a *App) event(level slog.Level, name, text string, attrs ...slog.Attr) {
	a.noticeOf("app")(level, name, text, attrs...)
}

// noticeOf tells of what happens in a part.
func (a *App) noticeOf(part string) func(slog.Level, string, string, ...slog.Attr) {
	return func(level slog.Level, name, text string, attrs ...slog.Attr) {
		a.sink.Emit(telemetry.Event{Time: time.Now(), Part: part, Name: name, Level: level, Text: text, Attrs: attrs})
	}
}
