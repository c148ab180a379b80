package claude_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/telemetry"
)

// outcome is a line of a batch's results.
func outcome(id, model string, input, output int, text string) string {
	return fmt.Sprintf(`{"custom_id":%q,"result":{"type":"succeeded","message":{"type":"message","model":%q,"content":[{"type":"text","text":%q}],"usage":{"input_tokens":%d,"output_tokens":%d,"service_tier":"batch"}}}}`+"\n", id, model, text, input, output)
}

// results serves text as a batch's results; of the first fetches only so many bytes.
func results(text string, cuts ...int) http.HandlerFunc {
	n := 0
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-jsonl")
		n++
		if n <= len(cuts) {
			_, _ = io.WriteString(w, text[:cuts[n-1]])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, text)
	}
}

const resultsPath = "/v1/messages/batches/msgbatch_1/results"

func TestTheResultsOfABatchAreBookedOnceWhenTheyAreFetched(t *testing.T) {
	text := outcome("a", "claude-sonnet-4-5", 100, 10, "") + outcome("b", "claude-opus-4-8", 10, 2, strings.Repeat("long ", 1_000_000)) +
		`{"custom_id":"c","result":{"type":"errored","error":{"type":"error"}}}` + "\n" + outcome("d", "claude-sonnet-4-5", 200, 20, "") + outcome("e", "claude-unheard-of-9", 1, 1, "")
	const sonnet, opus = (300*3000 + 30*15000) / 2, (10*5000 + 2*25000) / 2
	for _, policy := range []string{"deadline", "compatible"} {
		inBubble(t, results(text, 300, 400_000, len(text)-5), func(c *claude.Config) { c.Retry.Policy = policy }, func(t *testing.T, st *stage) {
			whole := 0
			for i := range 6 { // three are cut, three are whole
				switch r := st.send("GET", resultsPath, "", nil); {
				case r.err == nil && r.body == text:
					whole++
				case !strings.HasPrefix(text, r.body):
					t.Errorf("fetch %d: %d bytes that are not the API's", i, len(r.body))
				}
			}
			if whole != 3 {
				t.Errorf("%d were whole", whole)
			}
			var paid, tokens int64
			for _, x := range st.book.pages(t, 6) {
				paid += x.GenAI.CostNanoUSD
				tokens += x.GenAI.InputTokens
			}
			s := st.Stats().Cost
			if want := int64(sonnet + opus); paid != want || math.Round(s.Dollars*1e9) != float64(want) || tokens != 311 || s.Unpriced["claude-unheard-of-9"] != 1 {
				t.Errorf("%d paid, want %d; %d tokens, %+v", paid, want, tokens, s)
			}
			for _, l := range s.Models {
				if want := map[string]int64{"claude-sonnet-4-5": 2, "claude-opus-4-8": 1}[l.Name]; l.Calls != want {
					t.Errorf("%+v", l)
				}
			}
		})
	}
}

func TestABatchIsBookedToWhomItWasMadeForAndSoOverARestart(t *testing.T) {
	dir := t.TempDir()
	made := says(200, `{"id":"msgbatch_1","type":"message_batch","results_url":null}`)
	text := outcome("a", "claude-sonnet-4-5", 1000, 0, "")
	api := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			made(w, r)
			return
		}
		results(text)(w, r)
	}
	edit := func(c *claude.Config) { patient(c); c.Spend.Daily = 0.001 }
	inBubbleIn(t, dir, http.HandlerFunc(api), edit, func(t *testing.T, st *stage) {
		if r := st.send("POST", "/v1/messages/batches", `{"requests":[]}`, nil); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	})
	inBubbleIn(t, dir, http.HandlerFunc(api), edit, func(t *testing.T, st *stage) {
		st.send("GET", resultsPath, "", nil)
		if s := st.Stats(); s.SpentToday != 0.0015 || s.Cost.Models[0].Color != "unknown" {
			t.Errorf("%+v", s.Cost)
		}
		if r := st.send("POST", "/v1/messages/batches", `{"requests":[]}`, nil); r.status != 402 {
			t.Errorf("beyond the ceiling a batch was made: %d", r.status)
		}
	})
	inBubbleIn(t, dir, http.HandlerFunc(api), edit, func(t *testing.T, st *stage) {
		st.send("GET", resultsPath, "", nil)
		if s := st.Stats(); s.SpentToday != 0.0015 || s.Cost.Dollars != 0 {
			t.Errorf("%v was booked again", s.Cost)
		}
	})
}

