package claude

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/claude/internal/batch"
	"mainstay.dev/mainstay/claude/internal/pace"
	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/claude/internal/routes"
	"mainstay.dev/mainstay/claude/internal/words"
	"mainstay.dev/mainstay/telemetry"
)

// replies gives the codes that Mainstay itself answers with their status and their
// type among the API's errors.
var replies = map[Code]struct {
	status int
	kind   string
}{
	BadRequest:      {400, "invalid_request_error"},
	TooLarge:        {413, "request_too_large"},
	HeadersTooLarge: {431, "invalid_request_error"},
	UploadTimeout:   {408, "timeout_error"},
	ClientGone:      {499, "api_error"}, // nobody is there to read it
	Overloaded:      {529, "overloaded_error"},
	Held:            {529, "overloaded_error"},
	Limited:         {429, "rate_limit_error"},
	Denied:          {403, "permission_error"},
	OverBudget:      {402, "billing_error"},
	Unreachable:     {502, "api_error"},
	UpstreamTimeout: {504, "timeout_error"},
	StreamError:     {529, "overloaded_error"},
	UpstreamCut:     {502, "api_error"},
	UpstreamStalled: {504, "timeout_error"},
	AnswerTooLarge:  {502, "api_error"},
	AnswersFull:     {529, "overloaded_error"},
	Stopping:        {503, "api_error"},
}

// explain says in the API's type and in a sentence what went wrong. It names no
// secret: target is host and port.
func explain(v verdict, target string, attempts int) (kind, message string) {
	tries := "1 attempt"
	if attempts != 1 {
		tries = strconv.Itoa(attempts) + " attempts"
	}
	switch v.code {
	case TooLarge:
		message = "Request exceeds the maximum size (claude.limits)."
	case UploadTimeout:
		message = "The request did not arrive in time."
	case BadRequest:
		message = "The request could not be read."
	case HeadersTooLarge:
		message = "The request's headers are larger than 64 KiB together."
	case Overloaded, Held:
		message = fmt.Sprintf("Claude at %s is overloaded or down, and did not come back in the time that this call could wait.", target)
	case Limited:
		message = fmt.Sprintf("The rate limit that %s sets this key leaves no room for the call in the time that it could wait.", target)
	case OverBudget:
		message = "Today's calls have cost what claude.spend.daily allows; the next day begins at 00:00 UTC."
	case Unreachable:
		message = fmt.Sprintf("Mainstay got no answer from %s in %s: the connection failed.", target, tries)
	case UpstreamTimeout:
		message = fmt.Sprintf("Mainstay got no answer from %s in time, in %s.", target, tries)
	case StreamError:
		message = fmt.Sprintf("The answer from %s carried an error, in %s.", target, tries)
	case UpstreamCut:
		message = fmt.Sprintf("The answer from %s broke off.", target)
	case UpstreamStalled:
		message = fmt.Sprintf("The answer from %s stopped coming.", target)
	case AnswerTooLarge:
		message = "The answer is larger than Mainstay gathers; raise claude.recovery.max_answer, ask for a stream, or send mainstay-aggregate: off."
	case AnswersFull:
		message = "Mainstay has no memory left for another answer; raise claude.recovery.memory, or make fewer calls at once."
	case Stopping:
		message = "Mainstay is stopping."
	default:
		message = "The call ended before it was answered."
	}
	kind = replies[v.code].kind
	if kind == "" {
		kind = "api_error"
	}
	return kind, message
}

// refuse answers with an error of our own.
func (c *call) refuse(w http.ResponseWriter, v verdict) {
	c.end = v
	c.early.end()
	status, body := c.say(w.Header(), v)
	c.x.HTTP.Status = status
	c.patience.write()
	w.WriteHeader(status)
	n, _ := w.Write(body) // a client that has left has nobody to tell
	c.x.BytesOut += int64(n)
}

