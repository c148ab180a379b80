package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func (m *mainstay) post(path, body string) (int, error) {
	resp, err := http.Post(m.edge+path, "text/plain", strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// Real processes are replaced under load: keep-alive clients, slow answers,
// uploads and queries, and nothing fails.
func TestDeploysUnderLoadFailNothing(t *testing.T) {
	_, _, env := upstreams(t)
	m := setup(t, "", env...).start(testapp())
	stop := load(t, m)
	for i := range 10 {
		version := fmt.Sprintf("v%d", i+1)
		code, out := m.verb("deploy", "--version", version, "--env", "VERSION="+version, "--", testapp())
		if code != 0 || !strings.Contains(out, "deployed as") {
			t.Fatalf("deploy %s: %d\n%s", version, code, out)
		}
		if _, _, got := m.get("/version"); got != version {
			t.Errorf("after the deploy of %s, %q answers", version, got)
		}
	}
	requests, failed := stop()
	t.Logf("%d requests, %d failed, 10 deploys", requests, failed)
	if failed != 0 || requests < 100 {
		t.Errorf("%d of %d requests failed", failed, requests)
	}
	if code, out := m.verb("status"); code != 0 || !strings.Contains(out, "blue") {
		t.Errorf("status: %d\n%s", code, out)
	}
}

// load drives requests of several kinds until the function it returns is called.
func load(t *testing.T, m *mainstay) func() (requests, failed int64) {
	var wg sync.WaitGroup
	var requests, failed atomic.Int64
	done := make(chan struct{})
	payload := bytes.Repeat([]byte("x"), 300_000)
	for i := range 8 {
		wg.Go(func() {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr}
			for {
				select {
				case <-done:
					return
				default:
				}
				var resp *http.Response
				var err error
				want := ""
				switch i % 4 {
				case 0:
					resp, err = c.Get(m.edge + "/version")
				case 1:
					resp, err = c.Get(m.edge + "/slow?ms=200")
					want = "part part part part"
				case 2:
					resp, err = c.Post(m.edge+"/upload", "application/octet-stream", bytes.NewReader(payload))
					want = "300000"
				case 3:
					resp, err = c.Get(m.edge + "/query")
					want = "postgres"
				}
				requests.Add(1)
				if err != nil {
					failed.Add(1)
					t.Errorf("%d: %v", i%4, err)
					continue
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(string(body), want) {
					failed.Add(1)
					t.Errorf("%d: %s %v %q %s", i%4, resp.Status, err, body, resp.Header.Get("Mainstay-Code"))
				}
			}
		})
	}
	return func() (int64, int64) {
		close(done)
		wg.Wait()
		return requests.Load(), failed.Load()
	}
}

func TestADeployThatDoesNotBecomeHealthyLeavesTheOldColorServing(t *testing.T) {
	m := setup(t, "").start(testapp())
	_, _, before := m.get("/pid")
	for _, tc := range []struct{ name, command, want string }{
		{"it ends at once", "echo no such module >&2; exit 3", "no such module"},
		{"it cannot be found", "exec /no/such/program", "/no/such/program"},
		{"it is never healthy", "exec sleep 300", "was not healthy within 2s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "it is never healthy" {
				// Its deadline is shortened by a reload.
				text, err := os.ReadFile(m.file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(m.file, bytes.Replace(text, []byte("start_within: 30s"), []byte("start_within: 2s"), 1), 0o600); err != nil {
					t.Fatal(err)
				}
				if code, out := m.verb("reload"); code != 0 {
					t.Fatalf("reload: %s", out)
				}
			}
			code, out := m.verb("deploy", "--", "/bin/sh", "-c", tc.command)
			if code != 1 || !strings.Contains(strings.ToLower(out), strings.ToLower(tc.want)) {
				t.Errorf("exit code %d\n%s", code, out)
			}
			if _, _, after := m.get("/pid"); after != before {
				t.Errorf("pid %s before, %s after", before, after)
			}
		})
	}
}

func TestAVerbWithoutARunningMainstaySaysWhatToDo(t *testing.T) {
	m := setup(t, "")
	for _, verb := range []string{"status", "reload", "dashboard", "deploy"} {
		code, out := m.verb(verb)
		if code != 1 || !strings.Contains(out, "no mainstay is running with data folder "+filepath.Dir(m.file)) || !strings.Contains(out, "mainstay run") {
			t.Errorf("%s: %d %s", verb, code, out)
		}
	}
}
