package claude

import (
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/claude/internal/body"
	"mainstay.dev/mainstay/claude/internal/head"
	"mainstay.dev/mainstay/claude/internal/pace"
	"mainstay.dev/mainstay/claude/internal/routes"
	"mainstay.dev/mainstay/health"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/telemetry"
)

// BaseURL returns the base URL that leads an app of this color to a plane that
// listens on listenAddr: http://127.0.0.1:8700/@blue. An empty color gives the
// plain address, whose calls have no known color.
func BaseURL(listenAddr, color string) string {
	host, port, err := net.SplitHostPort(listenAddr)
	if err != nil {
		host, port = listenAddr, "80"
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	u := "http://" + net.JoinHostPort(host, port)
	if color != "" {
		u += "/@" + url.PathEscape(color)
	}
	return u
}

// uncolor takes the color's segment off a path. A first segment that names no known
// color belongs to the path.
func uncolor(path, escaped string, colors map[string]bool) (color, rest, escapedRest string) {
	if !strings.HasPrefix(path, "/@") {
		return telemetry.ColorUnknown, path, escaped
	}
	color, _, _ = strings.Cut(path[2:], "/")
	if !colors[color] {
		return telemetry.ColorUnknown, path, escaped
	}
	rest = path[2+len(color):]
	if i := strings.IndexByte(escaped[1:], '/'); i >= 0 {
		escapedRest = escaped[1+i:]
	}
	if rest == "" || escapedRest == "" {
		rest, escapedRest = "/", "/"
	}
	return color, rest, escapedRest
}

// Routes, as metric labels.
const (
	routeMessages = "/v1/messages"
	routeCount    = "/v1/messages/count_tokens"
	routeComplete = "/v1/complete"
	routeBatches  = "/v1/messages/batches"
	routeResults  = "/v1/messages/batches/{id}/results"
	routeFiles    = "/v1/files"
	routeOther    = "other"
)

// templates are the paths that have a label of their own; {id} stands for any
// segment.
var templates = [...]string{
	routeMessages, routeCount, routeComplete,
	routeBatches, "/v1/messages/batches/{id}", "/v1/messages/batches/{id}/cancel", routeResults,
	"/v1/models", "/v1/models/{id}",
	routeFiles, "/v1/files/{id}", "/v1/files/{id}/content",
}

// template returns the low-cardinality name of a path.
func template(path string) string {
	if path == routeMessages {
		return routeMessages
	}
	for _, t := range templates {
		if fits(path, t) {
			return t
		}
	}
	return routeOther
}

func fits(path, template string) bool {
	for template != "" || path != "" {
		var want, got string
		want, template = segment(template)
		got, path = segment(path)
		if want != got && (want != "/{id}" || len(got) < 2) {
			return false
		}
	}
	return true
}

// segment splits "/a/b" into "/a" and "/b".
func segment(path string) (first, rest string) {
	if path == "" {
		return "", ""
	}
	if i := strings.IndexByte(path[1:], '/'); i >= 0 {
		return path[:i+1], path[i+1:]
	}
	return path, ""
}

// shape is what the route tells of the answers that come.
type shape struct {
	// message: a generation, streamed or not. Its stream begins with its first event,
	// so nothing is lost if its head waits for that; and it ends with message_stop.
	message bool
	// whole: its JSON is short enough, and of use only when it is whole.
	whole bool
}

func shapeOf(method, route string) shape {
	return shape{
		message: method == http.MethodPost && (route == routeMessages || route == routeComplete),
		whole:   route != routeOther,
	}
}

// aim makes the request that goes upstream of the one that came in. It takes over
// the header, which nobody else needs after this.
func aim(r *http.Request, said *head.Head, to target, path, escaped string) *http.Request {
	if said.Hops {
		upgrade := head.Upgrades(r.Header)
		head.DropHops(r.Header)
		if upgrade != "" && r.Body == http.NoBody {
			r.Header["Connection"], r.Header["Upgrade"] = []string{"Upgrade"}, []string{upgrade}
		}
	}
	said.Strip(r.Header)
	if said.Own {
		delete(r.Header, identity.Header)
	}
	if said.Expects {
		delete(r.Header, "Expect") // the plane itself has told the client to continue
	}
	if !said.Named {
		r.Header["User-Agent"] = []string{""} // or net/http would put in its own
	}
	return &http.Request{
		Method: r.Method,
		URL:    to.url(path, escaped, r.URL),
		Host:   to.host,
		Header: r.Header,
	}
}

// url returns the address of a path, to the byte as the client wrote it.
func (t target) url(path, escaped string, from *url.URL) *url.URL {
	u := &url.URL{
		Scheme: t.scheme, Host: t.host, Path: t.path + path, RawPath: t.base + escaped,
		RawQuery: from.RawQuery, ForceQuery: from.ForceQuery,
	}
	if u.EscapedPath() != u.RawPath {
		u.Opaque = u.RawPath // holds what net/url would write in another way
	}
	return u
}

// asWritten returns the path of r as the client wrote it.
func asWritten(r *http.Request) string {
	if !strings.HasPrefix(r.RequestURI, "/") {
		return r.URL.EscapedPath() // the absolute form, or a request made in this process
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return path
}

// A way is how the attempts of a call go: which of the routes, with which key, and what
// of both has failed the call.
type way struct {
	via     *routes.Route
	access  *routes.Access // nil: the caller's own key
	asked   *http.Request  // the request as the call has made it; nil: no way was taken yet
	sent    *body.Body     // what goes the way that was chosen; nil: the call's own
	fitted  map[*routes.Route]*body.Body
	prefix  uint64           // what the prompt cache may know the prompt by
	filed   bool             // the prompt speaks of files or containers, which are with one key
	pinned  bool             // the way must not change: an answer is continued
	needs   *routes.Needs    // of a model; nil: not read yet
	model   string           // that is asked for this way
	spent   []*routes.Route  // that have failed the call for good
	shunned []*routes.Access // that the call was forbidden to use
	swaps   int              // of keys
}

// forks reports whether the call has a choice of routes.
func (c *call) forks() bool {
	return c.gate != nil && len(c.rules.routes) > 1 && !c.way.pinned && c.x.Route == routeMessages && c.body.Text() != nil
}

// takes reports whether the call may go by r, and what model it then asks for.
func (c *call) takes(r *routes.Route) (model string, ok bool) {
	if slices.Contains(c.way.spent, r) || c.way.filed && r.Elsewhere() {
		return "", false
	}
	if model, ok = r.Takes(c.x.Tier, c.request.model); !ok || model == c.request.model {
		return model, ok
	}
	if lacks := c.rules.abilities.Lacks(model, c.needs(), r.MaxTokens()); lacks != "" {
		c.engine.unfit(r.Name, model, lacks)
		return "", false
	}
	return model, true
}

// needs are what the call asks of a model, read once.
func (c *call) needs() *routes.Needs {
	if c.way.needs == nil {
		c.way.needs = routes.Ask(c.body.Text(), c.out.Header["Anthropic-Beta"])
	}
	return c.way.needs
}

// findWay takes the first route that is fit: claude.upstream, or, while its gate is not
// open, what claude.routes names instead. False: none is, and the call waits for the
// first one.
func (c *call) findWay() bool {
	if len(c.rules.routes) == 0 || c.way.pinned {
		return false
	}
	if r := c.rules.routes[0]; len(c.rules.routes) == 1 && r.Len() == 0 { // the call goes as it is
		c.way.via, c.way.sent, c.way.model = r, c.body, c.request.model
		return false
	}
	if !c.forks() {
		c.take(c.rules.routes[0], c.request.model, true)
		return false
	}
	turn := health.Turn{Since: c.x.Start, Again: c.x.Tries > 0}
	for _, r := range c.rules.routes {
		model, ok := c.takes(r)
		if !ok || !c.take(r, model, false) {
			continue
		}
		if c.pass, ok = c.gate.TryJoin(turn); ok {
			return true
		}
	}
	for _, r := range c.rules.routes {
		if model, ok := c.takes(r); ok && c.take(r, model, true) {
			break
		}
	}
	return false
}

// take makes r the call's route. False: it has no key that is fit, or there is no memory
// for a changed request; anyway: a key that is not fit will do.
func (c *call) take(r *routes.Route, model string, anyway bool) bool {
	key, ok := r.Key(c.way.prefix, c.way.shunned, anyway)
	if !ok {
		return false
	}
	w := &c.way
	if w.via == r && w.access == key {
		c.out = key.Again(c.out)
		return true
	}
	sent := c.fit(r, model)
	if sent == nil {
		return false
	}
	if w.asked == nil {
		w.asked = c.out
	}
	w.via, w.access, w.sent, w.model = r, key, sent, model
	c.out = r.Aim(w.asked, routes.Aim{Base: c.rules.basePath, Model: model, Streams: c.request.stream || c.gather != nil}, key)
	c.x.HTTP.Target = c.out.URL.Host
	if c.gate != nil {
		c.gate = c.engine.gates.at(c.out.URL.Host, model)
		c.findLane(model)
	}
	return true
}

// findLane finds the line for the rate limits of the key that is used.
func (c *call) findLane(model string) {
	if !c.rules.pacing.Enabled {
		return
	}
	class := c.desk.class(model)
	if !c.shape.message {
		class += " count"
	} else if c.request.fast {
		class = pace.Fast(class)
	}
	key, _ := c.limitsOf()
	c.lane = c.engine.pacer.Lane(key, class)
}

// limitsOf names whose rate limits the key that is used has; told: the file says so.
func (c *call) limitsOf() (name string, told bool) {
	if c.way.access == nil {
		return c.x.Caller, false
	}
	return c.way.access.Lane()
}

// learn notes whose rate limits the key has that was answered.
func (c *call) learn(h http.Header) {
	if key, told := c.limitsOf(); c.lane != nil && !told {
		c.engine.pacer.Owned(key, h.Get("Anthropic-Organization-Id"), h.Get("Anthropic-Workspace-Id"), c.lane)
	}
}

// fit returns the body that goes by r, which is made once; nil: replay_memory has no room
// for it.
func (c *call) fit(r *routes.Route, model string) *body.Body {
	if r == c.rules.routes[0] {
		return c.body
	}
	if b := c.way.fitted[r]; b != nil {
		return b
	}
	text, memory := c.body.Text(), c.body.Memory()
	betas := c.out.Header["Anthropic-Beta"]
	if c.way.asked != nil {
		betas = c.way.asked.Header["Anthropic-Beta"]
	}
	room := int64(len(text)) + routes.Slack
	for _, line := range betas {
		room += int64(2 * len(line)) // some ways have them in the body
	}
	if !memory.Take(room, c.policy.memory) {
		return nil
	}
	b := c.body
	if changed := r.Body(text, model, betas); len(text) > 0 && &changed[0] != &text[0] {
		b = c.body.Changed(changed, room)
	} else {
		memory.Give(room)
	}
	if c.way.fitted == nil {
		c.way.fitted = map[*routes.Route]*body.Body{}
	}
	c.way.fitted[r] = b
	return b
}

// leaveWays gives back what the ways have taken.
func (c *call) leaveWays() {
	for _, b := range c.way.fitted {
		if b != c.body {
			b.Release()
		}
	}
}

// chosen is the body that goes the way that was chosen.
func (c *call) chosen() *body.Body {
	if c.way.sent != nil {
		return c.way.sent
	}
	return c.body
}

// other reports whether another key of the same route may do what this one could not,
// at once.
func (c *call) other(v verdict) bool {
	w := &c.way
	if w.access == nil || w.pinned || v.cause != CauseRateLimited && !c.forbidden(v) || w.swaps >= w.via.Len() {
		return false
	}
	w.swaps++
	key, ok := w.via.Key(w.prefix, w.shunned, false)
	return ok && key != w.access
}

// forbidden reports whether what failed is the key's to answer for.
func (c *call) forbidden(v verdict) bool {
	return v.cause == CauseRejected && c.way.access != nil && (c.try.Status == http.StatusUnauthorized || c.try.Status == http.StatusForbidden)
}

// moves gives up the route that has failed the call for good, if another is fit.
func (c *call) moves(v verdict) bool {
	if !c.canMove(v) {
		return false
	}
	w := &c.way
	w.spent = append(w.spent, w.via)
	c.loop, c.until, w.swaps, c.refused = c.rules.retry.Begin(), time.Time{}, 0, verdict{}
	return true
}

// canMove reports whether another route may do what this one could not: after a rate
// limit only one that has other limits.
func (c *call) canMove(v verdict) bool {
	limited := v.cause == CauseRateLimited
	down := limited || c.outage(v.cause) || c.forbidden(v) && c.try.Status == http.StatusUnauthorized
	w := &c.way
	if _, ended := c.ended(); ended || !down || w.via == nil || !c.forks() || !time.Now().Before(c.deadline) {
		return false
	}
	from, class := c.out.URL.Host, pace.Class(w.model)
	for _, r := range c.rules.routes {
		model, ok := c.takes(r)
		if !ok || r == w.via {
			continue
		}
		host := r.Host(w.asked.URL.Host)
		if limited && host == from && pace.Class(model) == class || c.engine.gates.at(host, model).State() == health.Shut {
			continue
		}
		if _, ok = r.Key(w.prefix, w.shunned, false); ok {
			return true
		}
	}
	return false
}

// heed notes what an attempt says of its key. That something is forbidden may be the
// request's fault: it speaks against the key when another one may do it.
func (c *call) heed(v verdict) {
	k := c.way.access
	switch {
	case k == nil:
	case v.cause == CauseNone:
		if k.Served() {
			c.engine.keyBack(k)
		}
		for _, shunned := range c.way.shunned {
			c.engine.takeOut(shunned, http.StatusForbidden)
		}
		c.way.shunned = nil
	case c.forbidden(v):
		k.Failed()
		if c.try.Status == http.StatusUnauthorized {
			c.engine.takeOut(k, http.StatusUnauthorized)
		} else if !slices.Contains(c.way.shunned, k) {
			c.way.shunned = append(c.way.shunned, k)
		}
	case v.cause == CauseRateLimited:
		k.Failed()
		if c.way.via.Len() > 1 {
			k.Rest(v.after)
		}
	case c.outage(v.cause):
		k.Failed()
	}
}

// requestID takes over the caller's request id, or makes one.
func requestID(given string) string {
	if given != "" && len(given) <= 128 && strings.IndexFunc(given, func(r rune) bool { return r <= ' ' || r > '~' }) < 0 {
		return given
	}
	return "req_" + strconv.FormatUint(rand.Uint64()|1<<63, 36) + strconv.FormatUint(rand.Uint64()|1<<63, 36)
}
