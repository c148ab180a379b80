package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"mainstay.dev/mainstay/internal/calls"
)

// Calls is the answer to GET /api/v1/claude/calls.
type Calls struct {
	Calls []calls.Call `json:"calls"` // oldest first
}

// maxCalls is the most that is told at once.
const maxCalls = 1000

func (s *Server) noClaude(w http.ResponseWriter) bool {
	if s.deps.Calls != nil {
		return false
	}
	problem(http.StatusNotFound, "the claude plane is off", "write a claude section into the file, and restart").answer(w)
	return true
}

// claudeCalls lists the latest calls: last=N, failed=true, after=N, route=NAME,
// model=PREFIX, since=TIME (RFC 3339).
func (s *Server) claudeCalls(w http.ResponseWriter, r *http.Request) {
	if s.noClaude(w) {
		return
	}
	given := r.URL.Query()
	q := calls.Query{Last: number(r, "last", 20, maxCalls), Failed: given.Get("failed") == "true", Via: given.Get("route"), Model: given.Get("model")}
	if since := given.Get("since"); since != "" {
		at, err := time.Parse(time.RFC3339, since)
		if err != nil {
			problem(http.StatusBadRequest, "since must be a time, not "+quoted(since), "try since=2026-11-27T18:00:00Z").answer(w)
			return
		}
		q.Since = at
	}
	if after := r.URL.Query().Get("after"); after != "" {
		n, err := strconv.ParseUint(after, 10, 64)
		if err != nil {
			problem(http.StatusBadRequest, "after must be the number of a call, not "+quoted(after), "").answer(w)
			return
		}
		q.After = n
	}
	found := s.deps.Calls.Find(q)
	for i := range found {
		found[i].Err = hide(found[i].Err)
	}
	answer(w, Calls{found})
}

// Calls lists the latest calls to Claude, oldest first.
func (c *Client) Calls(ctx context.Context, q calls.Query) ([]calls.Call, error) {
	values := url.Values{"last": {strconv.Itoa(q.Last)}}
	if q.Failed {
		values.Set("failed", "true")
	}
	if q.After > 0 {
		values.Set("after", strconv.FormatUint(q.After, 10))
	}
	if q.Via != "" {
		values.Set("route", q.Via)
	}
	if q.Model != "" {
		values.Set("model", q.Model)
	}
	if !q.Since.IsZero() {
		values.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	var reply Calls
	err := c.call(ctx, http.MethodGet, "/api/v1/claude/calls?"+values.Encode(), &reply)
	return reply.Calls, err
}

// A ReplayRequest asks for a call to be sent again.
type ReplayRequest struct {
	ID       string `json:"id"`
	Key      string `json:"key,omitempty"`      // for Claude, where there are no claude.keys
	Redacted bool   `json:"redacted,omitempty"` // send it though something was taken out of it
}

// kept finds a request that can be sent again, and what became of it.
func (s *Server) kept(id string) (calls.Kept, *Problem) {
	var first *calls.Call
	if found := s.deps.Calls.Find(calls.Query{Last: 1, ID: id}); len(found) == 1 {
		first = &found[0]
		first.Err = hide(first.Err)
	}
	k, err := s.deps.Replays.Kept(id)
	k.First = first
	switch {
	case errors.Is(err, calls.ErrOff):
		return k, problem(http.StatusConflict, "the request of call "+quoted(id)+" is not kept: keeping is off", "set claude.keep.requests to failed or all; it counts for the calls after that")
	case err != nil && first != nil:
		return k, problem(http.StatusNotFound, "call "+quoted(id)+" is known, but its request is not kept: it went well and claude.keep.requests is failed, or it is no message, or no JSON, or it has had to go (claude.keep.calls, size, age)", "")
	case err != nil:
		return k, problem(http.StatusNotFound, "there is no call "+quoted(id), "mainstay claude calls lists the latest")
	}
	return k, nil
}

// claudeKept tells of a request that can be sent again, but not what it says.
func (s *Server) claudeKept(w http.ResponseWriter, r *http.Request) {
	if s.noClaude(w) {
		return
	}
	k, p := s.kept(r.PathValue("id"))
	if p != nil {
		p.answer(w)
		return
	}
	answer(w, k)
}

// claudeReplay sends a call again. It lasts as long as the call does.
func (s *Server) claudeReplay(w http.ResponseWriter, r *http.Request) {
	var q ReplayRequest
	if s.noClaude(w) {
		return
	}
	if p := read(r.Body, &q, `send {"id": "req_…"}`); p != nil {
		p.answer(w)
		return
	}
	k, p := s.kept(q.ID)
	if p == nil && k.Removed > 0 && !q.Redacted {
		p = problem(http.StatusConflict, "something was taken out of the request of call "+quoted(q.ID)+" before it was kept ("+strconv.Itoa(k.Removed)+" places), so that it can't be sent as it was", "say --redacted to send it with [redacted] in these places")
	}
	if p != nil {
		p.answer(w)
		return
	}
	control := http.NewResponseController(w)
	// A connection without deadlines is a test's.
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	done, err := s.deps.Replays.Replay(r.Context(), q.ID, q.Key)
	_ = control.SetWriteDeadline(time.Now().Add(lineLimit))
	switch {
	case errors.Is(err, calls.ErrNoKey):
		problem(http.StatusUnprocessableEntity, err.Error(), "set ANTHROPIC_API_KEY where you run mainstay claude replay").answer(w)
	case err != nil:
		problem(http.StatusInternalServerError, hide(err.Error()), "").answer(w)
	default:
		answer(w, done)
	}
}

// Kept tells of a request that can be sent again, but not what it says.
func (c *Client) Kept(ctx context.Context, id string) (k calls.Kept, err error) {
	return k, c.call(ctx, http.MethodGet, "/api/v1/claude/kept/"+url.PathEscape(id), &k)
}

// Replay sends a call again, and lasts as long as that does.
func (c *Client) Replay(ctx context.Context, q ReplayRequest) (done calls.Replayed, err error) {
	return done, c.post(ctx, "/api/v1/claude/replay", q, &done)
}
