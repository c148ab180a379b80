package prom

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"

	"mainstay.dev/mainstay/telemetry"
)

func request(status int) *telemetry.Exchange {
	return &telemetry.Exchange{
		Plane: "edge", Route: "app", Color: "blue", Code: "ok", Took: 120 * time.Millisecond, FirstByte: 80 * time.Millisecond,
		Waited: 10 * time.Millisecond, BytesIn: 10, BytesOut: 2000,
		HTTP: telemetry.HTTP{Method: "GET", Status: status},
	}
}

func query() *telemetry.Exchange {
	return &telemetry.Exchange{
		Plane: "pooler", Route: "app", Color: "green", Code: "ok", Took: 800 * time.Microsecond, BytesIn: 30, BytesOut: 400,
		DB: telemetry.DB{Database: "app", Command: "SELECT", Rows: 7, Queries: 2},
	}
}

func call() *telemetry.Exchange {
	x := &telemetry.Exchange{
		Plane: "claude", Route: "/v1/messages", Color: "blue", Code: "ok", Took: 3 * time.Second, FirstByte: time.Second,
		HTTP:  telemetry.HTTP{Method: "POST", Status: 200},
		GenAI: telemetry.GenAI{Model: "claude-opus-4", InputTokens: 10, CacheReadTokens: 20, CacheWriteTokens: 30, OutputTokens: 40},
	}
	x.Try(telemetry.Attempt{Status: 529, Cause: "overloaded"})
	x.Try(telemetry.Attempt{Status: 200})
	return x
}

// values gathers s into one map: name{label="value",…} → counter or gauge value,
// or a histogram's count under name_count{…} and sum under name_sum{…}.
func values(t *testing.T, s *Sink) map[string]float64 {
	t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := labelText(m.GetLabel())
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				out[f.GetName()+labels] = m.GetCounter().GetValue()
			case dto.MetricType_GAUGE:
				out[f.GetName()+labels] = m.GetGauge().GetValue()
			case dto.MetricType_HISTOGRAM:
				out[f.GetName()+"_count"+labels] = float64(m.GetHistogram().GetSampleCount())
				out[f.GetName()+"_sum"+labels] = m.GetHistogram().GetSampleSum()
			}
		}
	}
	return out
}

