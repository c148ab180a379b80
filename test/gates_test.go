package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"mainstay.dev/mainstay/internal/deploy"
)

func TestABurningErrorBudgetStopsADeployButNotOneByForce(t *testing.T) {
	t.Parallel()
	s := newStage(t, "\n  gates: {error_budget: {objective: 99.9%}}\n  warm: {within: 3s}\n")
	s.start(testapp())
	if code, out := s.verb("deploy", "--version", "v2"); code != 0 {
		t.Fatalf("while all is well: %d\n%s", code, out)
	}
	s.harm(s.app().Live, "500")
	for range 30 {
		if status, _, _ := s.get("/work"); status != 500 {
			t.Fatal(status)
		}
	}
	live := s.app().Live.PID
	code, out := s.verb("deploy", "--version", "v3")
	if code != 1 || !strings.Contains(out, "the error budget burns") || !strings.Contains(out, "0.1% may") || s.app().Live.PID != live {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out := s.verb("deploy", "--version", "v3", "--force"); code == 0 || !strings.Contains(out, "--why") {
		t.Errorf("by force without a reason: %d\n%s", code, out)
	}
	if code, out := s.verb("deploy", "--version", "v3", "--force", "--why", "this mends it"); code != 0 {
		t.Errorf("by force: %d\n%s", code, out)
	}
	rs, err := s.client.Deploys(t.Context())
	if err != nil || len(rs) != 3 || !rs[0].Force || len(rs[0].Overrode) != 1 || !strings.Contains(rs[0].Overrode[0], "error budget") || rs[1].Phase != deploy.Failed {
		t.Errorf("history %+v, %v", rs, err)
	}
}

// A webhook's other end.
type listener struct {
	mu     sync.Mutex
	status int
	heard  []deploy.Record
	bodies []string
}

func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	var rec deploy.Record
	_ = json.Unmarshal(b, &rec)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard, l.bodies = append(l.heard, rec), append(l.bodies, string(b))
	w.WriteHeader(l.status)
	fmt.Fprint(w, "noted")
}

func (l *listener) answer(status int) (heard []deploy.Record, bodies []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	heard, bodies = l.heard, l.bodies
	l.status, l.heard, l.bodies = status, nil, nil
	return heard, bodies
}

func TestSmokeRequestsHooksAndWebhooksJudgeARealRelease(t *testing.T) {
	t.Parallel()
	l := &listener{status: 200}
	hears := httptest.NewServer(l)
	defer hears.Close()
	s := newStage(t, "\n")
	notes := filepath.Join(filepath.Dir(s.file), "notes")
	s.edit("app:\n", fmt.Sprintf(`app:
  dir: %s
  smoke:
    - {path: /version, contains: v}
    - {path: /upload, method: POST, body: "12345", contains: "5", header: "Content-Type: text/plain"}
  hooks:
    - {name: look, on: verifying, run: "echo verifying $MAINSTAY_COLOR $VERSION $MAINSTAY_ADDRESS >> %s; test \"$JUDGE\" != no", timeout: 10s}
    - {name: gate, on: verifying, url: %q}
    - {name: done, on: settled, run: "echo settled $MAINSTAY_VERSION $PWD >> %s"}
    - {name: sad, on: failed, run: "echo failed $MAINSTAY_NUMBER >> %s"}
    - {name: long, on: verifying, run: "test \"$JUDGE\" != long || sleep 60", timeout: 1s}
`, filepath.Dir(s.file), notes, hears.URL+"/secret-path", notes, notes))
	s.start(testapp())
	noted := func() string {
		b, _ := os.ReadFile(notes)
		_ = os.Remove(notes)
		return string(b)
	}
	for _, tc := range []struct {
		name   string
		env    string
		status int
		ends   deploy.Phase
		says   string // in the error
		notes  []string
	}{
		{"all agree", "VERSION=v2", 200, deploy.Settled, "", []string{"verifying green v2 127.0.0.1:", "settled green " + filepath.Dir(s.file)}},
		{"a smoke request has another answer", "VERSION=other", 200, deploy.Failed, `failed the smoke request GET /version`, []string{"failed 2"}},
		{"a hook says no", "JUDGE=no", 200, deploy.Failed, `hook "look" failed: exit status 1`, []string{"failed 3"}},
		{"a webhook says no", "VERSION=v4", 403, deploy.Failed, `hook "gate" failed: noted` + "it answered 403 Forbidden", []string{"failed 4"}},
		{"a hook does not end", "JUDGE=long", 200, deploy.Failed, `hook "long" failed: it did not end within 1s`, []string{"failed 5"}},
	} {
		l.answer(tc.status)
		before := s.app().Live.PID
		d := s.launch(deploy.Settled, "VERSION=v3", tc.env)
		r := d.wait(t)
		if r.Phase != tc.ends || !strings.Contains(r.Error, tc.says) {
			t.Errorf("%s: ended as %s, %v", tc.name, r.Phase, d.err)
		}
		if now := s.app().Live.PID; (now != before) != (tc.ends == deploy.Settled) {
			t.Errorf("%s: pid %d before, %d after", tc.name, before, now)
		}
		got := noted()
		for _, want := range tc.notes {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is not in the notes:\n%s", tc.name, want, got)
			}
		}
		heard, bodies := l.answer(200)
		if tc.status == 403 && (len(heard) != 1 || heard[0].Number != r.Number || heard[0].Version != "green" || strings.Contains(bodies[0], testapp())) {
			t.Errorf("%s: the webhook heard %+v\n%s", tc.name, heard, bodies)
		}
		if strings.Contains(fmt.Sprintf("%+v", r), "secret-path") {
			t.Errorf("%s: the record shows the address of the webhook", tc.name)
		}
	}
}
