package test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/setting"
)

// A stage is a mainstay with an app whose next release can be held in any state of
// the machine and hurt there.
type stage struct {
	*mainstay
	client *admin.Client
	gates  int
	gate   string // the file that opens the gate of the deploy at work
}

// careful is what a stage adds to the app section.
const careful = `
  warm: {paths: [/wait], requests: 1, within: 3s}
  smoke: [{path: /work, timeout: 1s}]
  hooks:
    - {on: verifying, run: "[ \"$HOLD\" != hook ] || while [ ! -e \"$GATE\" ]; do sleep 0.05; done"}
  switch: {every: 60s}
  watch: {for: 60s, control: 50%, min_samples: 30}
`

func newStage(t *testing.T, app string) *stage {
	t.Helper()
	m := setup(t, "")
	text, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	replaced := strings.NewReplacer("app:\n", "app:"+app, "start_within: 30s", "start_within: 4s, timeout: 500ms", "drain: 5s}", "drain: 5s, timeouts: {attempt: 1s}}").Replace(string(text))
	if err := os.WriteFile(m.file, []byte(replaced), 0o600); err != nil {
		t.Fatal(err)
	}
	m.env = append(m.env, "VERSION=blue")
	return &stage{mainstay: m, client: admin.NewClient(m.dir)}
}

// app is how the app stands.
func (s *stage) app() deploy.Status {
	s.t.Helper()
	st, err := s.client.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return st.App
}

// a deployment is one at work.
type deployment struct {
	record deploy.Record
	err    error
	done   chan struct{}
}

// launch deploys a release that is held in a phase until the gate is opened.
func (s *stage) launch(phase deploy.Phase, env ...string) *deployment {
	s.gates++
	s.gate = filepath.Join(filepath.Dir(s.file), fmt.Sprint("gate", s.gates))
	hold := map[deploy.Phase]string{deploy.Preparing: "health", deploy.Warming: "wait", deploy.Verifying: "hook"}[phase]
	r := deploy.Request{Command: deploy.Command{testapp()}, Env: append([]string{"VERSION=green", "GATE=" + s.gate, "HOLD=" + hold}, env...), Version: "green"}
	if phase == deploy.Switching {
		r.Steps = []setting.Percent{0.3} // and then 50%, since the rest is the control
	}
	d := &deployment{done: make(chan struct{})}
	go func() {
		defer close(d.done)
		d.record, d.err = s.client.Deploy(s.t.Context(), r, nil)
	}()
	return d
}

func (s *stage) open() {
	if err := os.WriteFile(s.gate, nil, 0o600); err != nil {
		s.t.Error(err)
	}
}

// reach waits until the deploy is in a phase and returns its new copy.
func (s *stage) reach(d *deployment, phase deploy.Phase) (green *deploy.Copy) {
	s.t.Helper()
	eventually(s.t, "the deploy is "+string(phase), func() (bool, string) {
		st := s.app()
		if green = st.Next; green == nil {
			green = st.Live
		}
		if phase == deploy.Settled {
			return st.Deploying == nil && green.Version == "green", fmt.Sprintf("%+v", st.Live)
		}
		step := map[deploy.Phase]deploy.Step{
			deploy.Warming: deploy.StepWarming, deploy.Verifying: deploy.StepVerifying, deploy.Switching: deploy.StepWatching, deploy.Watching: deploy.StepWatching,
		}[phase]
		if d := st.Deploying; d == nil || step != "" && d.Step != step {
			return false, fmt.Sprintf("%+v", d) // shown, and not yet written down
		}
		return st.Deploying.Phase == phase && green.PID != 0 && green.Version == "green", fmt.Sprintf("%+v", st.Deploying)
	})
	return green
}

func (d *deployment) wait(t *testing.T) deploy.Record {
	t.Helper()
	select {
	case <-d.done:
	case <-time.After(90 * time.Second):
		t.Fatal("the deploy did not end")
	}
	return d.record
}

// traffic is a handful of clients that ask and ask.
type traffic struct {
	s      *stage
	stop   chan struct{}
	wg     sync.WaitGroup
	asked  atomic.Int64
	mu     sync.Mutex
	failed []string
	by     map[string]int
}

func (s *stage) traffic() *traffic {
	f := &traffic{s: s, stop: make(chan struct{}), by: map[string]int{}}
	for range 4 {
		f.wg.Go(func() {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr, Timeout: 30 * time.Second}
			for {
				select {
				case <-f.stop:
					return
				default:
					f.ask(c)
				}
			}
		})
	}
	return f
}