func TestABatchIsBookedToTheUserWhoMadeItNotToTheOneWhoFetchesIt(t *testing.T) {
	st, _, _, as := gated(t, func(*limits.Config) {}, patient)
	r := st.send("POST", "/v1/messages/batches", `{"requests":[{"custom_id":"a","params":`+hello+`}]}`, as("ann", "w1"))
	_, id, _ := strings.Cut(r.body, `"id":"`)
	id, _, _ = strings.Cut(id, `"`)
	st.book.pages(t, 1)
	if r := st.send("GET", "/v1/messages/batches/"+id+"/results", "", as("bob", "w2")); r.status != 200 || !strings.Contains(r.body, "succeeded") {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if x := st.book.last(t, 2); x.User != "bob" || x.GenAI.CostNanoUSD == 0 || x.GenAI.Model != "claude-sonnet-5" {
		t.Errorf("%+v", x.GenAI)
	}
	if s := st.Stats().Cost; len(s.Users) != 1 || s.Users[0].Name != "ann" || s.Workspaces[0].Name != "w1" || s.Users[0].Calls != 1 {
		t.Errorf("%+v", s)
	}
}

// The SDKs in TypeScript and Python fetch results from where results_url says.
func TestResultsURLLeadsHere(t *testing.T) {
	for _, where := range []string{"here", "direct"} {
		fake := claudetest.New(claudetest.Options{Gzip: true})
		st := start(t, setup{upstream: fake.Start(t), colors: []string{"green"}, edit: func(c *claude.Config) { patient(c); c.Batches.Results = where }})
		own := st.url + "/@green"
		sdk := client(own)
		b, err := sdk.Messages.Batches.New(t.Context(), anthropic.MessageBatchNewParams{Requests: []anthropic.MessageBatchNewParamsRequest{{
			CustomID: "one", Params: anthropic.MessageBatchNewParamsRequestParams{Model: "claude-sonnet-5", MaxTokens: 9, Messages: ask("hi").Messages},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		list, err := sdk.Messages.Batches.List(t.Context(), anthropic.MessageBatchListParams{})
		if err != nil {
			t.Fatal(err)
		}
		base := map[string]string{"here": own, "direct": fake.URL()}[where]
		for _, url := range []string{b.ResultsURL, list.Data[0].ResultsURL} {
			if url != base+"/v1/messages/batches/"+b.ID+"/results" {
				t.Errorf("%s: %s", where, url)
			}
		}
		r := send(t, st.http, "GET", b.ResultsURL, "", func(r *http.Request) { r.Header.Set("Accept-Encoding", "br, gzip") })
		if z, err := gzip.NewReader(strings.NewReader(r.body)); err != nil {
			t.Error(err)
		} else if text, err := io.ReadAll(z); err != nil || !strings.Contains(string(text), `"custom_id":"one"`) {
			t.Errorf("%v %s", err, text)
		}
		if where == "here" {
			all := st.book.pages(t, 3) // in any order: each connection writes down its own
			if !slices.ContainsFunc(all, func(x *telemetry.Exchange) bool { return x.Color == "green" && x.GenAI.CostNanoUSD > 0 }) {
				t.Errorf("no fetch was booked: %+v", all)
			}
		}
	}
}

func TestATransportBooksBatchesToo(t *testing.T) {
	fake := claudetest.New(claudetest.Options{})
	url := fake.Start(t)
	transport := &claude.Transport{Dir: t.TempDir()}
	at := &http.Client{Transport: transport}
	r := send(t, at, "POST", url+"/v1/messages/batches", `{"requests":[{"custom_id":"a","params":`+hello+`}]}`, nil)
	_, id, _ := strings.Cut(r.body, `"id":"`)
	id, _, _ = strings.Cut(id, `"`)
	for range 2 {
		if r := send(t, at, "GET", url+"/v1/messages/batches/"+id+"/results", "", nil); r.status != 200 || !strings.Contains(r.body, "succeeded") {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	if s := transport.Stats().Cost; len(s.Models) != 1 || s.Models[0].Calls != 1 || s.Models[0].Dollars == 0 {
		t.Errorf("%+v", s)
	}
	if err := transport.Close(); err != nil {
		t.Error(err)
	}
}

func TestResultsThatAreCutByTheirClientAreBookedAsFarAsTheyCame(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-jsonl")
		for i := 0; r.Context().Err() == nil; i++ {
			_, _ = io.WriteString(w, outcome(fmt.Sprint(i), "claude-sonnet-4-5", 2, 0, "text"))
			_ = http.NewResponseController(w).Flush()
			_ = sleep(r.Context(), time.Second)
		}
	}
	inBubble(t, http.HandlerFunc(endless), patient, func(t *testing.T, st *stage) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", st.url+resultsPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := st.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(res.Body, make([]byte, 5*len(outcome("1", "claude-sonnet-4-5", 2, 0, "text")))); err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		x := st.book.last(t, 1)
		if g := x.GenAI; x.Code != "client_gone" || g.InputTokens < 10 || g.InputTokens > 14 || g.CostNanoUSD != g.InputTokens*1500 {
			t.Errorf("%s %+v", x.Code, g)
		}
	})
}
