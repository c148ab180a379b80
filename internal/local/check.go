package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/ratelimit"
)

// A Check is what the app asks: whether the caller has so many units left, of its
// tier, of a class, and of limits of the app's own, all or none.
type Check struct {
	// Who: as the edge has sealed it for the app (the header Mainstay-Identity, as
	// it came), or in words. Words go before the seal; the app is believed.
	Identity  string `json:"identity"`
	User      string `json:"user"`
	Workspace string `json:"workspace"`
	Tier      string `json:"tier"`
	Address   string `json:"address"`

	Class  string  `json:"class"`  // a route of the file, by its name
	Cost   *int64  `json:"cost"`   // units of the tier; absent: the class's, or 1
	Limits []Limit `json:"limits"` // of the app's own
	Peek   bool    `json:"peek"`   // take nothing, only tell
	Accept string  `json:"accept"` // of the client, for the body of a refusal
}

// A Limit is one of the app's own: so many in any window of a length.
type Limit struct {
	Name     string `json:"name"`
	Key      string `json:"key"` // whose it is
	Requests int    `json:"requests"`
	Window   string `json:"window"` // 30s, 5m, 1h
	Burst    int    `json:"burst"`
	AtOnce   int    `json:"at_once"`
	Cost     *int64 `json:"cost"` // absent: 1
}

// An Answer says what became of it. Headers and Body are for the client.
type Answer struct {
	Allowed    bool              `json:"allowed"`
	Denied     bool              `json:"denied,omitempty"` // by limits.deny: for good
	Tier       string            `json:"tier"`
	Limit      int64             `json:"limit"` // of the rule that is nearest to its end
	Remaining  int64             `json:"remaining"`
	Reset      int64             `json:"reset"`      // Unix time, in seconds
	RetryAfter int64             `json:"retryAfter"` // seconds; 0: no wait helps, or none is needed
	Mode       string            `json:"mode"`       // exact, or how it was decided while Redis is down
	Rules      []Stand           `json:"rules"`
	Receipt    string            `json:"receipt,omitempty"` // for settle
	Status     int               `json:"status"`            // for the client: 200, 403 or 429
	Headers    map[string]string `json:"headers"`
	Body       string            `json:"body,omitempty"` // of a refusal
}

// A Stand is how one rule stands.
type Stand struct {
	Name      string  `json:"name"`
	Allowed   bool    `json:"allowed"`
	Shadow    bool    `json:"shadow,omitempty"`
	Limit     int64   `json:"limit"`
	Window    float64 `json:"window_s"`
	Remaining int64   `json:"remaining"`
}

// maxOwn bounds the limits of one check; a decision may check 32, and the file's
// own take up to 15.
const maxOwn = 8

