package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
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

func TestTheLatestCallsAreFilteredByRouteModelAndTime(t *testing.T) {
	ring := calls.New(10)
	s := newServer(t, func(_ *Config, d *Deps) { d.Calls = ring })
	for _, via := range []string{"", "claude/a", "backup/main", "small claude/a"} {
		x := telemetry.Begin("claude")
		x.Code, x.GenAI = "ok", telemetry.GenAI{Via: via, Model: "claude-" + map[bool]string{true: "haiku-4-5", false: "opus-4-5"}[via == "small claude/a"]}
		x.End(ring)
	}
	for query, want := range map[string]int{
		"route=claude": 2, "route=backup": 1, "route=small": 1, "route=backup/main": 1, "route=back": 0,
		"model=claude-opus": 3, "model=claude-haiku": 1, "model=opus": 0, "route=claude&model=claude-opus": 2,
		"since=2001-01-01T00:00:00Z": 4, "since=2999-01-01T00:00:00Z": 0,
	} {
		var got Calls
		w := send(s, "GET", "/api/v1/claude/calls?"+query, "", by(session(t, s)))
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Calls) != want {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	if w := send(s, "GET", "/api/v1/claude/calls?since=yesterday", "", nil); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// tape is a plane that keeps one request.
type tape struct {
	kept calls.Kept
	err  error
	sent []string
}

func (p *tape) Kept(string) (calls.Kept, error) { return p.kept, p.err }

func (p *tape) Replay(_ context.Context, id, key string) (calls.Replayed, error) {
	if p.kept.NeedsKey && key == "" {
		return calls.Replayed{}, calls.ErrNoKey
	}
	p.sent = append(p.sent, id+" "+key)
	return calls.Replayed{Of: id, ID: "new", Status: 200, Code: "ok", Body: "{}"}, nil
}

func TestACallIsSentAgainByTheOwnerOnly(t *testing.T) {
	ring, plane := calls.New(10), &tape{kept: calls.Kept{ID: "a"}}
	s := newServer(t, func(_ *Config, d *Deps) { d.Calls, d.Replays = ring, plane })
	x := telemetry.Begin("claude")
	x.ID, x.Code = "a", "ok"
	x.End(ring)
	const path, body = "/api/v1/claude/replay", `{"id":"a","key":"k"}`
	for _, who := range []func(*http.Request){withoutToken, by(session(t, s))} {
		if w := send(s, "POST", path, body, who); w.Code != 401 && w.Code != 403 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if w := send(s, "GET", "/api/v1/claude/kept/a", "", who); w.Code != 401 && w.Code != 403 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	for _, c := range []struct {
		kept calls.Kept
		err  error
		body string
		code int
		says string
	}{
		{calls.Kept{ID: "a"}, nil, body, 200, `"of":"a"`},
		{calls.Kept{ID: "a", NeedsKey: true}, nil, `{"id":"a"}`, 422, "ANTHROPIC_API_KEY"},
		{calls.Kept{ID: "a", Removed: 2}, nil, body, 409, "--redacted"},
		{calls.Kept{ID: "a", Removed: 2}, nil, `{"id":"a","key":"k","redacted":true}`, 200, `"of":"a"`},
		{calls.Kept{}, calls.ErrOff, body, 409, "keeping is off"},
		{calls.Kept{}, calls.ErrUnknown, body, 404, "is known, but its request is not kept"},
		{calls.Kept{}, calls.ErrUnknown, `{"id":"b"}`, 404, "there is no call"},
		{calls.Kept{}, nil, "{", 400, ""},
	} {
		plane.kept, plane.err = c.kept, c.err
		if w := send(s, "POST", path, c.body, nil); w.Code != c.code || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s: %d %s, want %d %s", c.body, w.Code, w.Body, c.code, c.says)
		}
	}
	if strings.Join(plane.sent, ", ") != "a k, a k" {
		t.Errorf("%q", plane.sent)
	}
	plane.kept, plane.err = calls.Kept{ID: "a"}, nil
	var k calls.Kept
	if w := send(s, "GET", "/api/v1/claude/kept/a", "", nil); json.Unmarshal(w.Body.Bytes(), &k) != nil || k.First == nil || k.First.ID != "a" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
