package bedrock

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream/eventstreamapi"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// What we sign is what AWS's own signer signs.
func TestSignaturesAreThoseOfAWS(t *testing.T) {
	now := time.Date(2026, 11, 28, 3, 4, 5, 0, time.UTC)
	for _, base := range []string{"https://bedrock-runtime.us-east-1.amazonaws.com", "http://127.0.0.1:8080/below/a b/"} {
		for _, model := range []string{"anthropic.claude-haiku-4-5-20251001-v1:0", "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0"} {
			for _, session := range []string{"", "FwoGZXIvYXdzEXAMPLE//token=="} {
				for _, body := range []string{"", `{"anthropic_version":"bedrock-2023-05-31"}`, "ü\x00"} {
					at, err := url.Parse(base)
					if err != nil {
						t.Fatal(err)
					}
					u := URL(at, model, session != "")
					ours := request(t, u)
					Sign(ours, []byte(body), Credentials{"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", session}, "us-east-1", now)
					theirs := request(t, u)
					theirs.ContentLength = -1 // or it would be signed too
					sum := digest([]byte(body))
					creds := aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: session}
					if err := v4.NewSigner().SignHTTP(context.Background(), creds, theirs, sum, "bedrock", "us-east-1", now); err != nil {
						t.Fatal(err)
					}
					if got, want := ours.Header.Get("Authorization"), theirs.Header.Get("Authorization"); got != want {
						t.Errorf("%s:\n%s\n%s", u, got, want)
					}
				}
			}
		}
	}
}

func request(t *testing.T, u *url.URL) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.URL, r.Host = u, u.Host
	r.Header.Set("Content-Type", "application/json")
	return r
}

func TestAModelStandsInThePath(t *testing.T) {
	at, _ := url.Parse("https://bedrock-runtime.eu-west-1.amazonaws.com/")
	u := URL(at, "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.x-v1:0", true)
	if got := u.String(); got != "https://bedrock-runtime.eu-west-1.amazonaws.com/model/arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Ainference-profile%2Feu.anthropic.x-v1%3A0/invoke-with-response-stream" {
		t.Error(got)
	}
	for name, is := range map[string]bool{
		"anthropic.claude-haiku-4-5-20251001-v1:0": true, "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc123": true, "claude-sonnet-5": true,
		"": false, "..": false, "a/../b": false, "a//b": false, "/a": false, "a/": false, "a?b": false, "a%2Fb": false, "a b": false, strings.Repeat("a", 3000): false,
	} {
		if IsModel(name) != is {
			t.Errorf("%q", name)
		}
	}
	for host, region := range map[string]string{
		"bedrock-runtime.us-east-1.amazonaws.com": "us-east-1", "bedrock-runtime-fips.us-gov-west-1.amazonaws.com": "us-gov-west-1",
		"vpce-0a1b.bedrock-runtime.ap-southeast-2.vpce.amazonaws.com": "ap-southeast-2", "bedrock-runtime.cn-north-1.amazonaws.com.cn": "cn-north-1", "proxy.example.com": "", "bedrock.us-east-1.amazonaws.com": "",
	} {
		if got := Region(host); got != region {
			t.Errorf("%s: %q", host, got)
		}
	}
}

