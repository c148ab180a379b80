package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// fakePooler remembers what it was told.
type fakePooler struct {
	told []string
	err  error
}

func (f *fakePooler) Look(what string) (any, bool) {
	return map[string]string{"is": what}, what == "pools"
}
func (f *fakePooler) tell(what, database string) error {
	f.told = append(f.told, what+" "+database)
	return f.err
}
func (f *fakePooler) Pause(ctx context.Context, database string) error {
	if _, limited := ctx.Deadline(); !limited {
		return errors.New("a pause without an end")
	}
	return f.tell("pause", database)
}
func (f *fakePooler) Resume(database string) error    { return f.tell("resume", database) }
func (f *fakePooler) Reconnect(database string) error { return f.tell("reconnect", database) }
func (f *fakePooler) Kill(o DBOrder) (int, error)     { return 3, f.tell("kill", fmt.Sprint(o.ID, o.User)) }

func TestThePoolerIsLookedAtAndOrdered(t *testing.T) {
	pooler := &fakePooler{}
	s := newServer(t, func(_ *Config, d *Deps) { d.Databases = pooler })
	if w := send(s, "GET", "/api/v1/db/pools", "", nil); w.Code != 200 || !strings.Contains(w.Body.String(), `"is":"pools"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := send(s, "GET", "/api/v1/db/nonsense", "", nil); w.Code != 404 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, order := range []string{"pause", "resume", "reconnect", "kill"} {
		w := send(s, "POST", "/api/v1/db/"+order, `{"database": "app", "id": 7}`, nil)
		var done DBDone
		if err := json.Unmarshal(w.Body.Bytes(), &done); err != nil || w.Code != 200 || order == "kill" && done.Killed != 3 {
			t.Errorf("%s: %d %s", order, w.Code, w.Body)
		}
	}
	if got := strings.Join(pooler.told, ", "); got != "pause app, resume app, reconnect app, kill 7" {
		t.Error(got)
	}
	if w := send(s, "POST", "/api/v1/db/nonsense", `{}`, nil); w.Code != 404 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := send(s, "POST", "/api/v1/db/pause", `{"databse": "app"}`, nil); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	pooler.err = fmt.Errorf("database %q: %w", "x", ErrNoSuch)
	if w := send(s, "POST", "/api/v1/db/resume", `{"database": "x"}`, nil); w.Code != 404 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	pooler.err = errors.New("2 connections are still in use")
	if w := send(s, "POST", "/api/v1/db/pause", `{}`, nil); w.Code != 409 || !strings.Contains(w.Body.String(), "still in use") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, route := range []string{"GET /api/v1/db/pools", "POST /api/v1/db/kill"} {
		method, path, _ := strings.Cut(route, " ")
		if w := send(s, method, path, "{}", withoutToken); w.Code != 401 {
			t.Errorf("%s without the token: %d", route, w.Code)
		}
	}
	if w := send(newServer(t, nil), "GET", "/api/v1/db/pools", "", nil); w.Code != 404 || !strings.Contains(w.Body.String(), "the pooler is off") {
		t.Errorf("no pooler: %d %s", w.Code, w.Body)
	}
}
