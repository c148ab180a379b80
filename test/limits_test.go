package test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/ratelimit/redistest"
)

// tally is what the answers of a storm came to.
type tally struct{ passed, limited, local, other atomic.Int64 }

// storm asks the nodes in turn, from several clients at once.
func (c *tally) storm(t *testing.T, nodes []*mainstay, clients, each int) {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for k := range each {
				resp, err := client.Get(nodes[(i+k)%len(nodes)].edge + "/version")
				if err != nil {
					t.Errorf("a request was lost: %v", err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if strings.Contains(resp.Header.Get("RateLimit"), ";mode=local") {
					c.local.Add(1)
				}
				switch {
				case resp.StatusCode == 200:
					c.passed.Add(1)
				case resp.StatusCode == 429 && resp.Header.Get("Mainstay-Code") == "limited" && resp.Header.Get("Retry-After") != "":
					c.limited.Add(1)
				default:
					c.other.Add(1)
					t.Errorf("answered %s %v", resp.Status, resp.Header)
				}
			}
		})
	}
	wg.Wait()
}

// Two nodes share a limit to the unit; a kill -9 of their Redis loses no request,
// gives nobody a second helping, and is told; and so is its return.
func TestTwoNodesShareALimitAndOutliveTheirRedis(t *testing.T) {
	const limit = 400
	redis := redistest.Start(t)
	more := fmt.Sprintf("redis: redis://%s\nlimits: {tiers: {free: {requests: %d, window: 1h}}, store_timeout: 100ms}\n", redis.Addr, limit)
	nodes := []*mainstay{setup(t, more).start(testapp()), setup(t, more).start(testapp())}
	down := func(want float64) {
		t.Helper()
		for _, m := range nodes {
			eventually(t, fmt.Sprintf("mainstay_limits_store_down %v", want), func() (bool, string) {
				v, ok := m.metrics()["mainstay_limits_store_down"]
				return ok && v == want, fmt.Sprint(v, ok)
			})
		}
	}
	var c tally
	c.storm(t, nodes, 8, 10) // 80
	if n := c.passed.Load(); n != 80 || c.local.Load() != 0 {
		t.Errorf("%d of 80 passed, %d counted by a node alone", n, c.local.Load())
	}

	var killed sync.WaitGroup
	killed.Go(redis.Kill)
	c.storm(t, nodes, 8, 20)
	killed.Wait()
	c.storm(t, nodes, 8, 5)
	down(1)
	if c.local.Load() == 0 {
		t.Error("no answer says mode=local")
	}
	for _, m := range nodes {
		eventually(t, "the event", func() (bool, string) {
			v := m.metrics()[`mainstay_events_total{name="store_down",part="limits"}`]
			return v == 1, fmt.Sprint(v)
		})
		if !strings.Contains(m.log.String(), "the shared store is down") {
			t.Error("the log does not say that the store is down")
		}
		if _, out := m.verb("status"); !strings.Contains(out, "warning: Redis does not answer") {
			t.Errorf("the status does not warn:\n%s", out)
		}
	}

	redis.Restart()
	down(0)
	c.storm(t, nodes, 8, limit/8+10)
	total := c.passed.Load()
	t.Logf("%d passed and %d were refused, %d were counted by a node alone", total, c.limited.Load(), c.local.Load())
	if total > limit*105/100 || total < limit/2 {
		t.Errorf("%d passed under a limit of %d", total, limit)
	}
	if c.limited.Load() == 0 {
		t.Error("nobody was refused")
	}
}

func TestARedisThatIsNotThereYetStopsNobody(t *testing.T) {
	redis := redistest.Start(t)
	redis.Kill()
	more := fmt.Sprintf("redis: redis://%s\nlimits: {tiers: {free: {requests: 1000, window: 1h}}}\n", redis.Addr)
	m := setup(t, more).start(testapp())
	var c tally
	c.storm(t, []*mainstay{m}, 4, 5)
	if c.passed.Load() != 20 || c.local.Load() != 20 {
		t.Errorf("%d of 20 passed, %d counted by the node alone", c.passed.Load(), c.local.Load())
	}
	redis.Restart()
	eventually(t, "the shared count", func() (bool, string) {
		var c tally
		c.storm(t, []*mainstay{m}, 1, 1)
		return c.local.Load() == 0, "mode=local"
	})
}