// ask asks once. An answer that had begun when its copy was hurt may break off.
func (f *traffic) ask(c *http.Client) {
	defer f.asked.Add(1)
	resp, err := c.Get(f.s.edge + "/work")
	note := func(what string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.failed = append(f.failed, what)
	}
	if err != nil {
		note(err.Error())
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode != 200:
		note(fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Mainstay-Code"), " ", string(body)))
	case err == nil:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.by[string(body)]++
	}
}

// count tells how often a version has answered.
func (f *traffic) count(version string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[version]
}

// more waits until so many requests more were answered by a version.
func (f *traffic) more(t *testing.T, version string, n int) {
	t.Helper()
	was := f.count(version)
	eventually(t, version+" serves", func() (bool, string) {
		now := f.count(version)
		return now >= was+n, fmt.Sprint(now-was, " answers")
	})
}

func (f *traffic) end() (failed []string) {
	close(f.stop)
	f.wg.Wait()
	return f.failed
}

// hurts are what can befall a new release.
var hurts = []string{"killed", "hung", "sick", "500", "5%", "slow"}

func (s *stage) harm(green *deploy.Copy, how string) {
	s.t.Helper()
	var err error
	switch how {
	case "killed":
		err = syscall.Kill(green.PID, syscall.SIGKILL)
	case "hung":
		err = syscall.Kill(green.PID, syscall.SIGSTOP)
	default:
		eventually(s.t, "the app is told", func() (bool, string) { // it may be starting
			resp, err := http.Get("http://" + green.Address + "/hurt?with=" + strings.ReplaceAll(how, "%", "%25"))
			if err != nil {
				return false, err.Error()
			}
			resp.Body.Close()
			return true, ""
		})
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// A release is hurt in every state before it has settled: blue serves on, and
// where the hurt can be noticed at once no request that may be repeated fails.
func TestAReleaseThatIsHurtInAnyStateLeavesBlueServing(t *testing.T) {
	for _, phase := range []deploy.Phase{deploy.Preparing, deploy.Warming, deploy.Verifying, deploy.Switching, deploy.Watching} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			s := newStage(t, careful)
			s.start(testapp())
			all := hurts
			if phase == deploy.Watching {
				all = append(slices.Clone(hurts), "noisy")
			}
			for _, how := range all {
				t.Run(how, func(t *testing.T) {
					s := *s
					s.t = t
					hurtIn(t, &s, phase, how)
				})
				s.gates++
			}
		})
	}
}

func hurtIn(t *testing.T, s *stage, phase deploy.Phase, how string) {
	blue := s.app().Live.PID
	f := s.traffic()
	d := s.launch(phase)
	green := s.reach(d, phase)
	routed := phase == deploy.Switching || phase == deploy.Watching
	if routed {
		f.more(t, "green", 20)
	}
	s.harm(green, how)
	s.open()
	r := d.wait(t)
	f.more(t, "blue", 20)
	failed := f.end()
	want := []deploy.Phase{deploy.Failed}
	if routed || how == "5%" || how == "slow" {
		want = []deploy.Phase{deploy.RolledBack}
	}
	if phase == deploy.Verifying && how == "500" { // its smoke requests may have been answered before
		want = append(want, deploy.RolledBack)
	}
	if !slices.Contains(want, r.Phase) || r.Error == "" {
		t.Errorf("ended as %s, want %s: %v", r.Phase, want, d.err)
	}
	if st := s.app(); st.Live == nil || st.Live.PID != blue || st.Live.Share != 100 {
		t.Errorf("live %+v", st.Live)
	}
	switch {
	case how == "noisy" && !strings.Contains(r.Error, "wrote errors into its log"):
		t.Errorf("error %s", r.Error)
	case how == "killed" || how == "hung" || how == "slow" || how == "noisy" || !routed && how == "sick":
		if len(failed) > 0 {
			t.Errorf("%d of %d requests failed, first %s", len(failed), f.asked.Load(), failed[0])
		}
	case slices.ContainsFunc(failed, func(what string) bool { return !strings.Contains(what, "hurt: "+how) }):
		t.Errorf("failed otherwise than by the app's own doing: %s", failed)
	}
}

func TestAReleaseThatRefusesToStartLeavesBlueServing(t *testing.T) {
	t.Parallel()
	s := newStage(t, careful)
	s.start(testapp())
	f := s.traffic()
	d := s.launch(deploy.Settled, "HURT=refuse")
	if r := d.wait(t); r.Phase != deploy.Failed || !strings.Contains(r.Error, "the port is in use, says the app") {
		t.Errorf("ended as %s: %v", r.Phase, d.err)
	}
	f.more(t, "blue", 20)
	if failed := f.end(); len(failed) > 0 || s.app().Live.Version == "green" {
		t.Errorf("%d failed, first %s", len(failed), failed[0])
	}
}

// After it has settled a release is no longer compared; but where its probes tell
// that it is not fit, blue takes over, and a rollback is one switch.
func TestASettledReleaseThatIsHurtIsBackedByBlue(t *testing.T) {
	t.Parallel()
	s := newStage(t, careful)
	s.start(testapp())
	for _, how := range hurts {
		t.Run(how, func(t *testing.T) {
			s := *s
			s.t = t
			f := s.traffic()
			d := s.launch(deploy.Settled)
			s.reach(d, deploy.Watching)
			if _, err := s.client.Order(t.Context(), "promote", deploy.Order{}); err != nil {
				t.Fatal(err)
			}
			if r := d.wait(t); r.Phase != deploy.Settled {
				t.Fatalf("ended as %s: %v", r.Phase, d.err)
			}
			f.more(t, "green", 20)
			s.harm(s.app().Live, how)
			if how == "killed" || how == "hung" || how == "sick" {
				f.more(t, "blue", 20)
			}
			if how == "killed" { // it is started again and takes its traffic back
				f.more(t, "green", 20)
			}
			if r, err := s.client.Order(t.Context(), "rollback", deploy.Order{Why: how}); err != nil || r.Kind != deploy.KindRollback {
				t.Errorf("rollback: %+v, %v", r, err)
			}
			f.more(t, "blue", 20)
			failed := f.end()
			if how == "killed" || how == "hung" || how == "slow" {
				if len(failed) > 0 {
					t.Errorf("%d of %d requests failed, first %s", len(failed), f.asked.Load(), failed[0])
				}
			}
			for range 20 {
				if status, code, body := s.get("/work"); status != 200 || body != "blue" {
					t.Fatalf("after the rollback: %d %s %s", status, code, body)
				}
			}
		})
		s.gates++
	}
}
