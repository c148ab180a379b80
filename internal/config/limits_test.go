package config

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/limits"
)

// Every kind of rule can be written in the file.
func TestEveryLimitCanBeWrittenInTheFile(t *testing.T) {
	c, err := parse(t, `
redis: "redis://:secret@127.0.0.1:6379/2"
limits:
  tiers:
    free: {requests: 60, window: 1m, at_once: 4, also: [{requests: 500, window: 1h}, {requests: 2000, window: 1d}]}
    pro: {requests: 1000, window: 1h, burst: 50, shadow: true}
  default_tier: free
  per: [user]
  routes:
    - {name: login, paths: [/login, "/auth/*"], methods: [POST], limit: {requests: 5, window: 1m}, on_store_failure: deny}
    - {name: ai, path: "/api/ai/*", cost: 10, tiers: {pro: {requests: 30, window: 1m}}, shadow: true}
    - {name: webhooks, path: "/hooks/*", cost: 0}
    - {name: reads, path: "/*", methods: [GET, HEAD]}
  ceiling: {requests: 5000, window: 1s}
  apps: {app: {requests: 4000, window: 1s}}
  overrides: {"user:ann": {requests: 9, window: 1m}, "address:2001:db8::1": {requests: 1, window: 1s}}
  allow: ["tier:pro", "address:10.0.0.0/8"]
  deny: ["workspace:bad"]
  shadow: true
  upgrade: https://example.com/upgrade
  cost_header: X-Cost
  on_store_failure: allow
  store_timeout: 7ms
  memory: 64MB
`)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Given("limits") || c.Redis.Reveal() != "redis://:secret@127.0.0.1:6379/2" {
		t.Error("the sections are not there")
	}
	want := limits.Tier{Requests: 60, Window: time.Minute, AtOnce: 4, Also: []limits.Window{{Requests: 500, Window: time.Hour}, {Requests: 2000, Window: 24 * time.Hour}}}
	if diff := cmp.Diff(want, c.Limits.Tiers["free"]); diff != "" {
		t.Error(diff)
	}
	if r := c.Limits.Routes[3]; r.Cost != 1 || c.Limits.Routes[2].Cost != 0 {
		t.Errorf("costs %d and %d", r.Cost, c.Limits.Routes[2].Cost)
	}
	if _, err := limits.Compile(c.Limits); err != nil {
		t.Error(err)
	}
}
