package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

func TestAProbeJudgesTheStatusAndNamesIt(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var status int
		if _, err := fmt.Sscanf(r.URL.Path, "/%d", &status); err != nil {
			status = http.StatusNotFound
		}
		w.Header().Set("Location", "http://192.0.2.1/")
		w.WriteHeader(status)
		_, _ = io.Copy(w, io.LimitReader(zeros{}, 4*maxProbeBody))
	}))
	defer app.Close()
	address := strings.TrimPrefix(app.URL, "http://")
	for path, want := range map[string]string{
		"/200": "", "/204": "", "/302": "", // a redirect is an answer; it is not followed
		"/404": "GET /404 answered 404 Not Found",
		"/503": "GET /503 answered 503 Service Unavailable",
		"/599": "GET /599 answered 599",
		"":     "", // 404: something speaks HTTP
	} {
		err := newProber().probe(t.Context(), address, Health{Path: path, Timeout: 10 * time.Second})
		if got := fmt.Sprint(err); want == "" && err != nil || want != "" && got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestAProbeSaysWhatDidNotAnswer(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	err = newProber().probe(t.Context(), silent.Addr().String(), Health{Timeout: 20 * time.Millisecond})
	if err == nil || err.Error() != "GET / got no answer within 20ms" {
		t.Errorf("silent: %v", err)
	}
	go func() {
		c, err := silent.Accept()
		for ; err == nil; c, err = silent.Accept() {
			_, _ = c.Read(make([]byte, 1024))
			_, _ = c.Write([]byte("SSH-2.0-OpenSSH\r\n\r\n"))
			_ = c.Close()
		}
	}()
	err = newProber().probe(t.Context(), silent.Addr().String(), Health{Timeout: 10 * time.Second})
	if err == nil || !strings.HasPrefix(err.Error(), "GET / got no HTTP answer: ") || strings.Contains(err.Error(), "http://") {
		t.Errorf("not HTTP: %v", err)
	}
	_ = silent.Close()
	err = newProber().probe(t.Context(), silent.Addr().String(), Health{Timeout: 10 * time.Second})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed: %v", err)
	}
}

func TestAnAppThatListensElsewhereIsToldTheMend(t *testing.T) {
	refused := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	for _, c := range []struct {
		ports           []string
		err             error
		why, mendsInOne string
	}{
		{nil, refused, "the app does not listen on PORT=20001 yet", ""},
		{[]string{"[::]:3000"}, refused, "the app listens on 3000, not on PORT=20001", "make it read PORT (for example `next start -p $PORT`)"},
		{[]string{"0.0.0.0:3000", "[::]:3000", "[::]:9229"}, refused, "the app listens on 3000, 9229, not on PORT=20001", "make it read PORT"},
		{[]string{"[::1]:20001"}, refused, "the app listens on [::1]:20001, not on 127.0.0.1:20001", "make it listen on 127.0.0.1 or 0.0.0.0"},
		{[]string{"[::]:3000"}, errSick, errSick.Error(), ""},
	} {
		in := &fakeCopy{address: "127.0.0.1:20001"}
		for _, p := range c.ports {
			in.ports = append(in.ports, netip.MustParseAddrPort(p))
		}
		why, mend := explain(in, c.err)
		if why != c.why || !strings.HasPrefix(mend, c.mendsInOne) || c.mendsInOne == "" && mend != "" {
			t.Errorf("%v: got %q; %q", c.ports, why, mend)
		}
	}
}

func TestAnAppThatIgnoresPortIsNoticedEarlyAndInTheError(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		w.let(func() {
			w.birth = func(_ Spec, c *fakeCopy) error {
				c.sick = fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
				time.AfterFunc(time.Second, func() { c.listen("[::]:3000") })
				return nil
			}
		})
		d := build(t, w, dir, configured())
		var log bytes.Buffer
		d.deps.Log = slog.New(slog.NewTextHandler(&log, nil))
		began := time.Now()
		warned := time.Duration(0)
		d.probe = func(ctx context.Context, address string, h Health) error {
			if warned == 0 && strings.Contains(log.String(), "level=WARN") {
				warned = time.Since(began)
			}
			return w.probe(ctx, address, h)
		}
		err := d.Run(t.Context(), func() { t.Error("ready") })
		if err == nil || !strings.Contains(err.Error(), "the app listens on 3000, not on PORT=20001; make it read PORT (for example `next start -p $PORT`)") {
			t.Errorf("got %v", err)
		}
		if warned == 0 || warned > 3*time.Second || strings.Count(log.String(), "level=WARN") != 1 {
			t.Errorf("warned after %v, log:\n%s", warned, log.String())
		}
	})
}

