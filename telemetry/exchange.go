package telemetry

import (
	"slices"
	"sync"
	"time"
)

// Blame names the side that broke an exchange. Each plane's closed set of codes
// maps every code to one of these; error rates count Mainstay and Upstream.
type Blame uint8

const (
	BlameNone     Blame = iota // it went well
	BlameClient                // the caller's doing: a bad request, a limit, a hang-up
	BlameMainstay              // ours: no target, no place in the queue, a bug
	BlameUpstream              // the app, PostgreSQL or Claude
)

func (b Blame) String() string {
	switch b {
	case BlameClient:
		return "client"
	case BlameMainstay:
		return "mainstay"
	case BlameUpstream:
		return "upstream"
	}
	return "none"
}

// ColorUnknown is the color of an exchange whose color nobody told.
const ColorUnknown = "unknown"

// An Exchange is everything worth knowing about one request, query or call. A
// plane begins exactly one for each on the first line of serve.go, its steps fill
// it, and record.go gives it to the sink once, whatever the outcome.
//
// It belongs to one goroutine at a time. Strings may point into buffers that are
// reused when Record returns.
type Exchange struct {
	Plane  string // "edge", "pooler" or "claude"
	ID     string // request id: in the reply, the log and the span
	Route  string // low cardinality: an app, a database, an API path template
	Color  string // the color that served (edge) or that asked (pooler, claude)
	Caller string // who asked: client address, database user; never a secret
	// User, Workspace and Tier of whoever asked, where something vouches for them.
	User, Workspace, Tier string
	Code                  string // the plane's closed set
	Blame                 Blame
	Err                   error // what broke, for the log line; never holds a secret

	Start     time.Time
	Waited    time.Duration // in queues of ours, before an upstream was taken
	FirstByte time.Duration // from Start to the first byte from the upstream; 0: none came
	Took      time.Duration // the whole life

	BytesIn  int64 // body or payload from the client
	BytesOut int64 // body or payload to the client

	Trace Trace

	HTTP  HTTP
	DB    DB
	GenAI GenAI

	// Attempts are the tries at an upstream, oldest first; the first
	// MaxAttempts are kept, Tries counts all.
	Attempts []Attempt
	Tries    int

	attempts *[MaxAttempts]Attempt // what Attempts is part of; kept from one exchange to the next
}

// MaxAttempts bounds Exchange.Attempts.
const MaxAttempts = 16

// HTTP is what the edge and the Claude plane know of the request.
type HTTP struct {
	Method string
	Scheme string // of the request as the client made it: "http" or "https"; empty if not known
	Host   string
	Path   string // without the query, which may hold secrets
	Proto  string // "HTTP/1.1", "HTTP/2.0"
	Status int    // as sent to the client; 0 if nothing was
	Target string // address of the upstream that answered
	// Upgraded is the protocol a 101 led to ("websocket"); the exchange then
	// lasts as long as the tunnel and is kept out of latency figures.
	Upgraded string
	Stream   bool // an event stream: its length is no latency
	// Cache says that the answer is one that was kept: "stale" if it took the place of
	// a refusal or an error, which Code names; empty: it is the app's, or a refusal.
	Cache string
}

// DB is what the pooler knows of a query.
type DB struct {
	Database string
	User     string
	Command  string // from CommandComplete: SELECT, INSERT, COPY …
	SQLState string // of the error, if there was one
	Rows     int64
	Queries  int // queries in this exchange (a pipeline or multi-statement counts each)

	Fingerprint string        // of the text, without its literals
	Text        string        // that text, never with a literal
	Client      time.Duration // of Took, how long the client let us wait: to take the answer, or between the queries of a transaction
}

// GenAI is what the Claude plane knows of a call.
type GenAI struct {
	Model            string // that answered; until one has, the one that was asked
	Asked            string // that was asked, as far as the plane has read that
	AnswerID         string // of the message
	MaxTokens        int64  // that the request allows; 0: it does not say
	Temperature      string // as the request writes the number; empty: it does not say
	TopP, TopK       string // likewise
	Stream           bool
	InputTokens      int64 // uncached
	CacheReadTokens  int64
	CacheWriteTokens int64
	OutputTokens     int64
	StopReason       string
	UpstreamID       string // Anthropic's request-id
	Via              string // which of the configured routes and keys served it: main/a; empty: none are
	Degraded         string // what it was made to be content with: claude-haiku-4-5, max_tokens 1024; empty: nothing
	ErrorType        string // "overloaded_error" …, also when it came inside a 200 stream
	CostNanoUSD      int64  // what it has cost, in billionths of a dollar
	Unpriced         bool   // it has cost something, but the model's price is not known
	ReplayOf         string // the id of the call that it was sent again of; empty: it is no replay
	Saved            string // what made it go well where it would have failed, from the plane's closed set; empty: nothing had to
	// Shares are, by model, what an exchange has used and cost that pays for the work of
	// others, as the results of a batch do: the figures above are their sums. Nil: all is
	// Model's, and its own.
	Shares []Share
}

// MaxShares bounds GenAI.Shares; the last of so many stands for all further models.
const MaxShares = 16