func TestAReloadChangesTheLimitsAndNotWhatIsCounted(t *testing.T) {
	m := setup(t, "limits: {tiers: {free: {requests: 3, window: 1h}}}\n").start(testapp())
	var c tally
	c.storm(t, []*mainstay{m}, 1, 5)
	if c.passed.Load() != 3 || c.limited.Load() != 2 {
		t.Errorf("%d passed, %d limited", c.passed.Load(), c.limited.Load())
	}
	m.edit("requests: 3", "requests: 5")
	if code, out := m.verb("reload"); code != 0 {
		t.Fatalf("reload: %d %s", code, out)
	}
	c.storm(t, []*mainstay{m}, 1, 5)
	if c.passed.Load() != 5 || c.limited.Load() != 5 {
		t.Errorf("after the reload %d passed, %d limited", c.passed.Load(), c.limited.Load())
	}
}

// The app is a Node server that asks by the five lines of test/clients/limits-ts.
func TestTheAppAsksInFiveLinesOfTypeScript(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("node is missing, and CI may not do without")
		}
		t.Skip("node is not installed: nothing here can be shown without it")
	}
	source, err := os.ReadFile("clients/limits-ts/limit.ts")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), "\n"); n > 6 {
		t.Errorf("the client has %d lines", n)
	}
	more := fmt.Sprintf("limits: {tiers: {free: {requests: 1000, window: 1h}}}\nlocal: {listen: \"127.0.0.1:%d\"}\n", ports(t, 1)[0])
	m := setup(t, more).start(node, absolute(t, "clients/limits-ts/app.mjs"))
	for i, want := range []string{"1 left", "0 left"} {
		if status, _, body := m.get("/export", "X-Test-User", "ann"); status != 200 || body != want {
			t.Errorf("export %d: %d %s", i, status, body)
		}
	}
	status, _, body := m.get("/export", "X-Test-User", "ann")
	if status != 429 || !strings.Contains(body, "The limit exports of 2 in 1h is used up") {
		t.Errorf("the third export: %d %s", status, body)
	}
	if status, _, _ := m.get("/export", "X-Test-User", "bob"); status != 200 {
		t.Errorf("another user: %d", status)
	}
	if v := m.metrics()[`mainstay_local_checks_total{outcome="refused"}`]; v < 1 {
		t.Errorf("%v refusals are counted", v)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

func TestThePeopleWhoRunItSeeAndChangeTheLimits(t *testing.T) {
	m := setup(t, "limits: {tiers: {free: {requests: 10, window: 1h}}}\n").start(testapp())
	var c tally
	c.storm(t, []*mainstay{m}, 1, 12)
	verb := func(want string, args ...string) string {
		t.Helper()
		code, out := m.verb(append([]string{"limits"}, args...)...)
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("mainstay limits %v: %d %s", args, code, out)
		}
		return out
	}
	if out := verb("address:127.0.0.1", "top"); !strings.Contains(out, "100%") {
		t.Errorf("got %s", out)
	}
	verb(`"remaining":0`, "show", "address:127.0.0.1", "--json")
	verb("has a limit of its own", "grant", "address:127.0.0.1", "--requests", "15", "--window", "1h", "--for", "1h", "--why", "launch")
	c.storm(t, []*mainstay{m}, 1, 10)
	if n := c.passed.Load(); n != 15 {
		t.Errorf("%d passed with a grant of 15", n)
	}
	verb("limits from the grant", "show", "address:127.0.0.1")
	verb("begins anew", "reset", "address:127.0.0.1")
	verb("has its tier's limit again", "grant", "address:127.0.0.1", "--end")
	c.storm(t, []*mainstay{m}, 1, 12)
	if n := c.passed.Load(); n != 25 {
		t.Errorf("%d passed after the reset", n)
	}
	verb("has a limit of its own", "grant", "user:ann", "--claude", "--requests", "5", "--window", "1h")
	verb("user:ann (Claude)", "top")
	verb("granted for Claude", "show", "user:ann")
	verb("has its tier's limit again", "grant", "user:ann", "--claude", "--end")
	if out := verb("granted", "audit"); !strings.Contains(out, "launch") || !strings.Contains(out, "reset") || !strings.Contains(out, "ended") {
		t.Errorf("got %s", out)
	}
	series := `mainstay_limits_decisions_total{outcome="refused",rule="address",tier="free"}`
	eventually(t, series, func() (bool, string) {
		v := m.metrics()[series]
		return v == float64(c.limited.Load()), fmt.Sprint(v, c.limited.Load())
	})
}