func TestAnAppThatDoesNotListenIsNotedAndThenWarnedOf(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		w.let(func() {
			w.birth = func(_ Spec, c *fakeCopy) error { c.sick = fmt.Errorf("dial: %w", syscall.ECONNREFUSED); return nil }
		})
		d := build(t, w, dir, configured())
		var log bytes.Buffer
		d.deps.Log = slog.New(slog.NewTextHandler(&log, nil))
		err := d.Run(t.Context(), func() { t.Error("ready") })
		if err == nil || !strings.Contains(err.Error(), "the app does not listen on PORT=20001 yet; it wrote nothing") {
			t.Errorf("got %v", err)
		}
		for _, want := range []string{"00:02.000Z level=INFO", "00:10.000Z level=WARN"} {
			if !strings.Contains(log.String(), want) || strings.Count(log.String(), "not healthy yet") != 2 {
				t.Errorf("want %s in\n%s", want, log.String())
			}
		}
	})
}

func TestACommandIsALineOrWords(t *testing.T) {
	var c Command
	if err := c.DecodeScalar("npm start && true"); err != nil || !c.equal(Command{"/bin/sh", "-c", "npm start && true"}) || c.String() != "npm start && true" {
		t.Errorf("%q, %v", c, err)
	}
	if err := c.DecodeScalar("  "); err == nil {
		t.Error("an empty line was taken")
	}
	if got := (Command{"node", "a b.js", "", "it's", "-p=1"}).String(); got != `node 'a b.js' '' 'it'\''s' -p=1` {
		t.Error(got)
	}
}

func TestConfigReportsEveryMistake(t *testing.T) {
	c := Config{Run: Command{"a", "b\x00"}, Drain: -1, Grace: -1, Health: Health{Path: "up it"},
		Smoke: []Smoke{{Path: "", Status: "abc"}}, Hooks: []Hook{{On: "never"}}, Preview: Preview{Header: "X-Preview"},
		Switch: Switch{Steps: []setting.Percent{0.5, 0.1}, Sticky: Sticky{By: "cookie"}}}
	var ps setting.Problems
	c.Validate(&ps)
	var paths []string
	for _, p := range ps {
		paths = append(paths, p.Path)
		if p.What == "" {
			t.Errorf("%s says nothing", p.Path)
		}
	}
	if got := strings.Join(paths, " "); got != "run health.path health.path health.interval health.timeout health.start_within health.healthy_after health.unhealthy_after drain grace warm.within "+
		"smoke[0].path smoke[0].status smoke[0].timeout hooks[0].on hooks[0] hooks[0].timeout switch.steps switch.sticky.name preview watch.min_samples settle.old" {
		t.Error(got)
	}
	good := configured()
	ps = nil
	if good.Validate(&ps); len(ps) != 0 {
		t.Error(ps)
	}
	if _, err := New(Config{}, Deps{}); err == nil || !strings.Contains(err.Error(), "run: there is nothing to run; give app.run in the file, or a command: mainstay run -- npm start") {
		t.Errorf("New: %v", err)
	}
}

func TestAnExitIsSaidInWords(t *testing.T) {
	for e, want := range map[Exit]string{
		{Code: 3}:                     "exit code 3",
		{Code: -1, Signal: "SIGSEGV"}: "ended by SIGSEGV",
		{Code: -1, Signal: "SIGKILL"}: "killed by SIGKILL (by hand, or because memory ran out)",
		{Code: -1, Unknown: true}:     "ended (its exit code is unknown: it was started by an earlier mainstay)",
	} {
		if e.String() != want {
			t.Errorf("%+v: %s", e, e)
		}
	}
}
