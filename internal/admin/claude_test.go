package admin

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"mainstay.dev/mainstay/internal/calls"
	"mainstay.dev/mainstay/telemetry"
)

func TestTheLatestCallsToClaudeAreShown(t *testing.T) {
	ring := calls.New(10)
	s := newServer(t, func(_ *Config, d *Deps) { d.Calls = ring })
	for _, code := range []string{"ok", "held", "ok"} {
		x := telemetry.Begin("claude")
		x.Code, x.Err = code, errors.New("dial http://user:hunter2@h")
		x.End(ring)
	}
	for query, want := range map[string]int{"": 3, "?failed=true": 1, "?last=2": 2, "?after=2": 1, "?after=2&failed=true": 0} {
		var got Calls
		w := send(s, "GET", "/api/v1/claude/calls"+query, "", by(session(t, s)))
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Calls) != want || strings.Contains(w.Body.String(), "hunter2") {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	if w := send(s, "GET", "/api/v1/claude/calls?after=x", "", nil); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := send(s, "GET", "/api/v1/claude/calls", "", withoutToken); w.Code != 401 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := send(newServer(t, nil), "GET", "/api/v1/claude/calls", "", nil); w.Code != 404 || !strings.Contains(w.Body.String(), "the claude plane is off") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
