package claude

import "mainstay.dev/mainstay/telemetry"

// A Code says how a call ended. The set is closed; the same word stands in the
// Mainstay-Code header of an answer that is not ok, in the metric label, in the log
// and in the docs.
type Code string

// The codes, by the side that broke.
const (
	OK              Code = "ok"
	BadRequest      Code = "bad_request"
	TooLarge        Code = "too_large"
	HeadersTooLarge Code = "headers_too_large"
	UploadTimeout   Code = "upload_timeout"
	ClientGone      Code = "client_gone"
	Rejected        Code = "rejected"
	RateLimited     Code = "rate_limited"
	Overloaded      Code = "overloaded"
	UpstreamError   Code = "upstream_error"
	Held            Code = "held"
	Limited         Code = "limited"
	Denied          Code = "denied"
	OverBudget      Code = "over_budget"
	Unreachable     Code = "unreachable"
	UpstreamTimeout Code = "upstream_timeout"
	StreamError     Code = "stream_error"
	UpstreamCut     Code = "upstream_cut"
	UpstreamStalled Code = "upstream_stalled"
	AnswerTooLarge  Code = "answer_too_large"
	AnswersFull     Code = "answers_full"
	Stopping        Code = "stopping"
	Internal        Code = "internal"
)

// A Meaning explains a code.
type Meaning struct {
	Code  Code
	Blame telemetry.Blame
	Text  string // for the log's reader and the docs
}

// Meanings lists every code, in the order of the docs.
var Meanings = []Meaning{
	{OK, telemetry.BlameNone, "Claude answered well, and the client has all of it."},
	{BadRequest, telemetry.BlameClient, "The client's request could not be read."},
	{TooLarge, telemetry.BlameClient, "The client's request is larger than the limit."},
	{HeadersTooLarge, telemetry.BlameClient, "The client's request has more than 64 KiB of headers."},
	{UploadTimeout, telemetry.BlameClient, "The client stopped sending its request."},
	{ClientGone, telemetry.BlameClient, "The client left before it had its answer, or stopped reading it."},
	{Rejected, telemetry.BlameClient, "Claude refused the request as wrong: a 4xx that another try can't mend."},
	{RateLimited, telemetry.BlameUpstream, "Claude still answered 429 to the last try."},
	{Overloaded, telemetry.BlameUpstream, "Claude still answered 529 to the last try."},
	{UpstreamError, telemetry.BlameUpstream, "Claude still answered 408, 409 or 5xx to the last try."},
	{Held, telemetry.BlameUpstream, "Claude was failing for others, and did not come back while the call could wait; it was not sent."},
	{Limited, telemetry.BlameUpstream, "The rate limit of the key left no room while the call could wait, or too many waited already; or the caller whom the app named is over limits.claude, and then it is the client's. It was not sent."},
	{Denied, telemetry.BlameClient, "The caller whom the app named is on the deny list of limits.deny."},
	{OverBudget, telemetry.BlameClient, "The day's calls have cost what claude.spend.daily allows; it was not sent."},
	{Unreachable, telemetry.BlameUpstream, "No try got an answer: no connection, or it broke."},
	{UpstreamTimeout, telemetry.BlameUpstream, "The last try got no answer within the time limit."},
	{StreamError, telemetry.BlameUpstream, "Claude's stream began well and then carried an error."},
	{UpstreamCut, telemetry.BlameUpstream, "Claude's answer broke off after part of it had gone to the client."},
	{UpstreamStalled, telemetry.BlameUpstream, "Claude's answer stopped coming after part of it had gone to the client."},
	{AnswerTooLarge, telemetry.BlameMainstay, "The answer, which Mainstay gathers from a stream, is larger than claude.recovery.max_answer."},
	{AnswersFull, telemetry.BlameMainstay, "The answers that Mainstay gathers or keeps take all of claude.recovery.memory."},
	{Stopping, telemetry.BlameMainstay, "Mainstay stopped before the call had ended."},
	{Internal, telemetry.BlameMainstay, "A bug of ours ended the call."},
}

// blames maps every code to the side that broke.
var blames = Codes()

// Codes returns every code there is with the side it blames.
func Codes() map[Code]telemetry.Blame {
	all := make(map[Code]telemetry.Blame, len(Meanings))
	for _, m := range Meanings {
		all[m.Code] = m.Blame
	}
	return all
}

// A Cause says why one attempt failed. The set is closed; it is the label of the
// attempts metric and stands in the log line of a retry.
type Cause string

const (
	CauseNone        Cause = ""             // it did not fail
	CauseRateLimited Cause = "rate_limited" // 429
	CauseOverloaded  Cause = "overloaded"   // 529
	CauseConflict    Cause = "conflict"     // 409
	CauseStatus      Cause = "status"       // another status that is worth a retry
	CauseRejected    Cause = "rejected"     // a status that is not
	CauseConnect     Cause = "connect"      // no connection
	CauseBroken      Cause = "broken"       // the connection broke before the answer's first byte, or before a JSON answer was whole
	CauseTimeout     Cause = "timeout"      // no answer in time
	CauseCut         Cause = "cut"          // the answer broke off after part of it was relayed
	CauseStalled     Cause = "stalled"      // the answer stopped coming after part of it was relayed
	CauseStream      Cause = "stream_error" // the stream carried an error
	CauseTooLarge    Cause = "too_large"    // the answer is larger than it may be, or than there is memory for
	CauseClient      Cause = "client"       // the client left, or its upload broke
	CauseStopping    Cause = "stopping"     // Mainstay stopped
)

// Saved says what made a call go well that would have failed without Mainstay. The set
// is closed; it stands in the log line (saved_by), on the span and in mainstay claude
// calls. Where several did, the first of this list is told.
type Saved string

const (
	SavedNone      Saved = ""          // nothing had to, or nothing could
	SavedAttach    Saved = "attach"    // an SDK's retry found its first try still running
	SavedRoute     Saved = "route"     // another model or upstream answered
	SavedAggregate Saved = "aggregate" // an answer that does not stream broke midway and was made whole
	SavedResume    Saved = "resume"    // a stream that had begun to be shown was continued
	SavedHold      Saved = "hold"      // it waited until Claude was back
	SavedRetry     Saved = "retry"     // another attempt went well
)