// A Share is what one model's work has used and cost.
type Share struct {
	Model                                                        string
	InputTokens, CacheReadTokens, CacheWriteTokens, OutputTokens int64
	CostNanoUSD                                                  int64
	Unpriced                                                     int // messages whose model's price is not known
}

// An Attempt is one try at an upstream; it becomes a child span.
type Attempt struct {
	Start  time.Time
	Took   time.Duration
	Waited time.Duration // backoff before it
	Target string
	Status int    // HTTP status, 0 when none came
	Cause  string // why it failed, from a closed set; empty if it did not
	// UpstreamID is the id that the upstream gave it: Anthropic's request-id.
	UpstreamID string
}

var exchanges = sync.Pool{New: func() any { return new(Exchange) }}

// Begin takes an exchange from the pool and starts its clock.
func Begin(plane string) *Exchange {
	x := exchanges.Get().(*Exchange)
	x.Reset(plane)
	return x
}

// Reset clears x and starts its clock anew, for a plane that keeps one exchange
// for a session instead of taking each from the pool.
func (x *Exchange) Reset(plane string) {
	clear(x.Attempts)
	*x = Exchange{Plane: plane, Color: ColorUnknown, Start: time.Now(), attempts: x.attempts}
}

// Again is Reset for a plane that fills none of HTTP, GenAI and the attempts: they are
// not cleared.
func (x *Exchange) Again(plane string, now time.Time) {
	x.Plane, x.ID, x.Route, x.Color, x.Caller = plane, "", "", ColorUnknown, ""
	x.User, x.Workspace, x.Tier = "", "", ""
	x.Code, x.Blame, x.Err = "", BlameNone, nil
	x.Start, x.Waited, x.FirstByte, x.Took = now, 0, 0, 0
	x.BytesIn, x.BytesOut = 0, 0
	x.Trace, x.DB = Trace{}, DB{}
}

// Try notes an attempt.
func (x *Exchange) Try(a Attempt) {
	if x.attempts == nil {
		x.attempts = new([MaxAttempts]Attempt)
	}
	if x.Tries < MaxAttempts {
		x.attempts[x.Tries] = a
		x.Attempts = x.attempts[:x.Tries+1]
	}
	x.Tries++
}

// Finish stops the clock and gives x to the sink. x may be Reset afterwards.
func (x *Exchange) Finish(s Sink) {
	x.Took = time.Since(x.Start)
	s.Record(x)
}

// End finishes x and returns it to the pool; the caller must not touch it again.
func (x *Exchange) End(s Sink) {
	x.Finish(s)
	x.Err = nil
	exchanges.Put(x)
}

// Lasting reports whether x was a tunnel or an event stream: it lasts as long as
// its ends like, so its length is kept out of latency figures.
func (x *Exchange) Lasting() bool { return x.HTTP.Upgraded != "" || x.HTTP.Stream }

// Clone returns a copy that stays valid after Record has returned: it shares no
// memory with x but Err, which nobody writes to.
func (x *Exchange) Clone() *Exchange {
	c := *x
	c.attempts = nil
	if len(x.Attempts) > 0 {
		c.attempts = new(*x.attempts)
		c.Attempts = c.attempts[:len(x.Attempts)]
	}
	size := 0
	c.GenAI.Shares = slices.Clone(x.GenAI.Shares)
	c.eachString(func(s *string) { size += len(*s) })
	text := make([]byte, 0, size)
	c.eachString(func(s *string) { text = append(text, *s...) })
	all := string(text)
	c.eachString(func(s *string) { *s, all = all[:len(*s)], all[len(*s):] })
	return &c
}

// eachString visits every string of x, always in the same order.
func (x *Exchange) eachString(visit func(*string)) {
	for _, s := range [...]*string{
		&x.Plane, &x.ID, &x.Route, &x.Color, &x.Caller, &x.User, &x.Workspace, &x.Tier, &x.Code, &x.Trace.State,
		&x.HTTP.Method, &x.HTTP.Scheme, &x.HTTP.Host, &x.HTTP.Path, &x.HTTP.Proto, &x.HTTP.Target, &x.HTTP.Upgraded, &x.HTTP.Cache,
		&x.DB.Database, &x.DB.User, &x.DB.Command, &x.DB.SQLState, &x.DB.Fingerprint, &x.DB.Text,
		&x.GenAI.Model, &x.GenAI.Asked, &x.GenAI.AnswerID, &x.GenAI.Temperature, &x.GenAI.TopP, &x.GenAI.TopK, &x.GenAI.StopReason, &x.GenAI.UpstreamID, &x.GenAI.ErrorType, &x.GenAI.Saved, &x.GenAI.ReplayOf, &x.GenAI.Via, &x.GenAI.Degraded,
	} {
		visit(s)
	}
	for i := range x.GenAI.Shares {
		visit(&x.GenAI.Shares[i].Model)
	}
	for i := range x.Attempts {
		visit(&x.Attempts[i].Target)
		visit(&x.Attempts[i].Cause)
		visit(&x.Attempts[i].UpstreamID)
	}
}
