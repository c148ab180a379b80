package claude_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// rows are the ways in which the API fails, once; n says how often in a row.
var rows = []struct {
	fault claudetest.Fault
	n     int
}{
	{claudetest.Overloaded, 1}, {claudetest.Overloaded, 3}, {claudetest.RateLimited, 1}, {claudetest.Internal, 1}, {claudetest.BadGateway, 1},
	{claudetest.OriginTimeout, 1}, {claudetest.Unavailable, 1}, {claudetest.Page, 1}, {claudetest.GatewayTimeout, 1}, {claudetest.Conflict, 1}, {claudetest.RequestTimeout, 1}, {claudetest.Reset, 1}, {claudetest.Truncated, 1}, {claudetest.Hang, 1},
	{claudetest.ErrorFirst, 1}, {claudetest.ErrorAfterStart, 1}, {claudetest.ErrorMiddle, 1}, {claudetest.Cut, 1}, {claudetest.CutBetween, 1},
	{claudetest.EndEarly, 1}, {claudetest.Stall, 1},
}

// shapes are how a call is made and carried.
var shapes = []struct {
	name             string
	streams, gathers bool
	faultsNo         []claudetest.Fault // that its answer can't have
}{
	{name: "stream", streams: true, faultsNo: []claudetest.Fault{claudetest.Truncated}},
	{name: "json, gathered", gathers: true, faultsNo: []claudetest.Fault{claudetest.Truncated}},
	{name: "json, as it is", faultsNo: claudetest.StreamFaults()},
}

func eachOfTheMatrix(t *testing.T, test func(t *testing.T, fault claudetest.Fault, n int, streams, gathers bool)) {
	for _, s := range shapes {
		for _, row := range rows {
			if slices.Contains(s.faultsNo, row.fault) {
				continue
			}
			t.Run(fmt.Sprint(s.name, " ", row.fault, row.n), func(t *testing.T) { test(t, row.fault, row.n, s.streams, s.gathers) })
		}
	}
}

// onStage is the default policy with aggregation or without, and waits for a first
// byte that a test in real time can bear.
func onStage(gathers bool, wait time.Duration) func(*claude.Config) {
	return func(c *claude.Config) {
		patient(c)
		c.Recovery.Aggregate = gathers
		c.Timeouts.FirstByte = wait
	}
}

// visitor is the official client in Go, on a network in memory, with the retries of
// its own that it has by default.
func visitor(st *stage, opts ...option.RequestOption) anthropic.Client {
	return anthropic.NewClient(append([]option.RequestOption{option.WithBaseURL(st.url), option.WithAPIKey(key), option.WithHTTPClient(st.http)}, opts...)...)
}

func TestEveryRowOfTheMatrixEndsInAWholeAnswer(t *testing.T) {
	eachOfTheMatrix(t, func(t *testing.T, fault claudetest.Fault, n int, streams, gathers bool) {
		fake := claudetest.New(claudetest.Options{RetryAfter: "2"})
		inBubble(t, fake, onStage(gathers, time.Minute), func(t *testing.T, st *stage) {
			strike := func() {
				for range n {
					fake.Next(fault)
				}
			}
			strike()
			if r := st.post(map[bool]string{true: helloS, false: hello}[streams]); streams {
				if m, err := read(r.body); err != nil || r.err != nil || m.stop != "end_turn" {
					t.Errorf("raw: %v %v %s", err, r.err, r.body)
				}
			} else if r.status != 200 || !strings.Contains(r.body, `"stop_reason":"end_turn"`) {
				t.Errorf("raw: %d %s", r.status, r.body)
			}
			strike()
			if err := converse(t, visitor(st), "hello", streams); err != nil {
				t.Errorf("Go: %v", err)
			}
			for _, x := range st.book.pages(t, 2) { // one call each: the SDK had nothing to retry
				if x.Code != "ok" || x.Tries != n+1 {
					t.Errorf("%s after %d tries", x.Code, x.Tries)
				}
			}
		})
	})
}

