package claudetest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// AWS says who is let in by [Server.Bedrock]: by an API key, or by requests that are
// signed for a region.
type AWS struct {
	Bearer              string
	ID, Secret, Session string
	Region              string
}

// bedrockPath is where Bedrock is asked for what a model says.
var bedrockPath = regexp.MustCompile(`^/model/([^/]+)/(invoke|invoke-with-response-stream)$`)

// Bedrock is the server as Amazon Bedrock serves the same models
// (https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html):
// it takes what that takes, and nothing else, answers in its frames, and fails as the
// server does, by the same script and schedule, in its words. in gives who is let in now.
func (s *Server) Bedrock(in func() AWS) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRead))
		if err != nil {
			return
		}
		at := bedrockPath.FindStringSubmatch(r.URL.EscapedPath())
		var ask map[string]json.RawMessage
		var betas []string
		wrong := in().refuses(r, body)
		switch {
		case at == nil || r.Method != http.MethodPost:
			amazon(w, 404, "UnknownOperationException", "")
		case wrong != "":
			amazon(w, 403, wrong, "The request is not signed as it should be.")
		case r.URL.RawQuery != "" || r.Header.Get("X-Api-Key") != "" || r.Header.Get("Anthropic-Version") != "" || r.Header.Get("Anthropic-Beta") != "":
			amazon(w, 400, "ValidationException", "Unknown parameter.")
		case r.Header.Get("Content-Type") != "application/json" || json.Unmarshal(body, &ask) != nil:
			amazon(w, 400, "ValidationException", "Malformed input request.")
		case string(ask["anthropic_version"]) != `"bedrock-2023-05-31"` || ask["model"] != nil || ask["stream"] != nil:
			amazon(w, 400, "ValidationException", "Malformed input request: #: extraneous key [model] or [stream] is not permitted, or anthropic_version is missing.")
		case ask["anthropic_beta"] != nil && json.Unmarshal(ask["anthropic_beta"], &betas) != nil:
			amazon(w, 400, "ValidationException", "anthropic_beta must be a list.")
		default:
			delete(ask, "anthropic_version")
			delete(ask, "anthropic_beta")
			model, _ := url.PathUnescape(at[1])
			if i := strings.LastIndex(model, "claude-"); i >= 0 { // us.anthropic.claude-…-v1:0
				model = model[i:]
			}
			model, _, _ = strings.Cut(model, ":")
			ask["model"], _ = json.Marshal(strings.TrimSuffix(model, "-v1"))
			ask["stream"], _ = json.Marshal(at[2] != "invoke")
			text, err := json.Marshal(ask)
			if err != nil {
				panic("claudetest: JSON that was read can't be written: " + err.Error())
			}
			as := r.Clone(r.Context())
			as.URL.Path, as.URL.RawPath, as.RequestURI = "/v1/messages", "", "/v1/messages"
			as.Body, as.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
			as.Header.Del("Authorization")
			as.Header.Del("Accept-Encoding")
			as.Header.Set("X-Api-Key", "bedrock")
			as.Header.Set("Anthropic-Version", before)
			if betas != nil {
				as.Header.Set("Anthropic-Beta", strings.Join(betas, ","))
			}
			out := &framed{ResponseWriter: w}
			s.ServeHTTP(out, as)
			out.end()
		}
	})
}

// amazon is an error in Amazon's shape.
func amazon(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Amzn-Errortype", kind+":http://internal.amazon.com/coral/com.amazon.bedrock/")
	w.Header().Set("X-Amzn-Requestid", "0f5d1c6e-0000-4000-8000-000000000000")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"message":%q}`, message)
}

// refuses tells why a request is not let in; empty: it is. Signatures are worked out
// anew, by the words of
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html.
func (a AWS) refuses(r *http.Request, body []byte) string {
	auth := r.Header.Get("Authorization")
	if a.Bearer != "" {
		if auth != "Bearer "+a.Bearer {
			return "AccessDeniedException"
		}
		return ""
	}
	m := signature.FindStringSubmatch(auth)
	if m == nil {
		return "MissingAuthenticationTokenException"
	}
	id, day, region, names, told := m[1], m[2], m[3], strings.Split(m[4], ";"), m[5]
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", date)
	switch age := time.Since(at); {
	case id != a.ID:
		return "UnrecognizedClientException"
	case a.Session != r.Header.Get("X-Amz-Security-Token"):
		return "ExpiredTokenException"
	case err != nil || !strings.HasPrefix(date, day) || age > 5*time.Minute || age < -5*time.Minute || region != a.Region:
		return "InvalidSignatureException"
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(names, name) {
			return "InvalidSignatureException"
		}
	}
	if !slices.Contains(names, "host") || !slices.Contains(names, "x-amz-date") || !slices.IsSorted(names) {
		return "IncompleteSignatureException"
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	lines := []string{r.Method, twice(path), r.URL.RawQuery}
	for _, name := range names {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		lines = append(lines, name+":"+strings.TrimSpace(value))
	}
	sum := func(p []byte) string { h := sha256.Sum256(p); return hex.EncodeToString(h[:]) }
	lines = append(lines, "", m[4], sum(body))
	key := []byte("AWS4" + a.Secret)
	for _, part := range []string{day, region, "bedrock", "aws4_request", "AWS4-HMAC-SHA256\n" + date + "\n" + day + "/" + region + "/bedrock/aws4_request\n" + sum([]byte(strings.Join(lines, "\n")))} {
		h := hmac.New(sha256.New, key)
		_, _ = io.WriteString(h, part) // can't fail
		key = h.Sum(nil)
	}
	if hex.EncodeToString(key) != told {
		return "InvalidSignatureException"
	}
	return ""
}

var signature = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/bedrock/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})$`)

