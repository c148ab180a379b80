package admin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/telemetry"
)

const (
	seen     = `document.body.innerText`
	sideways = `String(document.documentElement.scrollWidth > innerWidth)`
)

// busy is a Mainstay with something to show. Texts that come from outside try to
// be HTML.
func busy(requests *atomic.Int64) func(*Config, *Deps) {
	var c limits.Config
	c.SetDefaults()
	gate, err := limits.NewGate(c, limits.Deps{})
	for range 90 {
		_, late := gate.Admit(context.Background(), limits.Ask{User: "<i>eve</i>"})
		err = errors.Join(err, late)
	}
	if err != nil {
		panic(err)
	}
	return func(_ *Config, d *Deps) {
		d.Limits = gate
		d.Planes = func() []Plane {
			return []Plane{
				{Name: "edge", State: "on", Listen: "http://127.0.0.1:8080", Upstream: "green, http://127.0.0.1:41234"},
				{Name: "pooler", State: "on", Listen: "127.0.0.1:6432", Upstream: "db.example:5432/app",
					Stats: map[string]any{"databases": []map[string]any{{"database": "app", "outage": "connection refused"}}}},
				{Name: "claude", State: "off", Note: "no claude section in the file"},
			}
		}
		d.Deploys = &fakeApp{
			status: deploy.Status{
				Live: &deploy.Copy{ID: "green-2", Color: "green", Version: "1.4.2", Address: "127.0.0.1:41234", PID: 4711, State: deploy.Healthy, Began: time.Now().Add(-time.Hour), Restarts: 1, LastExit: "exit code 1"},
			},
			history: []deploy.Record{
				{Number: 2, Color: "green", Target: "green-2", Version: "1.4.2", Why: "<b>faster</b>", Began: time.Now(), TookMS: 8200, Phase: deploy.Settled},
				{Number: 1, Color: "blue", Target: "blue-1", Began: time.Now(), Phase: deploy.Failed, Error: "blue-1 was not healthy"},
			},
		}
		d.Levels = func() []telemetry.Level {
			state := func(s string) []telemetry.Label { return []telemetry.Label{{Name: "state", Value: s}} }
			return []telemetry.Level{
				{Name: "mainstay_edge_requests_in_flight", Value: float64(requests.Load())},
				{Name: "mainstay_pooler_servers", Labels: state("idle"), Value: 3},
				{Name: "mainstay_pooler_servers", Labels: state("active"), Value: 4},
				{Name: "mainstay_pooler_waiting", Value: 6},
			}
		}
	}
}

func TestTheDashboardLivesInARealBrowser(t *testing.T) {
	b := openTab(t)
	var inFlight atomic.Int64
	inFlight.Store(42)
	s := newServer(t, busy(&inFlight))
	stop := run(t, s)
	m := s.deps.Monitor
	for range 95 {
		m.Record(&telemetry.Exchange{Plane: "edge", Color: "green", Code: "ok", Took: 20 * time.Millisecond})
	}
	for range 5 {
		m.Record(&telemetry.Exchange{Plane: "edge", Color: "green", Code: "target_broke", Blame: telemetry.BlameUpstream, Took: 20 * time.Millisecond})
	}
	m.Emit(telemetry.Event{Part: "deploy", Name: "app_crashed", Level: slog.LevelWarn, Text: `<img src=x onerror="document.title='owned'"> crashed`})

	b.open("http://" + s.address() + "/")
	b.waitFor(seen, "This dashboard is private")
	if text := b.eval(seen); strings.Contains(text, "unite-hub") || strings.Contains(text, "req/s") {
		t.Errorf("a stranger sees %s", text)
	}

	link, err := NewClient(s.deps.Dir).DashboardLink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.open(link)
	for _, want := range []string{
		"unite-hub", "test", "Mainstay 1.2.3", "serving, with errors in edge", // the head
		"req/s", "p95", "target_broke 5", "ok 95", "4 busy, 3 idle", "database down", "app: connection refused", "no claude section in the file", // the planes
		"green-2", "live", "healthy", "127.0.0.1:41234", "4711", // the app
		"Nearest to a rate limit", "user:<i>eve</i>", "90 %", // the limits
		"#2, took 8.2 s", "<b>faster</b>", "blue-1 was not healthy", // the deploys
		`<img src=x onerror=`, "A browser opened the dashboard", // the events, as text
	} {
		b.waitFor(seen, want)
	}
	if at := b.eval("location.pathname + location.search"); at != "/" {
		t.Errorf("the link is still in the address bar: %s", at)
	}
	if got := b.eval("document.cookie"); got != "" {
		t.Errorf("scripts can read the cookie: %s", got)
	}
	inFlight.Store(43) // and it is live
	b.waitFor(`[...document.querySelectorAll(".fact")].map((f) => f.innerText).join("|")`, "43")
	if b.eval("document.title") != "unite-hub · Mainstay" {
		t.Errorf("the title is %s", b.eval("document.title"))
	}

	for _, width := range []int{390, 768, 1360} {
		b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
		b.waitFor(sideways, "false")
	}

	b.open(link)
	b.waitFor(seen, "unite-hub") // who is in stays in

	stop()
	b.waitFor(`document.getElementById("banner").innerText`, "Lost contact with Mainstay since")
	b.waitFor(`document.getElementById("state").innerText`, "lost contact")
	b.waitFor(seen, "green-2") // what was last seen stays readable

	ln, err := net.Listen("tcp", s.address())
	if err != nil {
		t.Fatal(err)
	}
	next := newServer(t, func(c *Config, d *Deps) {
		busy(&inFlight)(c, d)
		d.Listener.Close()
		d.Listener, d.Dir = ln, s.deps.Dir
	})
	run(t, next)
	b.waitFor(seen, "Your session has ended, or Mainstay was restarted")
	b.open(link)
	b.waitFor(seen, "That link was used already")

	for _, line := range b.logs {
		if !strings.Contains(line, "Failed to load resource") { // which is Chromium's word for 401 and for lost contact
			t.Errorf("the page complained: %s", line)
		}
	}
}

func TestTheDashboardShowsThatMainstayIsNotReady(t *testing.T) {
	b := openTab(t)
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Ready = func() error { return errors.New("no copy of the app is live") }
	})
	run(t, s)
	link, err := NewClient(s.deps.Dir).DashboardLink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.open(link)
	b.waitFor(seen, "Requests cannot be served: no copy of the app is live")
	b.waitFor(seen, "No copy of the app is running.")
	b.waitFor(seen, "None yet.")
	if len(b.logs) > 0 {
		t.Errorf("the page complained: %v", b.logs)
	}
}
