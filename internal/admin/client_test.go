package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/deploy"
)

func TestTheClientFindsItsWayInAndEverythingAnswers(t *testing.T) {
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Deploys = &fakeApp{history: []deploy.Record{{Number: 3, Color: "green"}}}
	})
	run(t, s)
	c := NewClient(s.deps.Dir)
	st, err := c.Status(t.Context())
	if err != nil || st.Service != "unite-hub" || st.PID != os.Getpid() {
		t.Errorf("status %+v, %v", st, err)
	}
	if ds, err := c.Deploys(t.Context()); err != nil || len(ds) != 1 || ds[0].Number != 3 {
		t.Errorf("deploys %+v, %v", ds, err)
	}
	if err := c.Reload(t.Context()); err != nil {
		t.Errorf("reload: %v", err)
	}
	link, err := c.DashboardLink(t.Context())
	if err != nil || !strings.HasPrefix(link, "http://"+s.address()+"/login?t=") {
		t.Errorf("link %q, %v", link, err)
	}
	reply, err := http.Get(link) // follows to the page
	if err != nil || reply.StatusCode != 200 {
		t.Fatalf("%v %v", reply, err)
	}
	reply.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if es, err := c.Events(t.Context()); err != nil || len(es) != 1 {
		t.Errorf("events %+v, %v", es, err)
	}
}

func TestARefusedReloadReachesTheClientAsAProblem(t *testing.T) {
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Reload = func(context.Context) error {
			return errors.New("mainstay.yaml:3 edge.drain: must be positive; try 30s")
		}
	})
	run(t, s)
	err := NewClient(s.deps.Dir).Reload(t.Context())
	p, ok := errors.AsType[*Problem](err)
	if !ok || p.Status != 422 || err.Error() != "mainstay.yaml:3 edge.drain: must be positive; try 30s" {
		t.Errorf("got %v", err)
	}
}

func TestADeployStreamsItsProgressAndEndsWithItsRecord(t *testing.T) {
	proceed := make(chan struct{})
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Deploys = &fakeApp{run: func(_ context.Context, r deploy.Request, progress func(deploy.Progress)) (deploy.Record, error) {
			if r.Version != "1.4" || r.Command.String() != "npm start" || r.Env[0] != "A=b" {
				return deploy.Record{}, fmt.Errorf("got %+v", r)
			}
			progress(deploy.Progress{Step: deploy.StepStarting, Color: "green", Text: "starting green-2"})
			<-proceed // which the client only allows when it has seen the first step
			progress(deploy.Progress{Step: deploy.StepHealthy, Color: "green", Text: "green-2 is healthy"})
			return deploy.Record{Number: 2, Color: "green", Phase: deploy.Settled}, nil
		}}
	})
	run(t, s)
	var steps []deploy.Step
	record, err := NewClient(s.deps.Dir).Deploy(t.Context(), deploy.Request{Command: deploy.Command{"npm", "start"}, Version: "1.4", Env: []string{"A=b"}}, func(p deploy.Progress) {
		if steps = append(steps, p.Step); len(steps) == 1 {
			close(proceed)
		}
	})
	if err != nil || record.Number != 2 || record.Phase != deploy.Settled {
		t.Errorf("%+v, %v", record, err)
	}
	if diff := cmp.Diff([]deploy.Step{deploy.StepStarting, deploy.StepHealthy}, steps); diff != "" {
		t.Error(diff)
	}
}

func TestADeployThatFailsTellsWhy(t *testing.T) {
	var run1 func(ctx context.Context, r deploy.Request, progress func(deploy.Progress)) (deploy.Record, error)
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Deploys = &fakeApp{run: func(ctx context.Context, r deploy.Request, p func(deploy.Progress)) (deploy.Record, error) {
			return run1(ctx, r, p)
		}}
	})
	run(t, s)
	c := NewClient(s.deps.Dir)
	for name, test := range map[string]struct {
		err    error
		begun  bool
		status int
	}{
		"busy":        {fmt.Errorf("%w: phil's, since 12:00", deploy.ErrBusy), false, 409},
		"not running": {deploy.ErrNotRunning, false, 503},
		"unhealthy":   {errors.New("green-2 was not healthy within 60s"), true, 422},
	} {
		run1 = func(_ context.Context, _ deploy.Request, progress func(deploy.Progress)) (deploy.Record, error) {
			if !test.begun {
				return deploy.Record{}, test.err
			}
			progress(deploy.Progress{Step: deploy.StepWaiting})
			return deploy.Record{Number: 7, Phase: deploy.Failed}, test.err
		}
		record, err := c.Deploy(t.Context(), deploy.Request{}, nil)
		p, ok := errors.AsType[*Problem](err)
		if !ok || p.Status != test.status || p.Detail != test.err.Error() || (record.Number == 7) != test.begun {
			t.Errorf("%s: record %+v, error %v", name, record, err)
		}
	}
}

