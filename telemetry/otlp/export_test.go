package otlp

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

// answers is a network that gives these answers in turn, the last again and again, and
// notes when each request came.
type answers struct {
	all  []http.Response
	at   []time.Time
	seen []*http.Request
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return nil, err
	}
	answer := a.all[min(len(a.at), len(a.all)-1)]
	a.at, a.seen = append(a.at, time.Now()), append(a.seen, r)
	if answer.Body == nil {
		answer.Body = http.NoBody
	}
	answer.Request, answer.Status = r, fmt.Sprintf("%d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	return &answer, nil
}

func answer(status int, header, value, body string) http.Response {
	return http.Response{StatusCode: status, Header: http.Header{header: {value}}, Body: io.NopCloser(strings.NewReader(body))}
}

func TestACollectorIsAskedAgainWhenItSays(t *testing.T) {
	for name, c := range map[string]struct {
		answers []http.Response
		tries   int
		least   time.Duration // from the first try to the second
		dropped int64
	}{
		"after seconds":          {[]http.Response{answer(503, "Retry-After", "7", ""), answer(200, "", "", "")}, 2, 7 * time.Second, 0},
		"after a date":           {[]http.Response{answer(429, "Retry-After", "Sat, 01 Jan 2000 00:00:20 GMT", ""), answer(200, "", "", "")}, 2, 18 * time.Second, 0}, // the bubble begins at midnight
		"it does not say":        {[]http.Response{answer(502, "", "", ""), answer(504, "", "", ""), answer(202, "", "", "")}, 3, firstBackoff / 2, 0},
		"later than we wait":     {[]http.Response{answer(503, "Retry-After", "31", "")}, 1, 0, 1},
		"what a year is":         {[]http.Response{answer(503, "Retry-After", "99999999999999999", "")}, 1, 0, 1},
		"it will not take it":    {[]http.Response{answer(400, "", "", "")}, 1, 0, 1},
		"an error of its own":    {[]http.Response{answer(500, "Retry-After", "1", "")}, 1, 0, 1},
		"what is no wait at all": {[]http.Response{answer(429, "Retry-After", "soon", ""), answer(200, "", "", "")}, 2, firstBackoff / 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := &answers{all: c.answers}
				s := onto(t, network)
				stop := run(t, s)
				s.Record(sampled("edge"))
				time.Sleep(2 * patience)
				stop()
				if len(network.at) != c.tries || s.Dropped() != c.dropped || s.sent.Load() != 1-c.dropped {
					t.Errorf("%d tries, %d dropped, %d sent", len(network.at), s.Dropped(), s.sent.Load())
				}
				if c.tries > 1 {
					if waited := network.at[1].Sub(network.at[0]); waited < c.least {
						t.Errorf("asked again after %v", waited)
					}
				}
			})
		})
	}
}

func TestPatienceWithACollectorEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &answers{all: []http.Response{answer(503, "", "", "")}}
		s := onto(t, network)
		stop := run(t, s)
		s.Record(sampled("edge"))
		time.Sleep(patience + maxBackoff*3/2 + interval)
		if s.Dropped() != 1 {
			t.Errorf("%d dropped after %d tries", s.Dropped(), len(network.at))
		}
		stop()
	})
}

func TestWhatACollectorRefusesOfABatchIsCounted(t *testing.T) {
	reply := func(rejected int64, why string) string {
		b, err := proto.Marshal(&coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: rejected, ErrorMessage: why}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, c := range map[string]struct {
		kind, body    string
		dropped, sent int64
		line          string
	}{
		"some":                {typeProtobuf, reply(2, "too old"), 2, 1, `rejected_spans=2 remark="too old"`},
		"none, but a warning": {typeProtobuf, reply(0, "slow down"), 0, 3, `rejected_spans=0 remark="slow down"`},
		"all and more":        {typeProtobuf, reply(9, ""), 3, 0, `rejected_spans=9`},
		"fewer than none":     {typeProtobuf, reply(-4, ""), 0, 3, ""},
		"in JSON":             {"application/json; charset=utf-8", `{"partialSuccess":{"rejectedSpans":"1","errorMessage":"no"}}`, 1, 2, `rejected_spans=1 remark=no`},
		"in JSON, a number":   {typeJSON, `{"partialSuccess":{"rejectedSpans":1}}`, 1, 2, `rejected_spans=1`},
		"nonsense in JSON":    {typeJSON, `{"partialSuccess":`, 0, 3, ""},
		"nonsense":            {typeProtobuf, "\x0a\xff\xff\xff\xff\x0f", 0, 3, ""},
		"nothing":             {typeProtobuf, "", 0, 3, ""},
		"a page":              {"text/html", "<p>rejectedSpans: 3", 0, 3, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			s := onto(t, &answers{all: []http.Response{answer(200, "Content-Type", c.kind, c.body)}})
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			for range 3 {
				s.Record(sampled("edge"))
			}
			s.drain(t.Context(), true)
			if s.Dropped() != c.dropped || s.sent.Load() != c.sent {
				t.Errorf("%d dropped, %d sent", s.Dropped(), s.sent.Load())
			}
			if (c.line == "") != (log.Len() == 0) || !strings.Contains(log.String(), c.line) {
				t.Errorf("logged %q", log.String())
			}
		})
	}
}

