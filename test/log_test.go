package test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// unread starts a mainstay whose log nobody reads, and has it log until it drops lines.
func unread(t *testing.T, env ...string) (*mainstay, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	m := setup(t, "", env...)
	m.stderr = w
	m.start(testapp())
	w.Close()
	long := "/" + strings.Repeat("x", 8000)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 200 { // 6 MiB in all
				if status, code, _ := m.get(long); status != 404 {
					t.Errorf("answered %d %s while nobody reads the log", status, code)
					return
				}
			}
		})
	}
	all.Wait()
	return m, r
}

func TestALogThatNobodyReadsStopsNothing(t *testing.T) {
	_, _, env := upstreams(t)
	m, r := unread(t, env...)
	for _, path := range []string{"/version", "/query", "/ask"} {
		if status, code, body := m.get(path); status != 200 {
			t.Errorf("%s: %d %s %s", path, status, code, body)
		}
	}
	lost := m.metrics()["mainstay_log_dropped_total"]
	if lost == 0 {
		t.Error("nothing was dropped, or nothing counts it")
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&m.log, r)
	}()
	eventually(t, "the line of the gap", func() (bool, string) {
		log := m.log.String()
		return strings.Contains(log, "log_lines_dropped"), tail(log, 1)
	})
	if status, _, _ := m.get("/env?name=behind-the-gap"); status != 200 {
		t.Errorf("answered %d behind the gap", status)
	}
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	<-m.exited
	<-read
	told, behind := 0.0, false
	for text := range strings.Lines(m.log.String()) {
		var line struct {
			Level, Event, Path string
			Lines              float64
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Errorf("%v: %.200s", err, text)
		}
		if line.Event == "log_lines_dropped" && line.Level == "WARN" {
			told += line.Lines
		}
		behind = behind || told > 0 && line.Path == "/env"
	}
	if told < lost || !behind {
		t.Errorf("%v lines are told to be missing, %v were; the line behind the gap was read: %v", told, lost, behind)
	}
	if last := tail(m.log.String(), 1); !strings.Contains(m.log.String(), `"msg":"stopping"`) {
		t.Errorf("the log ends with %s", last)
	}
}

func TestALogThatNobodyReadsDoesNotKeepMainstayFromItsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		signals []syscall.Signal
		code    int
	}{
		"drained": {[]syscall.Signal{syscall.SIGTERM}, 0},
		"at once": {[]syscall.Signal{syscall.SIGINT, syscall.SIGTERM}, 143},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := unread(t)
			if len(tc.signals) > 1 { // so that the first does not end it
				go func() { m.get("/slow?ms=20000") }()
				inFlight(t, m, 1)
			}
			for _, s := range tc.signals {
				_ = m.cmd.Process.Signal(s)
			}
			<-m.exited
			if code := m.cmd.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
		})
	}
}

func TestALogWhoseReaderGoesAwayStopsNothing(t *testing.T) {
	m, r := unread(t)
	r.Close()
	for range 20 {
		if status, code, body := m.get("/version"); status != 200 {
			t.Fatalf("%d %s %s", status, code, body)
		}
	}
	eventually(t, "lost lines", func() (bool, string) {
		lost := m.metrics()["mainstay_log_dropped_total"]
		return lost > 20, fmt.Sprint(lost)
	})
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	<-m.exited
	if code := m.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