// check decides.
func (s *Server) check(w http.ResponseWriter, r *http.Request) {
	var c Check
	if err := read(r.Body, &c); err != nil {
		s.checks[2].Add(1)
		s.refuse(w, status(err), err.Error())
		return
	}
	if s.deps.Limits == nil {
		s.refuse(w, http.StatusNotFound, "the file has no limits section; write limits: {} for the default tiers")
		return
	}
	ask, err := s.ask(&c)
	if err != nil {
		s.checks[2].Add(1)
		s.refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	v, err := s.deps.Limits.Admit(r.Context(), ask)
	if err != nil {
		s.checks[2].Add(1)
		s.refuse(w, http.StatusBadRequest, strings.TrimPrefix(err.Error(), ratelimit.ErrInvalid.Error()+": "))
		return
	}
	a := answerOf(&v, c.Accept)
	switch {
	case !v.Allowed:
		s.checks[1].Add(1)
	default:
		s.checks[0].Add(1)
		if !c.Peek && len(v.Rules) > 0 {
			a.Receipt = s.receipts.give(v)
		}
	}
	reply(w, a)
}

// ask puts the app's question in the words of the policy.
func (s *Server) ask(c *Check) (limits.Ask, error) {
	a := limits.Ask{Inner: true, Peek: c.Peek, Class: c.Class, User: c.User, Workspace: c.Workspace, Tier: c.Tier}
	if c.Identity != "" && s.deps.Open != nil {
		who, _ := s.deps.Open(c.Identity)
		if who.Refused != "" {
			return a, fmt.Errorf("identity is not believed: %s", who.Refused)
		}
		if a.User == "" {
			a.User = who.User
		}
		if a.Workspace == "" {
			a.Workspace = who.Workspace
		}
		if a.Tier == "" {
			a.Tier = who.Tier
		}
	}
	if c.Address != "" {
		addr, err := netip.ParseAddr(c.Address)
		if err != nil {
			return a, errors.New("address is no IP address")
		}
		a.Address = addr
	}
	if c.Class != "" && !s.deps.Limits.HasClass(c.Class) {
		return a, errors.New("class is none of limits.routes")
	}
	if c.Cost != nil {
		if a.Cost = *c.Cost; a.Cost < 1 {
			return a, errors.New("cost must be 1 or more; peek takes nothing")
		}
	}
	if len(c.Limits) > maxOwn {
		return a, fmt.Errorf("more than %d limits", maxOwn)
	}
	if len(c.Limits) == 0 && a.User == "" && a.Workspace == "" && !a.Address.IsValid() {
		return a, errors.New("nobody is named: give identity, user, workspace or address, or limits of your own")
	}
	for i, l := range c.Limits {
		own := limits.Own{Name: l.Name, Key: l.Key, Cost: 1, Limit: limits.Tier{Requests: l.Requests, Burst: l.Burst, AtOnce: l.AtOnce}}
		if l.Cost != nil {
			own.Cost = *l.Cost
		}
		if l.Window != "" {
			d, err := time.ParseDuration(l.Window)
			if err != nil {
				return a, fmt.Errorf("limits[%d].window is no length of time; write 30s, 5m or 1h", i)
			}
			own.Limit.Window = d
		}
		a.Own = append(a.Own, own)
	}
	return a, nil
}

func answerOf(v *limits.Verdict, accept string) Answer {
	a := Answer{Allowed: v.Allowed, Denied: v.Denied, Tier: v.Tier, Mode: v.Decision.Mode.String(), Status: v.Status(), Headers: map[string]string{}, Rules: []Stand{}}
	now := time.Now()
	v.Headers(now, func(name, value string) { a.Headers[name] = value })
	a.RetryAfter, _ = v.RetryAfter()
	if n := v.Nearest(); n != nil {
		a.Limit, a.Remaining, a.Reset = n.Check.Limit.Max, n.Remaining, now.Add(n.Reset).Unix()+1
	}
	for i := range v.Rules {
		r := &v.Rules[i]
		a.Rules = append(a.Rules, Stand{r.Name, r.Allowed, r.Check.Shadow, r.Check.Limit.Max, r.Check.Limit.Window.Seconds(), r.Remaining})
	}
	if !v.Allowed {
		body, kind := v.Body(accept, "")
		a.Body, a.Headers["Content-Type"], a.Headers["Cache-Control"] = string(body), kind, "no-store"
	}
	return a
}

// A Settlement tells what became of work that was allowed.
type Settlement struct {
	Receipt string `json:"receipt"`
	// Cost is how many units of the tier it really took. Absent: it did not happen,
	// and all is given back, in the app's own limits too.
	Cost *int64 `json:"cost"`
}

// settle corrects a check once, and ends what ran at once.
func (s *Server) settle(w http.ResponseWriter, r *http.Request) {
	var t Settlement
	if err := read(r.Body, &t); err != nil {
		s.refuse(w, status(err), err.Error())
		return
	}
	if t.Cost != nil && (*t.Cost < 0 || *t.Cost > ratelimit.MaxUnits) {
		s.refuse(w, http.StatusBadRequest, "cost must be between 0 and a billion")
		return
	}
	v, ok := s.receipts.take(t.Receipt)
	if !ok {
		s.refuse(w, http.StatusGone, "the receipt is not known: it was settled, is older than ten minutes, or was never given")
		return
	}
	if t.Cost == nil {
		s.deps.Limits.Refund(&v)
	} else {
		s.deps.Limits.Settle(&v, *t.Cost)
		s.deps.Limits.Release(&v)
	}
	w.WriteHeader(http.StatusNoContent)
}

// read decodes one JSON object, strictly.
func read(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("the request is not the JSON that is expected here: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the request's JSON")
	}
	return nil
}

func status(err error) int {
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadRequest
}

func reply(w http.ResponseWriter, v any) {
	b, _ := json.Marshal(v) // strings and numbers: cannot fail
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // a client that is gone has lost nothing
}
