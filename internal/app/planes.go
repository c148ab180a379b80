package app

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/calls"
)

// planes describes the three planes, for the status and the start-up block.
func (a *App) planes() []admin.Plane {
	res := a.current.Load()
	return []admin.Plane{a.edgePlane(res), a.poolerPlane(res), a.claudePlane(res)}
}

func (a *App) edgePlane(res *Resolved) admin.Plane {
	p := admin.Plane{Name: "edge", State: "on", Listen: url1("http", res.Edge.Listen), Stats: a.edge.Stats()}
	if res.Edge.TLS.Listen != "" {
		p.Listen = strings.TrimPrefix(p.Listen+", "+url1("https", res.Edge.TLS.Listen), ", ")
	}
	if live := a.deploy.Status().Live; live != nil {
		p.Upstream = fmt.Sprintf("%s, http://%s", live.Color, live.Address)
		if live.PID != 0 {
			p.Upstream += fmt.Sprintf(", pid %d", live.PID)
		}
	}
	return p
}

func (a *App) poolerPlane(res *Resolved) admin.Plane {
	if a.pooler == nil {
		return admin.Plane{Name: "pooler", State: "off", Note: "no DATABASE_URL in the environment and no pooler.databases in the file"}
	}
	db := res.Pooler.Databases[res.Database]
	note := fmt.Sprintf("%s mode, %d to %d connections", db.Mode, db.Pool.Min, db.Pool.Max)
	if res.DatabaseFromEnv {
		note += ", from DATABASE_URL"
	}
	if n := len(res.Pooler.Databases); n > 1 {
		note += fmt.Sprintf("; %d databases, the app's is %s", n, res.Database)
	}
	return admin.Plane{Name: "pooler", State: "on", Listen: res.Pooler.Listen, Upstream: withoutSecrets(db.Upstream.Reveal()), Note: note, Stats: a.pooler.Stats()}
}

func (a *App) claudePlane(res *Resolved) admin.Plane {
	if a.claude == nil {
		return admin.Plane{Name: "claude", State: "off", Note: "no claude section in the file, and none of " + strings.Join(claudeVariables, ", ") + " in the environment"}
	}
	note := "retry policy " + res.Claude.Retry.Policy
	stats := a.claude.Stats()
	if more := stats.Summary(); more != "" {
		note += "; " + more
	}
	return admin.Plane{Name: "claude", State: "on", Listen: url1("http", res.Claude.Listen), Upstream: withoutSecrets(res.Claude.Upstream), Note: note, Stats: stats}
}

// url1 makes a URL that a person can open of a listen address.
func url1(scheme, listen string) string {
	if listen == "" {
		return ""
	}
	host := strings.Replace(listen, "0.0.0.0:", "127.0.0.1:", 1)
	if strings.HasPrefix(host, ":") {
		host = "127.0.0.1" + host
	}
	return scheme + "://" + host
}

// withoutSecrets keeps of a URL what tells where it leads.
func withoutSecrets(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "an address that cannot be shown"
	}
	host := u.Host
	if u.Scheme == "postgres" || u.Scheme == "postgresql" {
		return host + u.Path
	}
	return u.Scheme + "://" + host + u.Path
}

// replays shows admin what the Claude plane keeps, in words that both know.
type replays struct{ plane *claude.Server }

func (r replays) Kept(id string) (calls.Kept, error) {
	k, err := r.plane.Kept(id)
	return calls.Kept{ID: k.ID, At: k.At, Path: k.Path, Model: k.Model, Bytes: k.Bytes, Removed: k.Removed, NeedsKey: k.OwnKey}, sayWhy(err)
}

func (r replays) Replay(ctx context.Context, id, key string) (calls.Replayed, error) {
	d, err := r.plane.Replay(ctx, id, key)
	return calls.Replayed{
		Of: d.Of, ID: d.ID, Status: d.Status, Code: string(d.Code), Attempts: d.Attempts, Took: d.Took, Dollars: d.Dollars, Body: d.Body,
	}, sayWhy(err)
}

func sayWhy(err error) error {
	for from, to := range map[error]error{claude.ErrNoneKept: calls.ErrOff, claude.ErrNotKept: calls.ErrUnknown, claude.ErrNoKey: calls.ErrNoKey} {
		if errors.Is(err, from) {
			return to
		}
	}
	return err
}
