package claude

import "mainstay.dev/mainstay/telemetry"

// A Code says how a call ended. The set is closed; the same word stands in the
// Mainstay-Code header of an answer that is not ok, in the metric label, in the log
// and in the docs.
type Code string

const (
	OK              Code = "ok"               // Claude answered well, and the client has all of it.
	BadRequest      Code = "bad_request"      // The client's request could not be read.
	TooLarge        Code = "too_large"        // The client's request is larger than the limit.
	UploadTimeout   Code = "upload_timeout"   // The client stopped sending its request.
	ClientGone      Code = "client_gone"      // The client left before it had its answer, or stopped reading it.
	Rejected        Code = "rejected"         // Claude refused the request as wrong: a 4xx that another try can't mend.
	RateLimited     Code = "rate_limited"     // Claude still answered 429 to the last try.
	Overloaded      Code = "overloaded"       // Claude still answered 529 to the last try.
	UpstreamError   Code = "upstream_error"   // Claude still answered 408, 409 or 5xx to the last try.
	Unreachable     Code = "unreachable"      // No try got an answer: no connection, or it broke.
	UpstreamTimeout Code = "upstream_timeout" // The last try got no answer within the time limit.
	StreamError     Code = "stream_error"     // Claude's stream began well and then carried an error.
	UpstreamCut     Code = "upstream_cut"     // Claude's answer broke off after part of it had gone to the client.
	UpstreamStalled Code = "upstream_stalled" // Claude's answer stopped coming after part of it had gone to the client.
	Stopping        Code = "stopping"         // Mainstay stopped before the call had ended.
	Internal        Code = "internal"         // A bug of ours ended the call.
)

// blames maps every code to the side that broke.
var blames = map[Code]telemetry.Blame{
	OK:              telemetry.BlameNone,
	BadRequest:      telemetry.BlameClient,
	TooLarge:        telemetry.BlameClient,
	UploadTimeout:   telemetry.BlameClient,
	ClientGone:      telemetry.BlameClient,
	Rejected:        telemetry.BlameClient,
	RateLimited:     telemetry.BlameUpstream,
	Overloaded:      telemetry.BlameUpstream,
	UpstreamError:   telemetry.BlameUpstream,
	Unreachable:     telemetry.BlameUpstream,
	UpstreamTimeout: telemetry.BlameUpstream,
	StreamError:     telemetry.BlameUpstream,
	UpstreamCut:     telemetry.BlameUpstream,
	UpstreamStalled: telemetry.BlameUpstream,
	Stopping:        telemetry.BlameMainstay,
	Internal:        telemetry.BlameMainstay,
}

// Codes returns every code there is with the side it blames.
func Codes() map[Code]telemetry.Blame {
	all := make(map[Code]telemetry.Blame, len(blames))
	for c, b := range blames {
		all[c] = b
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
	CauseClient      Cause = "client"       // the client left, or its upload broke
	CauseStopping    Cause = "stopping"     // Mainstay stopped
)