func TestTheLogSaysWhatTheCollectorSaid(t *testing.T) {
	for kind, body := range map[string]string{
		typeProtobuf: "\x08\x03\x12\x0cbad api key\n", // a google.rpc.Status
		typeJSON:     `{"code":3,"message":"bad api key"}`,
		"text/plain": " bad api key\n",
		"":           "bad api key",
	} {
		var log bytes.Buffer
		s := onto(t, &answers{all: []http.Response{answer(401, "Content-Type", kind, body)}})
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		s.Record(sampled("edge"))
		s.drain(t.Context(), true)
		if !strings.Contains(log.String(), `err="http://collector/v1/traces answered 401 Unauthorized: bad api key"`) {
			t.Errorf("%s: %s", kind, log.String())
		}
	}
}

func FuzzReply(f *testing.F) {
	f.Add(typeProtobuf, []byte("\x0a\x04\x08\x01\x12\x00"))
	f.Add(typeJSON, []byte(`{"partialSuccess":{"rejectedSpans":"1"}}`))
	f.Add("a/b; c", []byte("\xff"))
	f.Fuzz(func(t *testing.T, kind string, said []byte) {
		rejected, why := partial(kind, said)
		if rejected < 0 || len(why) > maxText || len(reason(kind, said)) > maxText+2 {
			t.Fatalf("%d, %q", rejected, why)
		}
	})
}

func TestTheEnvironmentHoldsWhereTheConfigSaysNothing(t *testing.T) {
	env := map[string]string{
		"OTEL_EXPORTER_OTLP_HEADERS":            "x-general=1",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS":     " api-key = a%20b%3D , ,x-team=t",
		"OTEL_EXPORTER_OTLP_COMPRESSION":        "gzip",
		"OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none",
		"OTEL_EXPORTER_OTLP_PROTOCOL":           "grpc",
	}
	send := func(change func(*Config)) (http.Header, string) {
		var log bytes.Buffer
		cfg, network := config("http://collector"), &answers{all: []http.Response{answer(200, "", "", "")}}
		change(&cfg)
		s, err := newSink(cfg, Resource{Version: "1.4"}, slog.New(slog.NewTextHandler(&log, nil)), func(name string) string { return env[name] }, network)
		if err != nil {
			t.Fatal(err)
		}
		s.Record(sampled("edge"))
		s.drain(t.Context(), true)
		return network.seen[0].Header, log.String()
	}
	h, log := send(func(*Config) {})
	if h.Get("Api-Key") != "a b=" || h.Get("X-Team") != "t" || h.Get("X-General") != "" || h.Get("Content-Encoding") != "" || h.Get("User-Agent") != "mainstay/1.4" || h.Get("Content-Type") != typeProtobuf {
		t.Errorf("%v", h)
	}
	if !strings.Contains(log, "asked=grpc") {
		t.Errorf("logged %q", log)
	}
	h, _ = send(func(c *Config) {
		c.Headers, c.Compression = map[string]setting.Secret{"api-key": "ours"}, gzipped
	})
	if h.Get("Api-Key") != "ours" || h.Get("X-Team") != "" || h.Get("Content-Encoding") != "gzip" {
		t.Errorf("%v", h)
	}
}

func TestMistakesInTheEnvironmentNameTheVariableAndNoValue(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "none.pem")
	for variable, c := range map[string]struct{ value, want string }{
		"OTEL_EXPORTER_OTLP_HEADERS":            {"sesame", "NAME=VALUE"},
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS":     {"k=sesame%zz", "no text of one line in URL encoding"},
		"OTEL_EXPORTER_OTLP_CERTIFICATE":        {nowhere, "can be read"},
		"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": {nowhere, "CLIENT_KEY"},
		"OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY":  {nowhere, "CLIENT_CERTIFICATE"},
	} {
		_, err := newSink(config("http://collector"), Resource{}, quietLog, func(name string) string {
			if name == variable {
				return c.value
			}
			return ""
		}, swallow{})
		if err == nil || !strings.Contains(err.Error(), variable) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %v", variable, err)
		}
	}
}

