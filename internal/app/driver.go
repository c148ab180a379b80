package app

import (
	"fmt"
	"path/filepath"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/docker"
	"mainstay.dev/mainstay/internal/deploy/process"
	"mainstay.dev/mainstay/internal/deploy/targets"
	"mainstay.dev/mainstay/internal/setting"
)

// driver chooses what runs the app, and makes env fit for it.
func (a *App) driver(res *Resolved, env *environment) (deploy.Driver, error) {
	if len(res.App.Targets) > 0 {
		return targets.New(), nil
	}
	dir := filepath.Join(res.Data, "app")
	if res.App.Image == "" {
		d, err := process.New(process.Options{Dir: dir, Log: a.part("app"), Lines: a.monitor.Line})
		if err != nil {
			return nil, fmt.Errorf("set up the process driver: %w", err)
		}
		return d, nil
	}
	var ps setting.Problems
	for _, plane := range []struct {
		key  string
		addr *string
	}{{"pooler.listen", &env.poolerAddr}, {"claude.listen", &env.claudeAddr}, {"local.listen", &env.localAddr}} {
		if *plane.addr == "" {
			continue
		}
		inside, ok := res.App.Docker.Reach(*plane.addr)
		if !ok {
			ps.Add(plane.key, fmt.Sprintf("containers on the network %q cannot reach %s", res.App.Docker.Network, *plane.addr), "set app.docker.network: host, or listen on the address of the Docker bridge, as 172.17.0.1")
		}
		*plane.addr = inside
	}
	env.base = nil // a container has an environment of its own
	d, err := docker.New(docker.Options{Config: res.App.Docker, Image: res.App.Image, Service: res.Service, Dir: dir, Log: a.part("app"), Lines: a.monitor.Line})
	ps.Below("app", setting.Of(err))
	if err := res.Locate(ps); err != nil {
		return nil, err
	}
	a.docker = d
	return d, nil
}