func TestEveryRowOfTheMatrixThatLastsEndsInOneClearError(t *testing.T) {
	eachOfTheMatrix(t, func(t *testing.T, fault claudetest.Fault, n int, streams, gathers bool) {
		fake := claudetest.New(claudetest.Options{RetryAfter: "2", FaultRate: 1, Faults: []claudetest.Fault{fault}})
		inBubble(t, fake, onStage(gathers, 10*time.Second), func(t *testing.T, st *stage) {
			const patience = 30 * time.Second
			begun := time.Now()
			r := st.send("POST", "/v1/messages", map[bool]string{true: helloS, false: hello}[streams], func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "30") })
			body := r.body
			if r.status == 200 {
				events := strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n")
				body = strings.TrimPrefix(events[len(events)-1], "event: error\ndata: ")
			} else if r.head.Get("X-Should-Retry") != "false" {
				t.Errorf("raw: %v", r.head)
			}
			parseError(t, body)
			if took := time.Since(begun); r.status == 200 && !streams || took > patience && r.status != 200 || strings.Count(r.body, `"type":"error"`) > 1 {
				t.Errorf("raw: %d after %v: %s", r.status, took, r.body)
			}
			err := converse(t, visitor(st, option.WithHeader("Mainstay-Deadline", "30")), "hello", streams)
			if api, ok := errors.AsType[*anthropic.Error](err); !ok || api.StatusCode != 200 && api.StatusCode < 400 {
				t.Errorf("Go: %v", err)
			}
			st.book.pages(t, 2) // the SDK did not try again
		})
	})
}

func TestTheOfficialTypeScriptClientGetsAPageAsAnErrorOfTheAPI(t *testing.T) {
	st, fake := over(t, claudetest.Options{}, nil)
	kinds := []string{"json", "stream"}
	for fault, status := range map[claudetest.Fault]int{claudetest.BadGateway: 502, claudetest.OriginTimeout: 504, claudetest.Unavailable: 503, claudetest.Page: 502} {
		fake.SetFaults(1, fault)
		var got []struct {
			OK      bool
			Status  int
			Type    string
			Message string
		}
		typescript(t, st.url, &got, append([]string{"each"}, kinds...)...)
		for i, r := range got {
			if want := map[int]string{502: "api_error", 503: "overloaded_error", 504: "timeout_error"}[status]; r.OK || r.Status != status || r.Type != want {
				t.Errorf("%s %s: %+v", fault, kinds[i], r)
			}
		}
	}
}

func TestTheOfficialTypeScriptClientSeesNoRowOfTheMatrix(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			st, fake := over(t, claudetest.Options{RetryAfter: "0.01", Repeat: 20}, func(c *claude.Config) {
				onStage(s.gathers, 400*time.Millisecond)(c)
				c.Recovery.Stall, c.Retry.Budget = 200*time.Millisecond, 1
			})
			var kinds []string
			for _, row := range rows {
				if slices.Contains(s.faultsNo, row.fault) {
					continue
				}
				for range row.n {
					fake.Next(row.fault)
				}
				fake.Next(claudetest.None)
				// Each call has a model of its own, or the gate would see one that fails half the time.
				kinds = append(kinds, fmt.Sprintf("%s:claude-sonnet-5-%d", map[bool]string{true: "stream", false: "json"}[s.streams], 100+len(kinds)))
			}
			var got []struct {
				OK      bool
				Message string
			}
			typescript(t, st.url, &got, append([]string{"each"}, kinds...)...)
			for i, r := range got {
				if !r.OK {
					t.Errorf("%d %s: %s", i, kinds[i], r.Message)
				}
			}
			if s := st.Stats(); len(got) != len(kinds) || int(s.Calls) != len(kinds) || s.Failed != 0 {
				t.Errorf("%d results of %d: %+v", len(got), len(kinds), s)
			}
		})
	}
}