func TestCredentialsAreReadAsAWSWritesThem(t *testing.T) {
	for text, want := range map[string]Credentials{
		"AKID:sec/ret+1":         {"AKID", "sec/ret+1", ""},
		"AKID:secret:tok/en==\n": {"AKID", "secret", "tok/en=="},
		`{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "S", "SessionToken": "T", "Expiration": "2026-11-28T00:00:00Z"}`: {"A", "S", "T"},
		`{"Code": "Success", "AccessKeyId": "A", "SecretAccessKey": "S", "Token": "T"}`:                                         {"A", "S", "T"},
		"": {}, "AKID": {}, ":secret": {}, "AKID:": {}, "AKID:a b": {}, "{": {}, `{"AccessKeyId": "A"}`: {}, "AKID/x:secret": {}, "ä:b": {},
	} {
		c, err := Parse(text)
		if c != want || (err == nil) != (want.ID != "") {
			t.Errorf("%q: %+v %v", text, c, err)
		}
		if err != nil && text != "" && text != "{" && strings.Contains(err.Error(), text) {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}

func TestABodyIsBedrocks(t *testing.T) {
	const asked = `{"model":"m","stream":true,"max_tokens":1,"anthropic_version":"x","messages":[{"model":"inner"}]}`
	for _, c := range []struct {
		request string
		betas   []string
		want    string
	}{
		{asked, nil, `{"anthropic_version":"bedrock-2023-05-31","max_tokens":1,"messages":[{"model":"inner"}]}`},
		{asked, []string{"a-1, b-2", "c"}, `{"anthropic_version":"bedrock-2023-05-31","max_tokens":1,"messages":[{"model":"inner"}],"anthropic_beta":["a-1","b-2","c"]}`},
		{`{"anthropic_beta":["own"]}`, nil, `{"anthropic_version":"bedrock-2023-05-31","anthropic_beta":["own"]}`},
		{`{"anthropic_beta":["own"]}`, []string{`q"`}, `{"anthropic_version":"bedrock-2023-05-31","anthropic_beta":["q\""]}`},
		{`{}`, []string{" , "}, `{"anthropic_version":"bedrock-2023-05-31"}`},
		{`no JSON`, []string{"a"}, `no JSON`},
	} {
		if got := string(Body([]byte(c.request), c.betas)); got != c.want {
			t.Errorf("%s\n%s", got, c.want)
		}
	}
}

func TestErrorsAreToldInClaudesWords(t *testing.T) {
	for _, c := range []struct {
		status       int
		header, body string
		as           int
		kind, says   string
	}{
		{429, "ThrottlingException:http://x/", `{"message":"Too many tokens"}`, 429, "rate_limit_error", "ThrottlingException: Too many tokens"},
		{429, "ModelNotReadyException", `{"message":"m"}`, 529, "overloaded_error", "ModelNotReadyException: m"},
		{503, "ServiceUnavailableException", `{"Message":"m"}`, 529, "overloaded_error", "ServiceUnavailableException: m"},
		{400, "ServiceQuotaExceededException", `{"message":"m"}`, 429, "rate_limit_error", "ServiceQuotaExceededException: m"},
		{408, "ModelTimeoutException", `{"message":"m"}`, 504, "timeout_error", "ModelTimeoutException: m"},
		{424, "ModelErrorException", `{"message":"m"}`, 500, "api_error", "ModelErrorException: m"},
		{403, "", `{"__type":"com.amazon.coral.service#UnrecognizedClientException","message":"m"}`, 401, "authentication_error", "UnrecognizedClientException: m"},
		{403, "AccessDeniedException", `{"message":"m"}`, 403, "permission_error", "AccessDeniedException: m"},
		{404, "ResourceNotFoundException", `{}`, 404, "not_found_error", "ResourceNotFoundException"},
		{502, "", `<html><title>Bad Gateway</title>`, 502, "api_error", "Bad Gateway"},
		{418, "", ``, 418, "invalid_request_error", "I'm a teapot"},
	} {
		res := &http.Response{StatusCode: c.status, Header: http.Header{"X-Amzn-Requestid": {"id-1"}}, Body: io.NopCloser(strings.NewReader(c.body))}
		if c.header != "" {
			res.Header.Set("X-Amzn-Errortype", c.header)
		}
		Answer(res)
		text, err := io.ReadAll(res.Body)
		if want := fmt.Sprintf(`{"type":"error","error":{"type":%q,"message":%q},"request_id":"id-1"}`, c.kind, c.says); err != nil || res.StatusCode != c.as || string(text) != want || res.ContentLength != int64(len(want)) {
			t.Errorf("%d %s:\n%d %s\n%d %s", c.status, c.header, res.StatusCode, text, c.as, want)
		}
	}
}

// frames is a stream as AWS's own encoder writes it.
func frames(t testing.TB, messages ...eventstream.Message) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, m := range messages {
		if err := eventstream.NewEncoder().Encode(&out, m); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func chunk(event string) eventstream.Message {
	m := eventstream.Message{Payload: []byte(`{"p":"abc","bytes":"` + base64.StdEncoding.EncodeToString([]byte(event)) + `"}`)}
	m.Headers.Set("flag", eventstream.BoolValue(true))
	m.Headers.Set("when", eventstream.TimestampValue(time.Unix(1, 0)))
	m.Headers.Set("bytes", eventstream.BytesValue([]byte{1, 2}))
	m.Headers.Set("n", eventstream.Int32Value(7))
	m.Headers.Set(eventstreamapi.MessageTypeHeader, eventstream.StringValue("event"))
	m.Headers.Set(eventstreamapi.EventTypeHeader, eventstream.StringValue("chunk"))
	return m
}

func other(kind, header, name, payload string) eventstream.Message {
	m := eventstream.Message{Payload: []byte(payload)}
	m.Headers.Set(eventstreamapi.MessageTypeHeader, eventstream.StringValue(kind))
	m.Headers.Set(header, eventstream.StringValue(name))
	return m
}

func decode(from io.Reader) (string, error) {
	res := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/vnd.amazon.eventstream"}, "X-Amzn-Requestid": {"id-1"}}, Body: io.NopCloser(from)}
	Answer(res)
	text, err := io.ReadAll(res.Body)
	return string(text), err
}

func TestAStreamIsToldAsClaudes(t *testing.T) {
	const start, delta = `{"type":"message_start","message":{"id":"m"}}`, `{"type":"content_block_delta","delta":{"text":"ä\n"}}`
	const told = "event: message_start\ndata: " + start + "\n\nevent: content_block_delta\ndata: " + delta + "\n\n"
	whole := frames(t, chunk(start), other("event", ":event-type", "something-new", "{}"), chunk(delta))
	for _, c := range []struct {
		name, want string
		stream     []byte
		err        error
	}{
		{"all of it", told, whole, nil},
		{"over two lines", told, frames(t, chunk("{\"type\":\"message_start\",\r\n\"message\":{\"id\":\"m\"}}\n"), chunk(delta)), nil},
		{"nothing", "", nil, nil},
		{"an exception", told + `event: error` + "\n" + `data: {"type":"error","error":{"type":"rate_limit_error","message":"throttlingException: slow down"},"request_id":"id-1"}` + "\n\n",
			append(bytes.Clone(whole), frames(t, other("exception", ":exception-type", "throttlingException", `{"message":"slow down"}`), chunk(start))...), nil},
		{"an error", `event: error` + "\n" + `data: {"type":"error","error":{"type":"api_error","message":"InternalError: "},"request_id":"id-1"}` + "\n\n", frames(t, other("error", ":error-code", "InternalError", "")), nil},
		{"a cut", told[:strings.Index(told, "event: content")], whole[:len(whole)-5], io.ErrUnexpectedEOF},
		{"a cut in a prelude", told, append(bytes.Clone(whole), 0, 0, 0), io.ErrUnexpectedEOF},
		{"another type", "", frames(t, other("news", ":event-type", "chunk", "{}")), errDamaged},
		{"no bytes", "", frames(t, other("event", ":event-type", "chunk", `{"byte":"e30="}`)), errDamaged},
		{"no base64", "", frames(t, other("event", ":event-type", "chunk", `{"bytes":"?"}`)), errDamaged},
		{"no event", "", frames(t, chunk(`{"tipe":"x"}`)), errDamaged},
		{"no JSON", "", frames(t, chunk("{\n")), errDamaged},
	} {
		for name, reader := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "by the byte": iotest.OneByteReader, "with its end": iotest.DataErrReader} {
			if got, err := decode(reader(bytes.NewReader(c.stream))); got != c.want || !errors.Is(err, c.err) {
				t.Errorf("%s, %s: %v\n%s\n%s", c.name, name, err, got, c.want)
			}
		}
	}
	for i := range whole {
		damaged := bytes.Clone(whole)
		damaged[i] ^= 1
		if got, err := decode(bytes.NewReader(damaged)); err == nil || !strings.HasPrefix(told, got) {
			t.Fatalf("byte %d: %v %s", i, err, got)
		}
	}
}

// A message that claims to be huge takes no memory for it.
func TestAClaimedLengthTakesNoMemory(t *testing.T) {
	for _, lengths := range [][2]uint32{{1<<32 - 1, 0}, {16<<20 + 1, 0}, {100, 200}, {15, 0}, {0, 0}, {1 << 20, 1 << 19}} {
		head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, lengths[0]), lengths[1])
		head = binary.BigEndian.AppendUint32(head, crc32.ChecksumIEEE(head))
		if got, err := decode(bytes.NewReader(append(head, 1, 2, 3))); got != "" || !errors.Is(err, errDamaged) {
			t.Errorf("%v: %q %v", lengths, got, err)
		}
	}
}

