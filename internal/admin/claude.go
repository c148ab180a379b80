package admin

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

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

// claudeCalls lists the latest calls: last=N, failed=true, after=N.
func (s *Server) claudeCalls(w http.ResponseWriter, r *http.Request) {
	if s.noClaude(w) {
		return
	}
	q := calls.Query{Last: number(r, "last", 20, maxCalls), Failed: r.URL.Query().Get("failed") == "true"}
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
	var reply Calls
	err := c.call(ctx, http.MethodGet, "/api/v1/claude/calls?"+values.Encode(), &reply)
	return reply.Calls, err
}
