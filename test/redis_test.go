package test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"mainstay.dev/mainstay/ratelimit/redistest"
)

// Two nodes share limits, a caller's and one over all, through whatever kind of Redis
// the file names.
func TestLimitsAreSharedThroughEveryKindOfRedis(t *testing.T) {
	for name, address := range map[string]func(t *testing.T) string{
		"TLS": func(t *testing.T) string {
			s := redistest.StartTLS(t)
			t.Setenv("SSL_CERT_FILE", s.CA)
			return "rediss://" + s.Addr
		},
		"Sentinel": func(t *testing.T) string {
			w := redistest.StartSentinel(t)
			q := url.Values{"master_set": {w.Name}, "addr": w.Sentinels[1:]}
			return "redis://" + w.Sentinels[0] + "?" + q.Encode()
		},
		"Cluster": func(t *testing.T) string {
			nodes := redistest.StartCluster(t, 3)
			return "redis://" + nodes[0].Addr + "?" + url.Values{"addr": {nodes[1].Addr, nodes[2].Addr}}.Encode()
		},
	} {
		t.Run(name, func(t *testing.T) {
			redis := address(t)
			for _, l := range []struct {
				limits string
				rule   string
			}{
				{"tiers: {free: {requests: 30, window: 1h}}, ceiling: {requests: 1000, window: 1h}", "address"},
				{"tiers: {free: {requests: 1000, window: 1h}}, ceiling: {requests: 40, window: 1h}", "ceiling"},
			} {
				if l.rule == "ceiling" && name != "Cluster" {
					continue // it is another slot only there
				}
				more := fmt.Sprintf("redis: %q\nlimits: {%s, store_timeout: 1s}\n", redis, l.limits)
				nodes := []*mainstay{setup(t, more).start(testapp()), setup(t, more).start(testapp())}
				var c tally
				c.storm(t, nodes, 4, 15)
				// The second pair of nodes finds 30 requests of the first in the counters.
				want := map[string]int64{"address": 30, "ceiling": 10}[l.rule]
				if c.passed.Load() != want || c.limited.Load() != 60-want || c.local.Load() != 0 {
					t.Errorf("%s: %d passed, want %d; %d limited, %d without Redis", l.rule, c.passed.Load(), want, c.limited.Load(), c.local.Load())
				}
				for _, m := range nodes {
					if strings.Contains(m.log.String(), "is down") {
						t.Errorf("the log says that Redis is down:\n%s", m.log.String())
					}
				}
			}
		})
	}
}
