// Package jsonlog writes the canonical log line: one line for each request, query
// and call, with the same keys in all planes, and one for each event. The logger
// it is given decides the format; Mainstay gives it JSON.
//
// Package app makes the sink; any Go program that uses a plane without the binary
// may do the same.
package jsonlog

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// Which says which exchanges get a line. Events always do.
type Which int32

const (
	All    Which = iota // every exchange
	Errors              // those for which Mainstay or an upstream is to blame
	None                // no exchange
)

// ParseWhich reads all, errors or none.
func ParseWhich(s string) (Which, error) {
	for w, name := range whichNames {
		if s == name {
			return Which(w), nil
		}
	}
	return All, fmt.Errorf("%q is none of all, errors and none", s)
}

var whichNames = [...]string{"all", "errors", "none"}

func (w Which) String() string {
	if w < 0 || int(w) >= len(whichNames) {
		return "unknown"
	}
	return whichNames[w]
}

// The keys of the canonical line. Times are in milliseconds. A key whose value is
// not known or zero is left out, but for took_ms.
const (
	keyPlane     = "plane"
	keyID        = "id"
	keyRoute     = "route"
	keyCode      = "code"
	keyBlame     = "blame"
	keyColor     = "color"
	keyCaller    = "caller"
	keyWorkspace = "workspace"
	keyTier      = "tier"
	keyTook      = "took_ms"
	keyWaited    = "waited_ms"
	keyFirstByte = "first_byte_ms"
	keyBytesIn   = "bytes_in"
	keyBytesOut  = "bytes_out"
	keyAttempts  = "attempts"
	keyCauses    = "causes"
	keyWaits     = "waits_ms"
	keyTraceID   = "trace_id"
	keySpanID    = "span_id"
	keyErr       = "err"

	keyMethod   = "method"
	keyHost     = "host"
	keyPath     = "path"
	keyProto    = "proto"
	keyStatus   = "status"
	keyTarget   = "target"
	keyUpgraded = "upgraded"
	keyStream   = "stream"
	keyCache    = "cache"

	keyDatabase = "database"
	keyUser     = "user"
	keyCommand  = "command"
	keySQLState = "sqlstate"
	keyRows     = "rows"
	keyQueries  = "queries"
	keyFinger   = "fingerprint"
	keyClientMS = "client_ms"

	keyModel      = "model"
	keyInput      = "input_tokens"
	keyCacheRead  = "cache_read_tokens"
	keyCacheWrite = "cache_write_tokens"
	keyOutput     = "output_tokens"
	keyStop       = "stop_reason"
	keyCost       = "cost_usd"
	keyUnpriced   = "unpriced"
	keyUpstreamID = "upstream_id"
	keyVia        = "via"
	keyDegraded   = "degraded"
	keyReplayOf   = "replay_of"
	keyErrorType  = "error_type"
	keySaved      = "saved_by"

	keyPart  = "part"
	keyEvent = "event"
	keyText  = "text"
)

// A Sink writes lines. Its methods may be called from many goroutines at once,
// as the logger's handler may. The handler must have used up a record when its
// Handle returns: the strings of an exchange are borrowed until then.
type Sink struct {
	handler slog.Handler
	direct  *Handler // the same, or nil
	which   atomic.Int32
	scratch sync.Pool // *[]slog.Attr
}

// New makes a sink that writes to log.
func New(log *slog.Logger, which Which) *Sink {
	s := &Sink{handler: log.Handler()}
	s.direct, _ = s.handler.(*Handler)
	s.scratch.New = func() any {
		attrs := make([]slog.Attr, 0, 40)
		return &attrs
	}
	s.Choose(which)
	return s
}

// Choose changes which exchanges get a line, from now on.
func (s *Sink) Choose(which Which) { s.which.Store(int32(which)) }