func TestAClientThatHangsUpGivesTheDeployUp(t *testing.T) {
	gaveUp := make(chan error, 1)
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Deploys = &fakeApp{run: func(ctx context.Context, _ deploy.Request, progress func(deploy.Progress)) (deploy.Record, error) {
			progress(deploy.Progress{Step: deploy.StepStarting})
			<-ctx.Done()
			gaveUp <- ctx.Err()
			return deploy.Record{Number: 1, Phase: deploy.Failed}, ctx.Err()
		}}
	})
	run(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := NewClient(s.deps.Dir).Deploy(ctx, deploy.Request{}, func(deploy.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "given up") {
		t.Errorf("got %v", err)
	}
	<-gaveUp
}

func TestADeployRequestIsReadStrictly(t *testing.T) {
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Deploys = &fakeApp{run: func(context.Context, deploy.Request, func(deploy.Progress)) (deploy.Record, error) {
			t.Error("it was run")
			return deploy.Record{}, nil
		}}
	})
	for body, want := range map[string]int{
		"": 400, "[]": 400, `{"comand": []}`: 400, `{"command": "npm start"}`: 400, `{} {}`: 400, `{"dir": 1}`: 400,
		`{"why": "` + strings.Repeat("x", maxBody) + `"}`: 413,
	} {
		if w := send(s, "POST", "/api/v1/deploys", body, nil); w.Code != want {
			t.Errorf("%.30s: %d, want %d: %s", body, w.Code, want, w.Body)
		}
	}
}

func TestWithoutAMainstayTheErrorNamesTheFolderAndTheMend(t *testing.T) {
	dir := t.TempDir()
	check := func(what string) {
		t.Helper()
		_, err := NewClient(dir).Status(t.Context())
		if !errors.Is(err, ErrNotRunning) || err.Error() != "no mainstay is running with data folder "+dir+"; start one with mainstay run" {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("an empty folder")
	s := newServer(t, func(_ *Config, d *Deps) { d.Dir = dir })
	stop := run(t, s)
	stop()
	check("after a clean end")
	if err := writeAddress(dir, whereabouts{Address: s.address(), PID: 1}); err != nil {
		t.Fatal(err)
	}
	check("after a kill")
	if err := os.WriteFile(filepath.Join(dir, addressFile), []byte("not JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(dir).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestAStrangerOnThePortNeverGetsTheToken(t *testing.T) {
	s := newServer(t, nil)
	stop := run(t, s)
	stop()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	stranger := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := json.Marshal(r.Header)
		got = append(got, r.URL.String()+string(b))
		answer(w, helloReply{prove("guess", r.URL.Query().Get("nonce"))})
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = stranger.Serve(ln) }()
	if err := writeAddress(s.deps.Dir, whereabouts{Address: ln.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	_, err = NewClient(s.deps.Dir).Status(t.Context())
	stranger.Close()
	<-done
	if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "another program") {
		t.Errorf("got %v", err)
	}
	if len(got) != 1 || strings.Contains(got[0], s.access.token) {
		t.Errorf("the stranger was told %v", got)
	}
}

func TestRunNotesTheAddressForItsOwnerAndCleansUp(t *testing.T) {
	before := runtime.NumGoroutine()
	s := newServer(t, nil)
	stop := run(t, s)
	for _, name := range []string{addressFile, tokenFile} {
		info, err := os.Stat(filepath.Join(s.deps.Dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if _, err := NewClient(s.deps.Dir).Status(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
	if _, err := os.Stat(filepath.Join(s.deps.Dir, addressFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", addressFile, err)
	}
	left, err := filepath.Glob(filepath.Join(s.deps.Dir, ".admin*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v %v", left, err)
	}
	for range 100 { // the client's side of a connection ends by itself, soon
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	buf := make([]byte, 1<<16)
	t.Errorf("goroutines leak:\n%s", buf[:runtime.Stack(buf, true)])
}

func TestOrdersReachTheDeployerAndTheirRecordsComeBack(t *testing.T) {
	var got []string
	s := newServer(t, func(_ *Config, d *Deps) {
		d.Deploys = &fakeApp{order: func(what string, o deploy.Order) (deploy.Record, error) {
			got = append(got, what+" by "+o.Who)
			if what == "promote" {
				return deploy.Record{}, fmt.Errorf("%w: nothing to promote", deploy.ErrRefused)
			}
			return deploy.Record{Number: 3, Phase: deploy.RolledBack}, nil
		}}
	})
	run(t, s)
	c, o := NewClient(s.deps.Dir), deploy.Order{Who: "ann", Why: "slow"}
	if r, err := c.Order(t.Context(), "rollback", o); err != nil || r.Number != 3 || r.Phase != deploy.RolledBack {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := c.Order(t.Context(), "settle", o); err != nil || r.Number != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	_, err := c.Order(t.Context(), "promote", o)
	if p, ok := errors.AsType[*Problem](err); !ok || p.Status != 409 || !strings.Contains(p.Detail, "nothing to promote") {
		t.Errorf("%v", err)
	}
	_, err = c.Order(t.Context(), "explode", o)
	if p, ok := errors.AsType[*Problem](err); !ok || p.Status != 404 {
		t.Errorf("%v", err)
	}
	if err := errors.Join(c.Maintenance(t.Context(), true, o), c.Maintenance(t.Context(), false, o)); err != nil {
		t.Error(err)
	}
	want := []string{"rollback by ann", "settle by ann", "promote by ann", "maintenance true by ann", "maintenance false by ann"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
