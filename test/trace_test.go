package test

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// spans is an OTLP/HTTP collector that keeps what it gets.
type spans struct {
	mu  sync.Mutex
	all []span
}

// span is one of them; who is the plane that made it, or the library.
type span struct{ name, who, trace, id, parent string }

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in io.Reader = r.Body
	var err error
	if r.Header.Get("Content-Encoding") == "gzip" {
		in, err = gzip.NewReader(r.Body)
	}
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(in, 10<<20))
	}
	var req collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &req)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, sp := range ss.Spans {
				who := ss.Scope.GetName()
				for _, kv := range sp.Attributes {
					if kv.Key == "mainstay.plane" {
						who = kv.Value.GetStringValue()
					}
				}
				s.all = append(s.all, span{sp.Name, who, hex.EncodeToString(sp.TraceId), hex.EncodeToString(sp.SpanId), hex.EncodeToString(sp.ParentSpanId)})
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (s *spans) of(trace string) (list []span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.all {
		if sp.trace == trace {
			list = append(list, sp)
		}
	}
	return list
}

// One trace crosses all planes: edge → app → query and app → Claude call. The app
// is instrumented as OpenTelemetry's own packages do it; it and Mainstay export to
// one collector.
func TestOneTraceCrossesAllPlanes(t *testing.T) {
	got := new(spans)
	srv := httptest.NewServer(got)
	defer srv.Close()
	_, _, env := upstreams(t)
	env = append(env, "OTEL_EXPORTER_OTLP_ENDPOINT="+srv.URL)
	m := setup(t, fmt.Sprintf("telemetry: {export: %q}\n", srv.URL), env...).start(testapp())

	for _, tc := range []struct{ path, trace, leaf string }{
		{"/query", "0af7651916cd43dd8448eb211c80319c", "pooler"},
		{"/ask", "1bf7651916cd43dd8448eb211c80319c", "claude"},
	} {
		const client = "b7ad6b7169203331"
		if status, _, body := m.get(tc.path, "Traceparent", "00-"+tc.trace+"-"+client+"-01"); status != 200 {
			t.Fatalf("%s: %d %s", tc.path, status, body)
		}
		// From a leaf that Mainstay made, the parents lead through the app to the
		// edge and to the client that began the trace.
		eventually(t, tc.path+": a path from the "+tc.leaf+" to the client", func() (bool, string) {
			list := got.of(tc.trace)
			byID := map[string]span{}
			for _, sp := range list {
				byID[sp.id] = sp
			}
			for _, sp := range list {
				if sp.who != tc.leaf {
					continue
				}
				way := []string{sp.who}
				for at := sp; at.parent != client; {
					next, ok := byID[at.parent]
					if !ok {
						break
					}
					at = next
					way = append(way, at.who)
					if at.parent == client && at.who == "edge" && strings.Contains(strings.Join(way, " "), "otelhttp") {
						t.Logf("%s: %s", tc.path, strings.Join(way, " ← "))
						return true, ""
					}
				}
			}
			return false, fmt.Sprintf("%+v", list)
		})
	}
}