// Record writes the line of x: at level ERROR if Mainstay or an upstream is to
// blame, else at INFO. An error of the handler is lost, as it is with any logger.
func (s *Sink) Record(x *telemetry.Exchange) {
	level, failed := slog.LevelInfo, x.Blame == telemetry.BlameMainstay || x.Blame == telemetry.BlameUpstream
	if failed {
		level = slog.LevelError
	}
	which := Which(s.which.Load())
	ctx := context.Background()
	if which == None || which == Errors && !failed || !s.handler.Enabled(ctx, level) {
		return
	}
	if s.direct != nil {
		s.direct.record(x, level)
		return
	}
	scratch := s.scratch.Get().(*[]slog.Attr)
	line := line{attrs: (*scratch)[:0]}
	line.exchange(x)
	r := slog.NewRecord(x.Start.Add(x.Took), level, message(x.Plane), 0)
	r.AddAttrs(line.attrs...)
	_ = s.handler.Handle(ctx, r)
	clear(line.attrs) // no string of x outlives this call in the pool
	*scratch = line.attrs
	s.scratch.Put(scratch)
}

// Emit writes e's line.
func (s *Sink) Emit(e telemetry.Event) {
	ctx := context.Background()
	if !s.handler.Enabled(ctx, e.Level) {
		return
	}
	_ = s.handler.Handle(ctx, record(&e))
}

// record is e's line, to be.
func record(e *telemetry.Event) slog.Record {
	at := e.Time
	if at.IsZero() {
		at = time.Now()
	}
	r := slog.NewRecord(at, e.Level, "event", 0)
	r.AddAttrs(slog.String(keyPart, e.Part), slog.String(keyEvent, e.Name))
	if e.Color != "" {
		r.AddAttrs(slog.String(keyColor, e.Color))
	}
	if e.Text != "" {
		r.AddAttrs(slog.String(keyText, e.Text))
	}
	r.AddAttrs(e.Attrs...)
	return r
}

// message is the constant message of a plane's lines.
func message(plane string) string {
	switch plane {
	case "edge":
		return "request"
	case "pooler":
		return "query"
	case "claude":
		return "call"
	}
	return "exchange"
}

// line collects the attributes of one line, or writes them.
type line struct {
	attrs []slog.Attr
	buf   []byte // its beginning, as JSON
	json  bool   // it is written
}

func (l *line) exchange(x *telemetry.Exchange) {
	l.text(keyPlane, x.Plane)
	l.text(keyID, x.ID)
	l.text(keyRoute, x.Route)
	l.http(&x.HTTP)
	l.db(&x.DB)
	l.genAI(&x.GenAI)
	l.text(keyCode, x.Code)
	if x.Blame != telemetry.BlameNone {
		l.text(keyBlame, x.Blame.String())
	}
	l.text(keyColor, x.Color)
	l.text(keyCaller, x.Caller)
	l.text(keyUser, x.User) // the pooler, whose user is the database's, has none
	l.text(keyWorkspace, x.Workspace)
	l.text(keyTier, x.Tier)
	l.duration(keyTook, x.Took)
	l.time(keyWaited, x.Waited)
	l.time(keyFirstByte, x.FirstByte)
	l.number(keyBytesIn, x.BytesIn)
	l.number(keyBytesOut, x.BytesOut)
	l.attempts(x)
	l.trace(&x.Trace)
	if x.Err != nil {
		l.text(keyErr, x.Err.Error())
	}
}

func (l *line) http(h *telemetry.HTTP) {
	l.text(keyMethod, h.Method)
	l.text(keyHost, h.Host)
	l.text(keyPath, h.Path)
	l.text(keyProto, h.Proto)
	l.number(keyStatus, int64(h.Status))
	l.text(keyTarget, h.Target)
	l.text(keyUpgraded, h.Upgraded)
	l.flag(keyStream, h.Stream)
	l.text(keyCache, h.Cache)
}

func (l *line) db(d *telemetry.DB) {
	l.text(keyDatabase, d.Database)
	l.text(keyUser, d.User)
	l.text(keyCommand, d.Command)
	l.text(keySQLState, d.SQLState)
	l.number(keyRows, d.Rows)
	l.number(keyQueries, int64(d.Queries))
	l.text(keyFinger, d.Fingerprint)
	l.time(keyClientMS, d.Client)
}

