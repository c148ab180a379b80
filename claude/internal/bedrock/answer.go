package bedrock

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/claude/internal/words"
)

// Answer makes of an answer of Bedrock's what the Messages API would have answered. The
// whole of an error is read for that, of which no more than a little is looked at.
func Answer(res *http.Response) {
	h := res.Header
	id := h.Get("X-Amzn-Requestid")
	if h.Get("Request-Id") == "" && id != "" {
		h["Request-Id"] = []string{id}
	}
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	switch {
	case res.StatusCode >= 400:
		fail(res, id)
	case strings.TrimSpace(kind) == "application/vnd.amazon.eventstream":
		res.Body = &events{from: res.Body, id: id}
		res.ContentLength = -1
		delete(h, "Content-Length")
		h["Content-Type"] = []string{"text/event-stream; charset=utf-8"}
	}
}

// fail makes of an error one of the Messages API.
func fail(res *http.Response, id string) {
	const most = 64 << 10
	text, _ := io.ReadAll(io.LimitReader(res.Body, most)) // what of it is there says enough
	_ = res.Body.Close()
	name := res.Header.Get("X-Amzn-Errortype")
	peek.Members(text, func(key, value []byte) {
		if string(key) == "__type" && name == "" {
			name = peek.Text(value)
		}
	})
	name, _, _ = strings.Cut(name, ":")
	name = name[strings.LastIndexByte(name, '#')+1:]
	status, kind := told(name, res.StatusCode)
	message := words.Excerpt(text)
	if name != "" {
		message = strings.TrimSuffix(name+": "+message, ": ")
	} else if message == "" {
		message = http.StatusText(res.StatusCode)
	}
	body := words.Error(kind, message, id)
	res.StatusCode, res.Status, res.ContentLength, res.Body = status, "", int64(len(body)), io.NopCloser(bytes.NewReader(body))
	res.Header["Content-Type"], res.Header["Content-Length"] = []string{"application/json"}, []string{strconv.Itoa(len(body))}
	delete(res.Header, "Content-Encoding")
}

// told is the status and the type with which the Messages API tells what Bedrock calls by
// a name (https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html#API_runtime_InvokeModel_Errors),
// in an answer of that status or, where it begins with a small letter, in a stream.
func told(name string, status int) (as int, kind string) {
	switch strings.ToLower(name) {
	case "throttlingexception", "servicequotaexceededexception":
		return 429, "rate_limit_error"
	case "modelnotreadyexception", "serviceunavailableexception":
		return 529, "overloaded_error" // its 429 is no limit of ours
	case "modeltimeoutexception":
		return 504, "timeout_error"
	case "internalserverexception", "modelerrorexception", "modelstreamerrorexception":
		return 500, "api_error"
	case "validationexception":
		return 400, "invalid_request_error"
	case "accessdeniedexception":
		return 403, "permission_error"
	case "resourcenotfoundexception":
		return 404, "not_found_error"
	case "unrecognizedclientexception", "invalidsignatureexception", "expiredtokenexception", "invalidclienttokenidexception", "signaturedoesnotmatch",
		"missingauthenticationtokenexception", "incompletesignatureexception":
		return 401, "authentication_error"
	}
	return words.For(status)
}