// twice is a path as the service but S3 want it in what is signed: encoded once more.
func twice(path string) string { return strings.ReplaceAll(path, "%", "%25") }

// framed makes of the API's answers Amazon's.
type framed struct {
	http.ResponseWriter
	head   bool
	status int
	stream bool
	text   []byte // of an error, or an event that is not all there
}

// Unwrap is for http.ResponseController.
func (f *framed) Unwrap() http.ResponseWriter { return f.ResponseWriter }

func (f *framed) WriteHeader(status int) {
	h := f.Header()
	f.head, f.status = true, status
	h.Set("X-Amzn-Requestid", h.Get("Request-Id"))
	for name := range h {
		if strings.HasPrefix(name, "Anthropic-") || name == "Request-Id" || name == "Cf-Cache-Status" || name == "X-Should-Retry" {
			h.Del(name)
		}
	}
	f.stream = strings.HasPrefix(h.Get("Content-Type"), "text/event-stream")
	if f.stream {
		h.Set("Content-Type", "application/vnd.amazon.eventstream")
		h.Set("X-Amzn-Bedrock-Content-Type", "application/json")
	}
	if !f.fails() {
		f.ResponseWriter.WriteHeader(status)
	}
}

// fails reports whether the answer is an error in the API's words.
func (f *framed) fails() bool {
	return f.status >= 400 && f.Header().Get("Content-Type") == "application/json"
}

func (f *framed) Write(p []byte) (int, error) {
	if !f.head {
		f.WriteHeader(http.StatusOK)
	}
	if !f.stream && !f.fails() {
		return f.ResponseWriter.Write(p)
	}
	f.text = append(f.text, p...)
	for f.stream {
		event, rest, whole := bytes.Cut(f.text, []byte("\n\n"))
		if !whole {
			break
		}
		_, data, _ := bytes.Cut(event, []byte("data: "))
		if _, err := f.ResponseWriter.Write(frameOf(data)); err != nil {
			return 0, err
		}
		f.text = bytes.Clone(rest)
	}
	return len(p), nil
}

type apiError struct {
	Type  string
	Error struct{ Type, Message string }
}

// end tells an error, now that all of it is there.
func (f *framed) end() {
	var said apiError
	if !f.fails() || json.Unmarshal(f.text, &said) != nil {
		return
	}
	f.Header().Del("Content-Length")
	kind := map[int]string{400: "ValidationException", 403: "AccessDeniedException", 404: "ResourceNotFoundException", 429: "ThrottlingException", 504: "ModelTimeoutException", 529: "ServiceUnavailableException"}[f.status]
	status := f.status
	switch {
	case kind == "":
		kind, status = "InternalServerException", 500
	case status == 504:
		status = 408
	case status == 529:
		status = 503
	}
	amazon(f.ResponseWriter, status, kind, said.Error.Message)
}

// frameOf is an event in Amazon's frame.
func frameOf(data []byte) []byte {
	var said apiError
	if json.Unmarshal(data, &said) == nil && said.Type == "error" {
		kind := map[string]string{"rate_limit_error": "throttlingException", "overloaded_error": "serviceUnavailableException", "timeout_error": "modelTimeoutException"}[said.Error.Type]
		if kind == "" {
			kind = "internalServerException"
		}
		text, _ := json.Marshal(map[string]string{"message": said.Error.Message}) // a map of strings is JSON
		return Frame([][2]string{{":exception-type", kind}, {":content-type", "application/json"}, {":message-type", "exception"}}, text)
	}
	if string(data) == `{"type":"message_stop"}` {
		data = []byte(`{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":1,"outputTokenCount":1,"invocationLatency":1,"firstByteLatency":1}}`)
	}
	text := `{"bytes":"` + base64.StdEncoding.EncodeToString(data) + `","p":"abcdefghijkl"}`
	return Frame([][2]string{{":event-type", "chunk"}, {":content-type", "application/json"}, {":message-type", "event"}}, []byte(text))
}

// Frame is a message of an AWS event stream with headers of text
// (https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html).
func Frame(headers [][2]string, payload []byte) []byte {
	var h []byte
	for _, pair := range headers {
		h = append(append(h, byte(len(pair[0]))), pair[0]...)
		h = append(h, 7)
		h = append(binary.BigEndian.AppendUint16(h, uint16(len(pair[1]))), pair[1]...)
	}
	out := binary.BigEndian.AppendUint32(nil, uint32(16+len(h)+len(payload)))
	out = binary.BigEndian.AppendUint32(out, uint32(len(h)))
	out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out))
	out = append(append(out, h...), payload...)
	return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out))
}