func (l *line) genAI(g *telemetry.GenAI) {
	l.text(keyModel, g.Model)
	l.number(keyInput, g.InputTokens)
	l.number(keyCacheRead, g.CacheReadTokens)
	l.number(keyCacheWrite, g.CacheWriteTokens)
	l.number(keyOutput, g.OutputTokens)
	l.text(keyStop, g.StopReason)
	if g.CostNanoUSD != 0 {
		l.float(keyCost, float64(g.CostNanoUSD)/1e9)
	}
	l.flag(keyUnpriced, g.Unpriced)
	l.text(keyVia, g.Via)
	l.text(keyDegraded, g.Degraded)
	l.text(keyReplayOf, g.ReplayOf)
	l.text(keyUpstreamID, g.UpstreamID)
	l.text(keyErrorType, g.ErrorType)
	l.text(keySaved, g.Saved)
}

// attempts tells how many tries there were, and of more than one, why those that
// failed did ("overloaded,reset") and how long each of them had waited ("0,251,1032").
func (l *line) attempts(x *telemetry.Exchange) {
	l.number(keyAttempts, int64(x.Tries))
	causes, waited := "", false
	for i := range x.Attempts {
		switch cause := x.Attempts[i].Cause; {
		case cause == "":
		case causes == "":
			causes = cause
		default:
			causes += "," + cause
		}
	}
	l.text(keyCauses, causes)
	for i := range x.Attempts {
		waited = waited || x.Attempts[i].Waited > 0
	}
	if !waited || len(x.Attempts) < 2 {
		return
	}
	var waits []byte
	for i := range x.Attempts {
		if i > 0 {
			waits = append(waits, ',')
		}
		waits = strconv.AppendInt(waits, x.Attempts[i].Waited.Milliseconds(), 10)
	}
	l.text(keyWaits, string(waits))
}

// trace writes both ids from one string.
func (l *line) trace(t *telemetry.Trace) {
	if t.TraceID == [16]byte{} {
		return
	}
	var b [48]byte
	hex.Encode(b[:32], t.TraceID[:])
	hex.Encode(b[32:], t.SpanID[:])
	if l.json {
		l.key(keyTraceID)
		l.buf = append(append(append(l.buf, '"'), b[:32]...), '"')
		l.key(keySpanID)
		l.buf = append(append(append(l.buf, '"'), b[32:]...), '"')
		return
	}
	ids := string(b[:])
	l.attrs = append(l.attrs, slog.String(keyTraceID, ids[:32]), slog.String(keySpanID, ids[32:]))
}

func (l *line) text(key, v string) {
	switch {
	case v == "":
	case l.json:
		l.key(key)
		l.buf = appendString(l.buf, v)
	default:
		l.attrs = append(l.attrs, slog.String(key, v))
	}
}

func (l *line) number(key string, v int64) {
	switch {
	case v == 0:
	case l.json:
		l.key(key)
		l.buf = strconv.AppendInt(l.buf, v, 10)
	default:
		l.attrs = append(l.attrs, slog.Int64(key, v))
	}
}

func (l *line) flag(key string, v bool) {
	switch {
	case !v:
	case l.json:
		l.key(key)
		l.buf = append(l.buf, "true"...)
	default:
		l.attrs = append(l.attrs, slog.Bool(key, true))
	}
}

func (l *line) float(key string, v float64) {
	if l.json {
		l.key(key)
		l.buf = appendFloat(l.buf, v)
		return
	}
	l.attrs = append(l.attrs, slog.Float64(key, v))
}

func (l *line) time(key string, d time.Duration) {
	if d != 0 {
		l.duration(key, d)
	}
}

// duration writes a time that may be zero.
func (l *line) duration(key string, d time.Duration) {
	if l.json {
		l.key(key)
		l.buf = appendMilliseconds(l.buf, d)
		return
	}
	l.attrs = append(l.attrs, slog.Float64(key, milliseconds(d)))
}

// milliseconds keeps microseconds, which is as fine as anybody reads.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
