package app

import (
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/setting"
)

// wireLimits makes the gate that the planes ask, if the file has limits, and the
// link to Redis, if it names one.
func (a *App) wireLimits(res *Resolved) error {
	if res.Redis != "" {
		link, err := newRedisLink(res, a.part("redis"))
		if err != nil {
			return res.Locate(setting.Of(err))
		}
		a.redis = link
		a.closers = append(a.closers, link)
	}
	if !res.LimitsOn() {
		return nil
	}
	d := limits.Deps{Dir: res.Data, Log: a.part("limits"), Sink: a.sink}
	if a.redis != nil {
		d.Store, d.Nodes = limitStore{a.redis}, a.redis.nodes
		d.Board = board{a.redis}
	}
	gate, err := limits.NewGate(res.Limits, d)
	if err != nil {
		var ps setting.Problems
		ps.Below("limits", setting.Of(err))
		return res.Locate(ps)
	}
	a.limits = gate
	return nil
}