func FuzzStream(f *testing.F) {
	f.Add(frames(f, chunk(`{"type":"message_start"}`), other("exception", ":exception-type", "throttlingException", `{"message":"m"}`)), false)
	f.Add(frames(f, chunk(`{"type":"ping"}`))[:20], true)
	raw, _ := hex.DecodeString("0000001000000000")
	f.Add(raw, true)
	f.Fuzz(func(t *testing.T, stream []byte, seal bool) {
		if seal && len(stream) >= 16 && len(stream) < 1<<16 { // so that the checks behind the sums are seen too
			binary.BigEndian.PutUint32(stream, uint32(len(stream)))
			binary.BigEndian.PutUint32(stream[8:], crc32.ChecksumIEEE(stream[:8]))
			binary.BigEndian.PutUint32(stream[len(stream)-4:], crc32.ChecksumIEEE(stream[:len(stream)-4]))
		}
		got, err := decode(bytes.NewReader(stream))
		slowly, slow := decode(iotest.HalfReader(bytes.NewReader(stream)))
		if got != slowly || (err == nil) != (slow == nil) {
			t.Fatalf("%q %v, but by half %q %v", got, err, slowly, slow)
		}
		for event := range strings.SplitSeq(strings.TrimSuffix(got, "\n\n"), "\n\n") {
			if event == "" {
				continue
			}
			name, data, ok := strings.Cut(event, "\ndata: ")
			if !ok || !strings.HasPrefix(name, "event: ") || strings.ContainsAny(data, "\r\n") || strings.ContainsAny(name, "\r\n") {
				t.Fatalf("%q", event)
			}
		}
		// What AWS's own decoder takes, we take.
		m, theirs := eventstream.NewDecoder().Decode(bytes.NewReader(stream), nil)
		if theirs == nil && len(stream) < 1<<16 && m.Headers.Get(":message-type") != nil && m.Headers.Get(":message-type").String() == "exception" && !strings.HasPrefix(got, "event: error") {
			t.Fatalf("AWS reads %v, we read %q %v", m, got, err)
		}
	})
}

func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"model":"m","stream":true,"messages":[]}`), "a,b")
	f.Add([]byte(`{}`), "")
	f.Fuzz(func(t *testing.T, request []byte, betas string) {
		body := Body(request, []string{betas})
		var was, is map[string]json.RawMessage
		if json.Unmarshal(request, &was) != nil {
			return
		}
		if err := json.Unmarshal(body, &is); err != nil || string(is["anthropic_version"]) != version || (is["model"] != nil || is["stream"] != nil) && !bytes.Contains(request, []byte(`\`)) {
			t.Fatalf("%v: %s", err, body)
		}
	})
}