func TestACollectorWithACertificateOfItsOwn(t *testing.T) {
	var c collector
	server := httptest.NewTLSServer(&c)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", file)
	s, err := New(config(server.URL), Resource{Service: "s"}, quietLog)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	s.Record(sampled("edge"))
	stop()
	if len(c.spans()) != 1 || s.Dropped() != 0 {
		t.Errorf("%d spans, %d dropped", len(c.spans()), s.Dropped())
	}
}

func TestCompressionIsForTheNetwork(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://localhost:4318": "", "http://127.0.0.1:4318/otel": "", "http://[::1]:4318": "",
		"http://collector:4318": "gzip", "https://10.0.0.1": "gzip", "https://127.0.0.1.example.com": "gzip",
	} {
		network := &answers{all: []http.Response{answer(200, "", "", "")}}
		s, err := newSink(config(endpoint), Resource{}, quietLog, noEnvironment, network)
		if err != nil {
			t.Fatal(err)
		}
		s.Record(sampled("edge"))
		s.drain(t.Context(), true)
		if got := network.seen[0].Header.Get("Content-Encoding"); got != want {
			t.Errorf("%s: %q, want %q", endpoint, got, want)
		}
	}
}

// A transport that answers before it has read all goes on reading what it was given.
func TestABodyIsNotOverwrittenWhileItIsRead(t *testing.T) {
	slow := &slowReader{}
	s := onto(t, slow, func(c *Config) { c.Compression = plain })
	x := query()
	x.DB.Text = "first"
	s.Record(x)
	s.drain(t.Context(), true)
	x.DB.Text = "other"
	s.Record(x)
	s.drain(t.Context(), true)
	for i, want := range []string{"first", "other"} {
		text, err := io.ReadAll(slow.bodies[i])
		if err != nil || !bytes.Contains(text, []byte(want)) {
			t.Errorf("body %d: %v, %q", i, err, text)
		}
	}
}

type slowReader struct{ bodies []io.Reader }

func (s *slowReader) RoundTrip(r *http.Request) (*http.Response, error) {
	s.bodies = append(s.bodies, r.Body)
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
}

func TestManyRecordAtOnce(t *testing.T) {
	var c collector
	s := onto(t, &c, func(c *Config) { c.Queue = 1 << 16 })
	stop := run(t, s)
	const goroutines, each = 16, 500
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			x := query()
			for range each {
				x.Trace.Continue("", "")
				s.Record(x)
			}
		})
	}
	all.Wait()
	stop()
	ids := map[string]bool{}
	for _, span := range c.spans() {
		ids[string(span.SpanId)] = true
	}
	if len(ids) != goroutines*each || s.Dropped() != 0 || s.sent.Load() != goroutines*each {
		t.Errorf("%d spans, %d dropped", len(ids), s.Dropped())
	}
}

func TestNobodyIsWokenBeforeABatchIsFull(t *testing.T) {
	s := onto(t, swallow{})
	for i := range batchSize {
		if len(s.queue.ready) != 0 {
			t.Fatalf("woken after %d", i)
		}
		s.Record(query())
	}
	if len(s.queue.ready) != 1 {
		t.Error("not woken by a full batch")
	}
}

func TestABatchIsBoundedInBytes(t *testing.T) {
	s := onto(t, swallow{})
	x := query()
	x.DB.Text, x.Caller, x.ID = strings.Repeat("q", maxText), strings.Repeat("c", maxText), strings.Repeat("i", maxText)
	for range telemetry.MaxAttempts {
		x.Try(telemetry.Attempt{Target: strings.Repeat("t", 10*maxText), Cause: strings.Repeat("c", 10*maxText)})
	}
	for range batchSize {
		s.Record(x)
	}
	total := 0
	for b := s.queue.take(true); b.exchanges > 0; b = s.queue.take(true) {
		if total += b.exchanges; len(b.spans) > batchBytes+200<<10 || b.exchanges == batchSize {
			t.Errorf("a batch of %d exchanges and %d bytes", b.exchanges, len(b.spans))
		}
	}
	if total != batchSize {
		t.Errorf("%d of %d", total, batchSize)
	}
}