// say is an error of our own: its status, its headers, which it sets in h, and its body.
func (c *call) say(h http.Header, v verdict) (status int, body []byte) {
	host := c.policy.upstream.host
	if c.out != nil {
		host = c.out.URL.Host // of the way that failed
	}
	kind, message := explain(v, host, max(c.x.Tries, 1))
	if v.own {
		message = v.err.Error()
		c.tellLimits(h)
	} else {
		c.closeRetries(h, v)
	}
	body = words.Error(kind, message, c.x.ID)
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	h["Request-Id"] = []string{c.x.ID}
	c.sign(h, v.code)
	if status = replies[v.code].status; status == 0 {
		status = http.StatusInternalServerError
	}
	return status, body
}

// record ends the call and writes it down, once, whatever came of it. A call that came by
// a connection is written down when the answer has gone out, and of a stream, whose
// client has seen its last event already, all waits for that.
func (c *call) record() {
	if c.flight != nil {
		c.stayed = c.leave()
	}
	if c.desk == nil || c.x.HTTP.Upgraded != "" { // whose connection is net/http's no more
		c.conclude()
		c.writeDown()
		return
	}
	if c.desk.last = c; !c.x.HTTP.Stream {
		c.conclude()
	}
}

// conclude ends the call; again does nothing.
func (c *call) conclude() {
	x := c.x
	if c.ended0 {
		return
	}
	c.ended0 = true
	c.depart()
	if c.end.code == "" {
		c.end = verdict{code: Internal} // only a panic gets here
	}
	c.settleUp(c.end.cause)
	x.Code, x.Blame, x.Err = string(c.end.code), blames[c.end.code], c.end.err
	if c.end.own {
		x.Blame = telemetry.BlameClient
	}
	x.GenAI.Saved = string(c.saved())
	if c.upload != nil && x.HTTP.Upgraded == "" {
		x.BytesIn = c.upload.taken.Load()
	}
	c.credit()
	if c.end.code == OK && c.makesBatch() {
		c.engine.batches.Made(x.GenAI.AnswerID, c.owner())
	}
	n := &c.engine.counts
	n.inFlight.Add(-1)
	if x.HTTP.Stream {
		n.streams.Add(-1)
	}
	if x.Blame == telemetry.BlameMainstay || x.Blame == telemetry.BlameUpstream {
		n.failed.Add(1)
	}
	if r := c.replay; r != nil {
		r.Code, r.Dollars, r.Attempts = c.end.code, float64(x.GenAI.CostNanoUSD)/1e9, x.Tries
	}
}

// writeDown is the last that happens of a call: its request is kept, if that is wished,
// and all is told to the sink.
func (c *call) writeDown() {
	if c.asked != nil && c.policy.keep.Keeps(c.end.code != OK) {
		c.keepRequest()
	}
	c.x.End(c.engine.sink)
	if c.done != nil {
		c.done()
	}
}

// settleUp tells the rate limits, the books and the limits what the call has taken, and
// gives back its memory: once, and, where an answer is given in one piece, before the
// client has it and may call again.
func (c *call) settleUp(cause Cause) {
	if c.settled {
		return
	}
	c.settled = true
	c.watch.Estimate()
	c.tried(cause)
	g := &c.x.GenAI
	if c.shadow { // paid for, and counted, by the call that it was attached to
		g.InputTokens, g.CacheReadTokens, g.CacheWriteTokens, g.OutputTokens = 0, 0, 0, 0
	}
	if c.mend != nil {
		input, read, written := c.mend.Extra()
		g.InputTokens += input
		g.CacheReadTokens += read
		g.CacheWriteTokens += written
	}
	if c.body != nil {
		if g.Model == "" {
			g.Model = c.body.Model()
		}
		c.leaveWays()
		c.body.Release()
	}
	c.leaveRoom()
	if c.fetch != nil {
		c.fetched(cause)
	}
	c.book()
	c.settleLimits()
}

// saved tells what made the call go well where it would have failed.
func (c *call) saved() Saved {
	broke := slices.ContainsFunc(c.x.Attempts, func(a telemetry.Attempt) bool {
		return a.Cause == string(CauseCut) || a.Cause == string(CauseStalled) || a.Cause == string(CauseStream)
	})
	switch {
	case c.end.code != OK:
		return SavedNone
	case c.attached:
		return SavedAttach
	case c.way.via != nil && c.way.via.Name != routes.First:
		return SavedRoute
	case c.gather != nil && broke:
		return SavedAggregate
	case c.resumes > 0:
		return SavedResume
	case c.held:
		return SavedHold
	case c.x.Tries > 1:
		return SavedRetry
	}
	return SavedNone
}

