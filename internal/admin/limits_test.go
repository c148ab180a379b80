package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"mainstay.dev/mainstay/internal/limits"
)

func TestTheLimitsAreShownToAllAndChangedByTheOwnerAlone(t *testing.T) {
	var c limits.Config
	c.SetDefaults()
	dir := t.TempDir()
	gate, err := limits.NewGate(c, limits.Deps{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, func(_ *Config, d *Deps) { d.Limits = gate })
	for range 80 {
		if _, err := gate.Admit(context.Background(), limits.Ask{User: "ann"}); err != nil {
			t.Fatal(err)
		}
	}
	visitor := by(session(t, s))
	var l Limits
	w := send(s, "GET", "/api/v1/limits?top=5", "", visitor)
	if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil || !l.On || len(l.Top) != 1 || l.Top[0].Remaining != 20 {
		t.Errorf("%s %v", w.Body, err)
	}
	var shown limits.Showing
	w = send(s, "GET", "/api/v1/limits/show?key=user:ann", "", visitor)
	if err := json.Unmarshal(w.Body.Bytes(), &shown); err != nil || len(shown.Rules) != 1 || shown.Rules[0].Remaining != 20 {
		t.Errorf("%s %v", w.Body, err)
	}
	grant := `{"key": "user:ann", "requests": 500, "window_ns": 3600000000000, "for_ns": 3600000000000, "who": "eve", "why": "launch"}`
	for _, path := range []string{"/api/v1/limits/grant", "/api/v1/limits/reset", "/api/v1/limits/end"} {
		for name, who := range map[string]func(*http.Request){"a session": visitor, "nobody": withoutToken} {
			if w := send(s, "POST", path, grant, who); w.Code < 401 || w.Code > 403 {
				t.Errorf("%s by %s: %d", path, name, w.Code)
			}
		}
	}
	for _, step := range []struct {
		path, body string
		want       int
	}{
		{"grant", grant, 204}, {"grant", `{"key": "ann", "requests": 1, "window_ns": 1000000000}`, 422}, {"grant", `{"key": "user:ann", "requests": -1}`, 422},
		{"grant", `{"key": "user:ann", "requests": 1, "window_ns": 1e30}`, 400}, {"grant", `{"key": "user:ann", "for_ns": -1}`, 400}, {"grant", `{"as": "root"}`, 400},
		{"reset", `{"key": "user:ann", "who": "eve"}`, 204}, {"reset", `{"key": "everybody"}`, 422},
		{"end", `{"key": "user:ann"}`, 204}, {"end", `{"key": "user:ann"}`, 404}, {"end", `{`, 400},
	} {
		if w := send(s, "POST", "/api/v1/limits/"+step.path, step.body, nil); w.Code != step.want {
			t.Errorf("%s %s: %d %s", step.path, step.body, w.Code, w.Body)
		}
	}
	w = send(s, "GET", "/api/v1/limits/audit", "", nil)
	var audit auditReply
	if err := json.Unmarshal(w.Body.Bytes(), &audit); err != nil || len(audit.Entries) != 3 || audit.Entries[2].Who != "eve" {
		t.Errorf("%s %v", w.Body, err)
	}
}

func TestWithoutLimitsTheAPISaysSo(t *testing.T) {
	s := newServer(t, nil)
	if w := send(s, "GET", "/api/v1/limits", "", nil); w.Code != 200 || !strings.Contains(w.Body.String(), `"on":false`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for method, path := range map[string]string{"GET": "show?key=user:a", "POST": "reset"} {
		if w := send(s, method, "/api/v1/limits/"+path, `{}`, nil); w.Code != 404 || !strings.Contains(w.Body.String(), "limits nobody") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}