func labelText(pairs []*dto.LabelPair) string {
	var parts []string
	for _, p := range pairs {
		parts = append(parts, fmt.Sprintf("%s=%q", p.GetName(), p.GetValue()))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// only keeps the entries that Mainstay made.
func only(all map[string]float64) map[string]float64 {
	ours := map[string]float64{}
	for name, v := range all {
		if strings.HasPrefix(name, "mainstay_") {
			ours[name] = math.Round(v*1e6) / 1e6
		}
	}
	return ours
}

func TestARequestMovesItsMetrics(t *testing.T) {
	s := New(nil)
	s.Record(request(200))
	s.Record(request(200))
	want := map[string]float64{
		`mainstay_edge_requests_total{blame="none",code="ok",color="blue",method="GET",route="app",status="2xx"}`: 2,
		`mainstay_edge_request_duration_seconds_count{color="blue",route="app"}`:                                  2,
		`mainstay_edge_request_duration_seconds_sum{color="blue",route="app"}`:                                    0.24,
		`mainstay_edge_first_byte_seconds_count{color="blue",route="app"}`:                                        2,
		`mainstay_edge_first_byte_seconds_sum{color="blue",route="app"}`:                                          0.16,
		`mainstay_edge_wait_seconds_count{color="blue",route="app"}`:                                              2,
		`mainstay_edge_wait_seconds_sum{color="blue",route="app"}`:                                                0.02,
		`mainstay_edge_received_bytes_total{route="app"}`:                                                         20,
		`mainstay_edge_sent_bytes_total{route="app"}`:                                                             4000,
	}
	if diff := cmp.Diff(want, only(values(t, s))); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestAQueryMovesItsMetrics(t *testing.T) {
	s := New(nil)
	s.Record(query())
	want := map[string]float64{
		`mainstay_pooler_queries_total{blame="none",code="ok",color="green",command="SELECT",route="app"}`: 1,
		`mainstay_pooler_query_duration_seconds_count{color="green",route="app"}`:                          1,
		`mainstay_pooler_query_duration_seconds_sum{color="green",route="app"}`:                            0.0008,
		`mainstay_pooler_wait_seconds_count{color="green",route="app"}`:                                    0,
		`mainstay_pooler_wait_seconds_sum{color="green",route="app"}`:                                      0,
		`mainstay_pooler_received_bytes_total{route="app"}`:                                                30,
		`mainstay_pooler_sent_bytes_total{route="app"}`:                                                    400,
		`mainstay_pooler_statements_total{route="app"}`:                                                    2,
		`mainstay_pooler_rows_total{route="app"}`:                                                          7,
	}
	if diff := cmp.Diff(want, only(values(t, s))); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestWhatHasFewerLabelsAddsUpAllOthers(t *testing.T) {
	s := New(nil)
	for _, of := range []struct {
		command, color string
		took           time.Duration
	}{
		{"SELECT", "green", 100 * time.Microsecond}, // on the edge of a bucket, which is in it
		{"INSERT", "green", 100*time.Microsecond + 1},
		{"SELECT", "blue", time.Minute}, // beyond all
		{"SELECT", "green", 0},
	} {
		x := query()
		x.DB.Command, x.Color, x.Took = of.command, of.color, of.took
		s.Record(x)
	}
	got := values(t, s)
	for name, want := range map[string]float64{
		`mainstay_pooler_queries_total{blame="none",code="ok",color="green",command="SELECT",route="app"}`: 2,
		`mainstay_pooler_query_duration_seconds_count{color="green",route="app"}`:                          3,
		`mainstay_pooler_query_duration_seconds_count{color="blue",route="app"}`:                           1,
		`mainstay_pooler_rows_total{route="app"}`:                                                          28,
		`mainstay_pooler_sent_bytes_total{route="app"}`:                                                    1600,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	text := scrape(t, s)
	for _, line := range []string{
		`mainstay_pooler_query_duration_seconds_bucket{color="green",route="app",le="0.0001"} 2`,
		`mainstay_pooler_query_duration_seconds_bucket{color="green",route="app",le="0.00025"} 3`,
		`mainstay_pooler_query_duration_seconds_bucket{color="green",route="app",le="+Inf"} 3`,
		`mainstay_pooler_query_duration_seconds_bucket{color="blue",route="app",le="30"} 0`,
		`mainstay_pooler_query_duration_seconds_bucket{color="blue",route="app",le="+Inf"} 1`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}

func TestACallMovesAttemptsAndTokens(t *testing.T) {
	s := New(nil)
	s.Record(call())
	got := values(t, s)
	for name, want := range map[string]float64{
		`mainstay_claude_calls_total{blame="none",code="ok",color="blue",model="claude-opus-4",route="/v1/messages",status="2xx"}`: 1,
		`mainstay_claude_attempts_total{cause="overloaded"}`:                                                                       1,
		`mainstay_claude_attempts_total{cause="none"}`:                                                                             1,
		`mainstay_claude_tokens_total{model="claude-opus-4",type="input"}`:                                                         10,
		`mainstay_claude_tokens_total{model="claude-opus-4",type="cache_read"}`:                                                    20,
		`mainstay_claude_tokens_total{model="claude-opus-4",type="cache_write"}`:                                                   30,
		`mainstay_claude_tokens_total{model="claude-opus-4",type="output"}`:                                                        40,
		`mainstay_claude_call_duration_seconds_sum{color="blue",route="/v1/messages"}`:                                             3,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

func TestACallThatPaysForSeveralModelsMovesTheCountsOfEach(t *testing.T) {
	s := New(nil)
	x := call()
	x.GenAI.Model, x.GenAI.CostNanoUSD = "several", 3e9
	x.GenAI.Shares = []telemetry.Share{{Model: "claude-opus-5", InputTokens: 7, CostNanoUSD: 2e9}, {Model: "claude-haiku-4-5", OutputTokens: 3, CostNanoUSD: 1e9, Unpriced: 2}}
	s.Record(x)
	got := values(t, s)
	for name, want := range map[string]float64{
		`mainstay_claude_calls_total{blame="none",code="ok",color="blue",model="several",route="/v1/messages",status="2xx"}`: 1,
		`mainstay_claude_tokens_total{model="claude-opus-5",type="input"}`:                                                   7,
		`mainstay_claude_tokens_total{model="claude-haiku-4-5",type="output"}`:                                               3,
		`mainstay_claude_tokens_total{model="several",type="input"}`:                                                         0,
		`mainstay_claude_cost_usd_total{color="blue",model="claude-opus-5"}`:                                                 2,
		`mainstay_claude_cost_usd_total{color="blue",model="claude-haiku-4-5"}`:                                              1,
		`mainstay_claude_unpriced_calls_total{model="claude-haiku-4-5"}`:                                                     2,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

func TestAttemptsBeyondThoseKeptAreCountedToo(t *testing.T) {
	s := New(nil)
	x := call()
	for range telemetry.MaxAttempts + 3 {
		x.Try(telemetry.Attempt{Cause: "overloaded"})
	}
	s.Record(x)
	got := values(t, s)
	if n := got[`mainstay_claude_attempts_total{cause="other"}`]; n != 5 {
		t.Fatalf("%v attempts under other, want 5", n)
	}
}

func TestStreamsAndTunnelsStayOutOfTheLatencyHistogram(t *testing.T) {
	s := New(nil)
	for _, h := range []telemetry.HTTP{{Status: 101, Upgraded: "WebSocket"}, {Status: 101, Upgraded: "made-up-by-a-client"}, {Status: 200, Stream: true}} {
		x := request(200)
		x.HTTP = h
		s.Record(x)
	}
	got := values(t, s)
	if n := got[`mainstay_edge_request_duration_seconds_count{color="blue",route="app"}`]; n != 0 {
		t.Errorf("%v lasting exchanges in the latency histogram", n)
	}
	for _, kind := range []string{"websocket", "other", "sse"} {
		if n := got[`mainstay_edge_streams_total{kind="`+kind+`",route="app"}`]; n != 1 {
			t.Errorf("%v streams of kind %s, want 1", n, kind)
		}
	}
}

func TestTheNumberOfSeriesIsBoundedWhateverClientsSend(t *testing.T) {
	s := New(nil)
	for i := range 10 * maxSeries {
		x := request(100 + i%500)
		x.Route, x.HTTP.Method, x.Code = fmt.Sprint("/", i), fmt.Sprint("M", i%500), fmt.Sprint("code", i%300)
		s.Record(x)
		y := call()
		y.GenAI.Model = strings.Repeat("\xff", i%300)
		s.Record(y)
		s.Emit(telemetry.Event{Part: fmt.Sprint(i), Name: fmt.Sprint(i % 7)})
	}
	got := values(t, s)
	var total float64
	count := map[string]int{}
	for name, v := range got {
		family, _, _ := strings.Cut(name, "{")
		count[family]++
		if family == "mainstay_edge_requests_total" {
			total += v
		}
	}
	if total != 10*maxSeries {
		t.Errorf("%v requests counted, want %d: none may be lost", total, 10*maxSeries)
	}
	for family, n := range count {
		if n > maxSeries+5 {
			t.Errorf("%s has %d series", family, n)
		}
	}
	if n := count["mainstay_edge_request_duration_seconds_count"]; n > maxRoutes+1 {
		t.Errorf("%d duration histograms", n)
	}
}

func TestALabelKeepsItsValueWhenThePlaneReusesItsBuffer(t *testing.T) {
	s := New(nil)
	buf := []byte("tenant-one")
	x := query()
	x.Route = unsafe.String(&buf[0], len(buf))
	s.Record(x)
	copy(buf, "tenant-two")
	s.Record(x)
	got := values(t, s)
	for _, route := range []string{"tenant-one", "tenant-two"} {
		if n := got[`mainstay_pooler_rows_total{route="`+route+`"}`]; n != 7 {
			t.Errorf("%s has %v rows, want 7", route, n)
		}
	}
}

func TestLevelsAreGaugesReadAtTheScrape(t *testing.T) {
	size := 3.0
	s := New(func() []telemetry.Level {
		return []telemetry.Level{
			{Name: "mainstay_pooler_servers", Help: "Server connections.", Labels: []telemetry.Label{{Name: "database", Value: "app"}}, Value: size},
			{Name: "mainstay_pooler_servers", Help: "Told twice.", Labels: []telemetry.Label{{Name: "database", Value: "app"}}, Value: 99},
			{Name: "mainstay_pooler_servers", Help: "In other words.", Labels: []telemetry.Label{{Name: "database", Value: "\xff"}}, Value: 1},
		}
	})
	size = 4
	want := map[string]float64{`mainstay_pooler_servers{database="app"}`: 4, `mainstay_pooler_servers{database="?"}`: 1}
	if diff := cmp.Diff(want, only(values(t, s))); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestABadLevelCostsOnlyItself(t *testing.T) {
	s := New(func() []telemetry.Level {
		return []telemetry.Level{{Name: "mainstay_bad", Labels: []telemetry.Label{{Name: "", Value: "x"}}, Value: 1}, {Name: "mainstay_good", Value: 1}}
	})
	s.Record(request(200))
	body := scrape(t, s)
	for _, want := range []string{"mainstay_good 1", "mainstay_edge_requests_total{"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing from the scrape", want)
		}
	}
}

func TestEveryMetricIsInTheTable(t *testing.T) {
	s := New(nil, Version("1.2.3"))
	x := request(200)
	x.Try(telemetry.Attempt{Cause: "refused"})
	s.Record(x)
	x.HTTP.Stream = true
	s.Record(x)
	s.Record(query())
	y := call()
	s.Record(y)
	y.HTTP.Stream = true
	s.Record(y)
	s.Record(&telemetry.Exchange{Plane: "no such plane"})
	s.Emit(telemetry.Event{Part: "app", Name: "switched"})

	table := map[string]Metric{}
	for _, m := range Metrics() {
		table[m.Name] = m
	}
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "mainstay_") {
			continue
		}
		m, ok := table[f.GetName()]
		delete(table, f.GetName())
		if !ok || m.Help != f.GetHelp() || !strings.EqualFold(m.Type, f.GetType().String()) {
			t.Errorf("%s (%v, %q) is not so in the table: %+v", f.GetName(), f.GetType(), f.GetHelp(), m)
		}
	}
	for name := range table {
		t.Errorf("%s is in the table and is never made", name)
	}
}

func TestTheReferenceNamesEveryMetricAndLevel(t *testing.T) {
	page := Reference([]telemetry.Level{
		{Name: "mainstay_pooler_servers", Help: "Servers.", Labels: []telemetry.Label{{Name: "database"}, {Name: "state"}}},
		{Name: "mainstay_pooler_servers", Help: "Servers."},
	})
	for _, m := range Metrics() {
		if !strings.Contains(page, "| `"+m.Name+"` | "+m.Type+" |") {
			t.Errorf("%s is missing", m.Name)
		}
	}
	if strings.Count(page, "| `mainstay_pooler_servers` | gauge | `database`, `state` | Servers. |") != 1 {
		t.Errorf("the level is not there once:\n%s", page)
	}
}

func TestTheHandlerServesTheRuntimesMetricsAndTheBuild(t *testing.T) {
	s := New(nil, Version("1.2.3"))
	body := scrape(t, s)
	for _, want := range []string{"go_goroutines", "process_open_fds", `mainstay_build_info{go_version="go`, `version="1.2.3"`} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing from the scrape", want)
		}
	}
}

func TestConcurrentRecordsLoseNothing(t *testing.T) {
	s := New(nil)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				x := query()
				x.Route = fmt.Sprint("db", i%20)
				x.Color = fmt.Sprint("color", g%3)
				s.Record(x)
			}
		})
	}
	wg.Wait()
	var total float64
	for name, v := range values(t, s) {
		if strings.HasPrefix(name, "mainstay_pooler_queries_total") {
			total += v
		}
	}
	if total != 1600 {
		t.Fatalf("%v counted, want 1600", total)
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	s := New(nil)
	for _, x := range []*telemetry.Exchange{request(200), query(), call()} {
		s.Record(x)
		if n := testing.AllocsPerRun(1000, func() { s.Record(x) }); n > 0 {
			t.Errorf("%s: %v allocations", x.Plane, n)
		}
	}
}

func scrape(t *testing.T, s *Sink) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("the scrape answered %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func BenchmarkRecord(b *testing.B) {
	for _, x := range []*telemetry.Exchange{request(200), query(), call()} {
		b.Run(x.Plane, func(b *testing.B) {
			s := New(nil)
			b.ReportAllocs()
			for b.Loop() {
				s.Record(x)
			}
		})
	}
}

func BenchmarkScrape(b *testing.B) {
	s := New(nil)
	for i := range 200 {
		x := request(200)
		x.Route = fmt.Sprint("app", i)
		s.Record(x)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