// credit tells who served the call, or was the last that failed to.
func (c *call) credit() {
	w := &c.way
	switch {
	case w.via == nil:
		return
	case w.access != nil:
		c.x.GenAI.Via = w.access.Name
		if name := w.via.Name; !strings.HasPrefix(w.access.Name, name+"/") { // it has the first route's keys
			c.x.GenAI.Via = name + " " + w.access.Name
		}
	case len(c.rules.routes) > 1:
		c.x.GenAI.Via = w.via.Name
	}
	if c.end.code == OK {
		w.via.Answered()
	}
}

// book tells what the call has cost: by what Claude counted, of all its attempts as far
// as that is known.
func (c *call) book() {
	g := &c.x.GenAI
	defer func() { c.stake.Settle(g.CostNanoUSD) }()
	used := g.InputTokens + g.CacheReadTokens + g.CacheWriteTokens + g.OutputTokens
	if !c.shape.message || used == 0 || c.rules.prices == nil {
		return
	}
	u := price.Usage{
		Model: g.Model, Input: g.InputTokens, CacheRead: g.CacheReadTokens, CacheWrite: g.CacheWriteTokens, CacheHour: c.watch.Hour,
		Output: g.OutputTokens, Batch: c.watch.Batch, Fast: c.watch.Fast,
	}
	if !c.shadow {
		u.Searches = c.watch.Searches
	}
	var known bool
	g.CostNanoUSD, known = c.charge(u, c.owner())
	g.Unpriced = !known
}

// charge books what was used; known: its price is, and else it costs nothing.
func (c *call) charge(u price.Usage, to batch.Owner) (nano int64, known bool) {
	nano, known = c.rules.prices.Cost(u)
	if c.engine.ledger.Add(price.Entry{Usage: u, Color: to.Color, User: to.User, Workspace: to.Workspace, Nano: nano, Unpriced: !known}) {
		c.engine.emit("unpriced_model", slog.LevelWarn, "The price of a Claude model is not known, so its calls are in no sum; give it in claude.prices.", slog.String("model", strings.Clone(u.Model)))
	}
	return nano, known
}

// owner is for whom the call is made.
func (c *call) owner() batch.Owner {
	return batch.Owner{Color: c.x.Color, User: c.x.User, Workspace: c.x.Workspace}
}

// follow has the results of a batch booked while they pass, each once, to whom the batch
// was made for.
func (c *call) follow(a *answer) {
	if c.x.Route != routeResults || c.out.Method != http.MethodGet || a.res.StatusCode != http.StatusOK || c.rules.prices == nil || c.engine.batches == nil {
		return
	}
	id := strings.TrimSuffix(c.x.HTTP.Path, "/results")
	c.fetch = c.engine.batches.Fetch(id[strings.LastIndexByte(id, '/')+1:], c.owner(), func(to batch.Owner, res batch.Result) {
		if u, ok := batch.Used(res); ok {
			nano, known := c.charge(u, to)
			batch.Count(&c.x.GenAI, u, nano, known)
		}
	})
	if !c.watch.Through(a.res.Header, c.fetch.Feed) {
		c.fetch.End(false)
		c.fetch = nil
	}
}

// fetched ends the reading of a batch's results.
func (c *call) fetched(cause Cause) {
	unread := c.fetch.End(cause == CauseNone && c.end.code != Internal)
	c.engine.ceiling.Book(c.x.GenAI.CostNanoUSD)
	if unread > 0 {
		c.engine.emit("batch_unread", slog.LevelWarn, "Some results of a batch could not be read, so that their cost is in no sum.", slog.Int("results", unread), slog.String("path", strings.Clone(c.x.HTTP.Path)))
	}
}

// batchTrouble tells what went wrong with the books of batches.
func (e *engine) batchTrouble(what string, err error) {
	attrs := []slog.Attr{slog.String("what", what)}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	e.emit("batch_books", slog.LevelWarn, "The cost of batches may not be booked exactly.", attrs...)
}

// firstByte notes when the answer began.
func (c *call) firstByte() {
	if c.x.FirstByte == 0 {
		c.x.FirstByte = time.Since(c.x.Start)
	}
}

