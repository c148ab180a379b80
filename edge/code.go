package edge

import (
	"net/http"

	"mainstay.dev/mainstay/telemetry"
)

// A Code says how a request ended. The set is closed; the same word stands in the
// Mainstay-Code header of answers that are Mainstay's own, in the metric label
// and in the log.
type Code string

// The codes, by the side that broke.
const (
	OK Code = "ok"

	BadRequest    Code = "bad_request"
	TooLarge      Code = "too_large"
	HeaderTooBig  Code = "header_too_large"
	ClientTimeout Code = "client_timeout"
	ClientGone    Code = "client_gone"
	Unauthorized  Code = "unauthorized"
	Limited       Code = "limited"
	Denied        Code = "denied"

	Shed        Code = "shed"
	NoTarget    Code = "no_target"
	HoldFull    Code = "hold_full"
	HoldTimeout Code = "hold_timeout"
	Maintenance Code = "maintenance"
	Stopping    Code = "stopping"
	Internal    Code = "internal"

	AppError          Code = "app_error"
	TargetUnreachable Code = "target_unreachable"
	TargetBroke       Code = "target_broke"
	TargetTimeout     Code = "target_timeout"
	AnswerCut         Code = "answer_cut"
)

// A Meaning explains a code.
type Meaning struct {
	Code   Code
	Status int // of the answer that Mainstay gives; 0: it gives none
	Blame  telemetry.Blame
	Text   string // for the body, the log's reader and the docs
}

// Meanings lists every code, in the order of the docs.
var Meanings = []Meaning{
	{OK, 0, telemetry.BlameNone, "The app answered, and the answer was passed on whole."},
	{BadRequest, http.StatusBadRequest, telemetry.BlameClient, "The request is malformed."},
	{TooLarge, http.StatusRequestEntityTooLarge, telemetry.BlameClient, "The request body is larger than edge.max_body."},
	{HeaderTooBig, http.StatusRequestHeaderFieldsTooLarge, telemetry.BlameClient, "The request header is larger than edge.max_header."},
	{ClientTimeout, http.StatusRequestTimeout, telemetry.BlameClient, "The client fell silent in the middle of its request body."},
	{ClientGone, 499, telemetry.BlameClient, "The client hung up before the answer was complete."},
	{Unauthorized, http.StatusUnauthorized, telemetry.BlameClient, "The bearer token or the API key is not believed, and identity.on_refusal is refuse."},
	{Limited, http.StatusTooManyRequests, telemetry.BlameClient, "The caller has used up a rate limit; Retry-After says when to come again."},
	{Denied, http.StatusForbidden, telemetry.BlameClient, "The caller is on the deny list of limits.deny."},
	{Shed, http.StatusServiceUnavailable, telemetry.BlameMainstay, "More requests came than the app can take, and this one's turn did not come within edge.overload.queue; or too many requests of its caller are being delayed by limits.degrade."},
	{NoTarget, http.StatusServiceUnavailable, telemetry.BlameMainstay, "No copy of the app is ready to serve."},
	{HoldFull, http.StatusServiceUnavailable, telemetry.BlameMainstay, "Traffic is held and edge.hold.requests are waiting already."},
	{HoldTimeout, http.StatusServiceUnavailable, telemetry.BlameMainstay, "Traffic was held for longer than edge.hold.for."},
	{Maintenance, http.StatusServiceUnavailable, telemetry.BlameMainstay, "The app is in maintenance."},
	{Stopping, http.StatusServiceUnavailable, telemetry.BlameMainstay, "Mainstay stopped, and the request was not done within edge.drain."},
	{Internal, http.StatusInternalServerError, telemetry.BlameMainstay, "Mainstay itself failed; this is a bug."},
	{AppError, 0, telemetry.BlameUpstream, "The app answered with a status of 500 or more, which was passed on."},
	{TargetUnreachable, http.StatusBadGateway, telemetry.BlameUpstream, "The app does not accept connections."},
	{TargetBroke, http.StatusBadGateway, telemetry.BlameUpstream, "The app closed the connection before it answered, or its answer was not HTTP."},
	{TargetTimeout, http.StatusGatewayTimeout, telemetry.BlameUpstream, "The app did not answer within edge.timeouts.response, or answered nothing at all for edge.timeouts.attempt and no other copy could take the request."},
	{AnswerCut, 0, telemetry.BlameUpstream, "The app's answer broke off in the middle; the client's connection was broken off too."},
}

var meaning = func() map[Code]Meaning {
	m := make(map[Code]Meaning, len(Meanings))
	for _, x := range Meanings {
		m[x.Code] = x
	}
	return m
}()
