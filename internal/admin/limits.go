package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"mainstay.dev/mainstay/internal/limits"
)

// Limits is how the rate limits stand.
type Limits struct {
	On bool `json:"on"` // the file has limits
	limits.Overview
}

// The most that is told at once.
const (
	maxTop   = 200
	maxAudit = 500
)

func (s *Server) limits(w http.ResponseWriter, r *http.Request) {
	n := number(r, "top", 20, maxTop)
	if s.deps.Limits == nil {
		answer(w, Limits{})
		return
	}
	answer(w, Limits{On: true, Overview: s.deps.Limits.Overview(n)})
}

// number reads a parameter between 1 and most; anything else is the default.
func number(r *http.Request, name string, absent, most int) int {
	n, err := strconv.Atoi(r.URL.Query().Get(name))
	if err != nil || n < 1 {
		return absent
	}
	return min(n, most)
}

// limited reports whether there are limits, and answers if not.
func (s *Server) limited(w http.ResponseWriter) bool {
	if s.deps.Limits == nil {
		problem(http.StatusNotFound, "this Mainstay limits nobody", "write a limits section into the file, and restart").answer(w)
		return false
	}
	return true
}

func (s *Server) limitsShow(w http.ResponseWriter, r *http.Request) {
	if !s.limited(w) {
		return
	}
	q := r.URL.Query()
	shown, err := s.deps.Limits.Show(r.Context(), limits.Inquiry{Key: q.Get("key"), Workspace: q.Get("workspace"), Tier: q.Get("tier")})
	if err != nil {
		limitProblem(err).answer(w)
		return
	}
	answer(w, shown)
}

func (s *Server) limitsAudit(w http.ResponseWriter, r *http.Request) {
	if !s.limited(w) {
		return
	}
	entries, err := s.deps.Limits.Audit(number(r, "last", 50, maxAudit))
	if err != nil {
		problem(http.StatusInternalServerError, err.Error(), "").answer(w)
		return
	}
	answer(w, auditReply{entries})
}

type auditReply struct {
	Entries []limits.Entry `json:"entries"` // newest first
}

func (s *Server) limitsReset(w http.ResponseWriter, r *http.Request) {
	s.limitsOrder(w, r, func(ctx context.Context, q limits.Inquiry) error { return s.deps.Limits.Reset(ctx, q) })
}

func (s *Server) limitsEnd(w http.ResponseWriter, r *http.Request) {
	s.limitsOrder(w, r, func(ctx context.Context, q limits.Inquiry) error { return s.deps.Limits.EndGrant(ctx, q) })
}

func (s *Server) limitsOrder(w http.ResponseWriter, r *http.Request, do func(context.Context, limits.Inquiry) error) {
	var q limits.Inquiry
	if !s.limited(w) {
		return
	}
	if p := read(r.Body, &q, `send {"key": "user:ann", "who": "you"}`); p != nil {
		p.answer(w)
		return
	}
	if err := do(r.Context(), q); err != nil {
		limitProblem(err).answer(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) limitsGrant(w http.ResponseWriter, r *http.Request) {
	var g GrantRequest
	if !s.limited(w) {
		return
	}
	if p := read(r.Body, &g, `send {"key": "user:ann", "requests": 5000, "window_ns": 3600000000000}`); p != nil {
		p.answer(w)
		return
	}
	if g.For < 0 {
		problem(http.StatusBadRequest, "for_ns is negative", "leave it out for a grant without an end").answer(w)
		return
	}
	x := limits.Grant{Key: g.Key, Claude: g.Claude, Requests: g.Requests, Window: g.Window, Burst: g.Burst, AtOnce: g.AtOnce, Who: g.Who, Why: g.Why}
	if g.For > 0 {
		x.Until = time.Now().Add(g.For)
	}
	if err := s.deps.Limits.Grant(r.Context(), x); err != nil {
		limitProblem(err).answer(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// GrantRequest asks for a limit of a caller's own.
type GrantRequest struct {
	Key      string        `json:"key"`
	Claude   bool          `json:"claude,omitempty"` // of calls to Claude
	Requests int           `json:"requests"`
	Window   time.Duration `json:"window_ns"`
	Burst    int           `json:"burst,omitempty"`
	AtOnce   int           `json:"at_once,omitempty"`
	For      time.Duration `json:"for_ns,omitempty"` // 0: until it is ended
	Who      string        `json:"who,omitempty"`
	Why      string        `json:"why,omitempty"`
}

func limitProblem(err error) *Problem {
	if errors.Is(err, limits.ErrNoGrant) {
		return problem(http.StatusNotFound, err.Error(), "mainstay limits top lists the grants")
	}
	return problem(http.StatusUnprocessableEntity, hide(err.Error()), "")
}

// Limits asks how the limits stand, with the n callers nearest to their end.
func (c *Client) Limits(ctx context.Context, n int) (l Limits, err error) {
	return l, c.call(ctx, http.MethodGet, "/api/v1/limits?top="+strconv.Itoa(n), &l)
}

// ShowLimits asks how one caller stands.
func (c *Client) ShowLimits(ctx context.Context, q limits.Inquiry) (s limits.Showing, err error) {
	values := url.Values{"key": {q.Key}, "workspace": {q.Workspace}, "tier": {q.Tier}}
	return s, c.call(ctx, http.MethodGet, "/api/v1/limits/show?"+values.Encode(), &s)
}

// ResetLimits forgets what a caller has taken.
func (c *Client) ResetLimits(ctx context.Context, q limits.Inquiry) error {
	return c.post(ctx, "/api/v1/limits/reset", q, nil)
}

// GrantLimits gives a caller a limit of its own.
func (c *Client) GrantLimits(ctx context.Context, g GrantRequest) error {
	return c.post(ctx, "/api/v1/limits/grant", g, nil)
}

// EndGrant takes a caller's grant back.
func (c *Client) EndGrant(ctx context.Context, q limits.Inquiry) error {
	return c.post(ctx, "/api/v1/limits/end", q, nil)
}

// LimitsAudit asks for the latest changes of limits, newest first.
func (c *Client) LimitsAudit(ctx context.Context, n int) ([]limits.Entry, error) {
	var reply auditReply
	err := c.call(ctx, http.MethodGet, "/api/v1/limits/audit?last="+strconv.Itoa(n), &reply)
	return reply.Entries, err
}