// A restart in the middle of a window is no second helping: neither with Redis, nor
// on a node that counts alone.
func TestARestartInMidWindowGivesNoSecondHelping(t *testing.T) {
	redis := redistest.Start(t)
	for name, more := range map[string]string{"with Redis": fmt.Sprintf("redis: redis://%s\n", redis.Addr), "alone": ""} {
		t.Run(name, func(t *testing.T) {
			m := setup(t, more+"limits: {tiers: {free: {requests: 20, window: 1h}}, store_timeout: 200ms}\n").start(testapp())
			var c tally
			c.storm(t, []*mainstay{m}, 2, 6)
			m.stop(m.cmd, m.exited)
			m.out.buf.Reset()
			m.start(testapp())
			c.storm(t, []*mainstay{m}, 2, 10)
			if n := c.passed.Load(); n != 20 {
				t.Errorf("%d passed under a limit of 20", n)
			}
		})
	}
}

// A Redis user with what docs/limits.md names and no more is enough; what is granted
// on one node holds on the other.
func TestAGrantHoldsOnAllNodesWithAnACLUserThatMayDoNoMore(t *testing.T) {
	redis := redistest.Start(t, append([]string{"--user", "limits", "on", ">secret", "~mainstay:*"}, permissions(t)...)...)
	more := fmt.Sprintf("redis: redis://limits:secret@%s\nlimits: {tiers: {free: {requests: 3, window: 1h}}, store_timeout: 200ms}\n", redis.Addr)
	nodes := []*mainstay{setup(t, more).start(testapp()), setup(t, more).start(testapp())}
	if code, out := nodes[0].verb("limits", "grant", "address:127.0.0.1", "--requests", "9", "--window", "1h"); code != 0 {
		t.Fatalf("grant: %d %s", code, out)
	}
	eventually(t, "the grant on the other node", func() (bool, string) {
		v := nodes[1].metrics()["mainstay_limits_grants"]
		return v == 1, fmt.Sprint(v)
	})
	eventually(t, "both nodes to know one another", func() (bool, string) {
		_, out := nodes[1].verb("limits", "top")
		return strings.Contains(out, "shared by Redis, 2 nodes live"), out
	})
	var c tally
	c.storm(t, nodes, 2, 8)
	if c.passed.Load() != 9 || c.local.Load() != 0 {
		t.Errorf("%d passed with a grant of 9, %d without Redis", c.passed.Load(), c.local.Load())
	}
	eventually(t, "the callers of both nodes", func() (bool, string) {
		_, out := nodes[1].verb("limits", "top")
		return strings.Contains(out, "callers of 2") && strings.Contains(out, fmt.Sprintf("  %d  ", c.limited.Load())), out
	})
	for _, m := range nodes {
		if log := m.log.String(); strings.Contains(log, "NOPERM") || strings.Contains(log, "secret@") {
			t.Errorf("the log holds what it must not:\n%s", log)
		}
	}
}

// permissions are those that the documentation names.
func permissions(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(\\+evalsha [^`]*)`").FindSubmatch(text)
	if named == nil {
		t.Fatal("docs/limits.md names no permissions")
	}
	return append([]string{"-@all"}, strings.Fields(string(named[1]))...)
}
