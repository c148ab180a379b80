package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// tab is one page of a real Chromium, spoken to by its DevTools protocol
// (https://chromedevtools.github.io/devtools-protocol/).
type tab struct {
	t       *testing.T
	ctx     context.Context
	conn    *websocket.Conn
	session string
	next    int
	logs    []string // what the page complained about
}

// openTab starts a Chromium with a profile of its own, and ends it with the test.
func openTab(t *testing.T) *tab {
	t.Helper()
	path := chromium(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
		"--remote-debugging-port=0", "--user-data-dir="+t.TempDir(), "about:blank")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	complaints, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(complaints)
		for lines.Scan() {
			if found := regexp.MustCompile(`ws://\S+`).FindString(lines.Text()); found != "" && len(address) == 0 {
				address <- found
			}
		}
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-read
		_ = cmd.Wait()
	})
	b := &tab{t: t, ctx: ctx}
	select {
	case at := <-address:
		b.conn, _, err = websocket.Dial(ctx, at, nil)
	case <-ctx.Done():
		t.Fatal("Chromium did not say where its DevTools listen")
	}
	if err != nil {
		t.Fatal(err)
	}
	b.conn.SetReadLimit(64 << 20)
	t.Cleanup(func() { b.conn.CloseNow() })
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// chromium finds the browser; without one the test is skipped, and fails in CI.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const why = "no Chromium is installed: apt-get install chromium"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
	return ""
}

// call sends a command and waits for its result.
func (b *tab) call(method string, params map[string]any, out any) {
	b.t.Helper()
	b.next++
	request, err := json.Marshal(map[string]any{"id": b.next, "method": method, "params": params, "sessionId": b.session})
	if b.session == "" {
		request, err = json.Marshal(map[string]any{"id": b.next, "method": method, "params": params})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.conn.Write(b.ctx, websocket.MessageText, request); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	for {
		_, message, err := b.conn.Read(b.ctx)
		if err != nil {
			b.t.Fatalf("%s: %v", method, err)
		}
		var reply struct {
			ID     int
			Method string
			Params json.RawMessage
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := json.Unmarshal(message, &reply); err != nil {
			b.t.Fatal(err)
		}
		switch {
		case reply.Method == "Runtime.exceptionThrown" || reply.Method == "Log.entryAdded":
			b.logs = append(b.logs, string(reply.Params))
		case reply.ID != b.next:
		case reply.Error != nil:
			b.t.Fatalf("%s: %s", method, reply.Error.Message)
		default:
			if out != nil {
				if err := json.Unmarshal(reply.Result, out); err != nil {
					b.t.Fatal(err)
				}
			}
			return
		}
	}
}

func (b *tab) open(url string) {
	b.t.Helper()
	b.call("Page.navigate", map[string]any{"url": url}, nil)
}

// eval runs an expression in the page and returns its value as text. An
// exception, as while the page is being replaced, gives its text.
func (b *tab) eval(expression string) string {
	b.t.Helper()
	var out struct {
		Result           struct{ Value any }
		ExceptionDetails *struct{ Text string }
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &out)
	if out.ExceptionDetails != nil {
		return "exception: " + out.ExceptionDetails.Text
	}
	return fmt.Sprint(out.Result.Value)
}

// waitFor waits until the expression's value contains want.
func (b *tab) waitFor(expression, want string) {
	b.t.Helper()
	last := ""
	for b.ctx.Err() == nil {
		if last = b.eval(expression); strings.Contains(last, want) {
			return
		}
		// The page moves by its own clock; asking again is all one can do.
		time.Sleep(50 * time.Millisecond)
	}
	b.t.Fatalf("%s never contained %q; it is %q", expression, want, last)
}