// A desk is what a connection keeps from one call to the next: the one that it has
// answered, to be written down when the client has all of the answer and need not wait
// for it any more; what the next one needs, made in the meantime; and what calls that come
// by one connection mostly have in common.
type desk struct {
	conn net.Conn
	last *call
	key  uint64 // a hash of the key by which was called last
	name string // that the key has with us; empty: nobody has called
	next *call  // made while nobody waited; nil: none

	model, family string // that was asked for last, and its class
	vigil         vigil  // of its calls, one after the other
}

// blank is a call of which only the clock runs.
func (d *desk) blank() *call {
	if d == nil || d.next == nil {
		return &call{x: telemetry.Begin("claude")}
	}
	c := d.next
	d.next = nil
	id := c.x.ID
	c.x.Reset("claude")
	c.x.ID = id
	return c
}

// class is the class of a model, which mostly is that of the call before.
func (d *desk) class(model string) string {
	if d == nil {
		return pace.Class(model)
	}
	if d.model != model || d.family == "" {
		d.model, d.family = model, pace.Class(model)
	}
	return d.family
}

// deskKey finds the desk in the context of a connection's requests.
type deskKey struct{}

// desks are those of all connections.
type desks struct{ of sync.Map }

// open gives a connection its desk.
func (ds *desks) open(ctx context.Context, conn net.Conn) context.Context {
	d := &desk{conn: conn}
	ds.of.Store(conn, d)
	return context.WithValue(ctx, deskKey{}, d)
}

// turn is told by net/http, on the connection's own goroutine, when an answer has gone
// out, and when the connection has ended.
func (ds *desks) turn(conn net.Conn, to http.ConnState) {
	switch to {
	case http.StateHijacked:
		ds.of.Delete(conn)
		return
	case http.StateIdle, http.StateClosed:
	default:
		return
	}
	v, ok := ds.of.Load(conn)
	if !ok {
		return
	}
	if to == http.StateClosed {
		ds.of.Delete(conn)
	}
	d := v.(*desk)
	if d.last != nil {
		d.last.conclude()
		d.last.writeDown()
		d.last = nil
	}
	if to == http.StateClosed {
		d.vigil.end(false)
		return
	}
	d.next = d.blank() // what is made now the next call need not wait for
	d.next.x.ID = requestID("")
}

// emit tells of something that is no call.
func (e *engine) emit(name string, level slog.Level, text string, attrs ...slog.Attr) {
	e.log.LogAttrs(context.Background(), level, "claude plane", append(attrs, slog.String("event", name), slog.String("text", text))...)
	e.sink.Emit(telemetry.Event{Time: time.Now(), Part: "claude", Name: name, Level: level, Text: text, Attrs: attrs})
}

// takeOut leaves a key alone that was refused, and tells of it.
func (e *engine) takeOut(k *routes.Access, status int) {
	if k.Refused(status) {
		e.emit("key_refused", slog.LevelWarn, "A key for Claude is refused, and left alone for five minutes.", slog.String("key", k.Name), slog.Int("status", status))
	}
}

// mostUnfit bounds of how many routes it is told that they do not take a call.
const mostUnfit = 100

// unfit tells, once, that a route is no help to calls that ask for something.
func (e *engine) unfit(route, model, lacks string) {
	e.mu.Lock()
	key := [3]string{route, model, lacks}
	told := e.told[key] || len(e.told) >= mostUnfit
	if !told {
		if e.told == nil {
			e.told = map[[3]string]bool{}
		}
		e.told[[3]string{strings.Clone(route), strings.Clone(model), strings.Clone(lacks)}] = true
	}
	e.mu.Unlock()
	if !told {
		e.emit("model_unfit", slog.LevelWarn, "A model that was to answer instead of another can't take what a call asks for, so such calls do not go to it (claude.cannot).",
			slog.String("via", route), slog.String("model", model), slog.String("lacks", lacks))
	}
}

// keyBack tells that a key that was refused is good again.
func (e *engine) keyBack(k *routes.Access) {
	e.emit("key_back", slog.LevelInfo, "A key for Claude that was refused is good again.", slog.String("key", k.Name))
}
