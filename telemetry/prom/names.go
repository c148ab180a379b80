package prom

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"mainstay.dev/mainstay/telemetry"
)

// A Metric describes one metric of the table.
type Metric struct {
	Name    string
	Type    string // "counter", "gauge" or "histogram"
	Help    string
	Labels  []string
	Buckets []float64 // of a histogram, in its unit
}

// The buckets have an edge at every threshold that people alert on: 0.2, 0.25,
// 0.5 and 1 second.
var (
	requestBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .2, .25, .5, 1, 2.5, 5, 10, 30}
	queryBuckets   = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .2, .25, .5, 1, 2.5, 5, 10, 30}
	callBuckets    = []float64{.005, .01, .025, .05, .1, .2, .25, .5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600}
)

// Metrics returns the table of every metric that this package makes from
// exchanges and events. Levels name and describe themselves; the Go runtime's and
// the process's metrics are the Prometheus client's.
func Metrics() []Metric {
	return []Metric{
		{"mainstay_build_info", "gauge", "1, with the version, commit and Go version of this binary as labels.", []string{"version", "revision", "go_version"}, nil},
		{"mainstay_events_total", "counter", "What happened that is no request, query or call: switches, reloads, crashes.", []string{"part", "name"}, nil},

		{"mainstay_edge_requests_total", "counter", "Requests that have ended.", []string{"route", "method", "status", "code", "blame", "color"}, nil},
		{"mainstay_edge_request_duration_seconds", "histogram", "Whole life of a request; event streams and tunnels are left out.", []string{"route", "color"}, requestBuckets},
		{"mainstay_edge_first_byte_seconds", "histogram", "From the start of a request to the first byte from the app.", []string{"route", "color"}, requestBuckets},
		{"mainstay_edge_wait_seconds", "histogram", "Time in Mainstay's queues, of the requests that had to wait.", []string{"route", "color"}, requestBuckets},
		{"mainstay_edge_received_bytes_total", "counter", "Bytes of request bodies.", []string{"route"}, nil},
		{"mainstay_edge_sent_bytes_total", "counter", "Bytes of response bodies.", []string{"route"}, nil},
		{"mainstay_edge_streams_total", "counter", "Event streams and tunnels that have ended; kind is sse, websocket or other.", []string{"route", "kind"}, nil},
		{"mainstay_edge_attempts_total", "counter", "Attempts at a target; cause says why one failed, none that it did not.", []string{"cause"}, nil},

		{"mainstay_pooler_queries_total", "counter", "Exchanges with the database that have ended: a simple query message, or an extended cycle up to Sync. route is the database.", []string{"route", "command", "code", "blame", "color"}, nil},
		{"mainstay_pooler_query_duration_seconds", "histogram", "Whole life of a query, the wait for a server connection included.", []string{"route", "color"}, queryBuckets},
		{"mainstay_pooler_wait_seconds", "histogram", "Time in the queue for a server connection, of the queries that had to wait.", []string{"route", "color"}, queryBuckets},
		{"mainstay_pooler_received_bytes_total", "counter", "Bytes of protocol messages from clients.", []string{"route"}, nil},
		{"mainstay_pooler_sent_bytes_total", "counter", "Bytes of protocol messages to clients.", []string{"route"}, nil},
		{"mainstay_pooler_statements_total", "counter", "Statements run; one exchange may hold several.", []string{"route"}, nil},
		{"mainstay_pooler_rows_total", "counter", "Rows that statements returned or changed.", []string{"route"}, nil},

		{"mainstay_claude_calls_total", "counter", "Calls to the Claude API that have ended, as the app saw them.", []string{"route", "model", "status", "code", "blame", "color"}, nil},
		{"mainstay_claude_call_duration_seconds", "histogram", "Whole life of a call, retries included; event streams are left out.", []string{"route", "color"}, callBuckets},
		{"mainstay_claude_first_byte_seconds", "histogram", "From the start of a call to the first byte from the API.", []string{"route", "color"}, callBuckets},
		{"mainstay_claude_wait_seconds", "histogram", "Time in Mainstay's queues, of the calls that had to wait.", []string{"route", "color"}, callBuckets},
		{"mainstay_claude_received_bytes_total", "counter", "Bytes of request bodies.", []string{"route"}, nil},
		{"mainstay_claude_sent_bytes_total", "counter", "Bytes of response bodies.", []string{"route"}, nil},
		{"mainstay_claude_streams_total", "counter", "Event streams that have ended.", []string{"route", "kind"}, nil},
		{"mainstay_claude_attempts_total", "counter", "Attempts at the API; cause says why one failed, none that it did not.", []string{"cause"}, nil},
		{"mainstay_claude_tokens_total", "counter", "Tokens as the API counted them; type is input (uncached), cache_read, cache_write or output.", []string{"model", "type"}, nil},
		{"mainstay_claude_cost_usd_total", "counter", "What calls have cost, in dollars, where the model's price is known.", []string{"model", "color"}, nil},
		{"mainstay_claude_unpriced_calls_total", "counter", "Calls that have cost something but whose model's price is not known.", []string{"model"}, nil},
	}
}

// described is the table's row for name. A name that is not in it is a bug of
// this package, found by the first test that makes a sink.
func described(name string) Metric {
	for _, m := range Metrics() {
		if m.Name == name {
			return m
		}
	}
	panic("prom: metric " + name + " is not in the table")
}

// Reference renders the table, and the given levels after it, as a Markdown
// table for the documentation.
func Reference(levels []telemetry.Level) string {
	all := Metrics()
	seen := map[string]bool{}
	for _, l := range levels {
		if seen[l.Name] {
			continue
		}
		seen[l.Name] = true
		m := Metric{Name: l.Name, Type: "gauge", Help: l.Help}
		if l.Counter {
			m.Type = "counter"
		}
		for _, label := range l.Labels {
			m.Labels = append(m.Labels, label.Name)
		}
		all = append(all, m)
	}
	slices.SortStableFunc(all[len(Metrics()):], func(a, b Metric) int { return cmp.Compare(a.Name, b.Name) })
	var b strings.Builder
	b.WriteString("| metric | type | labels | what it is |\n|---|---|---|---|\n")
	for _, m := range all {
		labels := "–"
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, labels, strings.ReplaceAll(m.Help, "|", `\|`))
	}
	return b.String()
}
