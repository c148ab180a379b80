package claude_test

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
)

// dear is an answer that costs a tenth of a dollar.
var dear = says(200, `{"type":"message","model":"claude-sonnet-4-5-20250929","usage":{"input_tokens":5000,"cache_creation_input_tokens":2000,"cache_creation":{"ephemeral_5m_input_tokens":1000,"ephemeral_1h_input_tokens":1000},"cache_read_input_tokens":2500,"output_tokens":5000,"service_tier":"standard"}}`)

const dearNano = 5000*3000 + 1000*3750 + 1000*6000 + 2500*300 + 5000*15000

func TestACallIsBookedWithWhatItCost(t *testing.T) {
	unknown := says(200, `{"type":"message","model":"claude-unheard-of-9","usage":{"input_tokens":1,"output_tokens":1}}`)
	batch := says(200, `{"type":"message","model":"claude-sonnet-4-5","usage":{"input_tokens":2,"output_tokens":0,"service_tier":"batch"}}`)
	inBubble(t, answers(dear, unknown, batch), func(c *claude.Config) { patient(c); c.Recovery.Aggregate = false }, func(t *testing.T, st *stage) {
		st.post(hello)
		if x := st.book.last(t, 1); x.GenAI.CostNanoUSD != dearNano || x.GenAI.Unpriced {
			t.Errorf("%d, want %d", x.GenAI.CostNanoUSD, dearNano)
		}
		st.post(hello)
		if x := st.book.last(t, 2); x.GenAI.CostNanoUSD != 0 || !x.GenAI.Unpriced || !strings.Contains(st.logs.String(), "claude-unheard-of-9") {
			t.Errorf("%+v", x.GenAI)
		}
		st.post(hello)
		if x := st.book.last(t, 3); x.GenAI.CostNanoUSD != 3000 {
			t.Errorf("%+v", x.GenAI)
		}
		s := st.Stats()
		if math.Round(s.Cost.Dollars*1e9) != dearNano+3000 || s.Cost.Unpriced["claude-unheard-of-9"] != 1 || !strings.Contains(s.Summary(), "1 models have no price") {
			t.Errorf("%+v %s", s.Cost, s.Summary())
		}
	})
}

// A search of the web costs a cent, fast mode what its model's price says; both by what
// the answer tells.
func TestSearchesAndFastModeAreBooked(t *testing.T) {
	searched := says(200, `{"type":"message","model":"claude-sonnet-4-5","usage":{"input_tokens":100,"output_tokens":10,"server_tool_use":{"web_search_requests":3,"web_fetch_requests":2}}}`)
	fast := says(200, `{"type":"message","model":"claude-opus-5","usage":{"input_tokens":100,"output_tokens":10,"speed":"fast"}}`)
	unknown := says(200, `{"type":"message","model":"claude-opus-4-8","usage":{"input_tokens":100,"output_tokens":10,"speed":"fast"}}`)
	inBubble(t, answers(searched, fast, unknown), func(c *claude.Config) { patient(c); c.Recovery.Aggregate = false }, func(t *testing.T, st *stage) {
		for i, want := range []int64{100*3000 + 10*15000 + 3*10_000_000, 2 * (100*5000 + 10*25000), 100*5000 + 10*25000} {
			st.post(hello)
			if x := st.book.last(t, i+1); x.GenAI.CostNanoUSD != want {
				t.Errorf("%d, want %d", x.GenAI.CostNanoUSD, want)
			}
		}
	})
}

func TestAStreamThatItsClientLeavesIsBookedAsFarAsItWent(t *testing.T) {
	event := func(name, data string) string { return "event: " + name + "\ndata: " + data + "\n\n" }
	h := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, event("message_start", `{"type":"message_start","message":{"model":"claude-sonnet-4-5","usage":{"input_tokens":100,"output_tokens":1}}}`)+
			event("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)+
			event("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"`+strings.Repeat("word ", 80)+`"}}`))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	inBubble(t, http.HandlerFunc(h), patient, func(t *testing.T, st *stage) {
		req, err := http.NewRequestWithContext(t.Context(), "POST", st.url+"/v1/messages", strings.NewReader(helloS))
		if err != nil {
			t.Fatal(err)
		}
		res, err := st.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(res.Body, make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		x := st.book.last(t, 1)
		if g := x.GenAI; g.OutputTokens < 95 || g.OutputTokens > 115 || g.CostNanoUSD != 100*3000+g.OutputTokens*15000 {
			t.Errorf("%s %+v", x.Code, g)
		}
	})
}

func TestFiftyCallsAtOnceStopWithinOneOfTheDailyCeilingAndARestartRemembers(t *testing.T) {
	dir := t.TempDir()
	edit := func(c *claude.Config) { patient(c); c.Spend.Daily = 2; c.Recovery.Aggregate = false }
	inBubbleIn(t, dir, answers(dear), edit, func(t *testing.T, st *stage) {
		var mu sync.Mutex
		codes := map[string]int{}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				r := st.post(`{"model":"claude-sonnet-4-5","max_tokens":7000,"messages":[{"role":"user","content":"hello"}]}`)
				mu.Lock()
				defer mu.Unlock()
				codes[r.head.Get("Mainstay-Code")]++
				if r.status != 200 && (r.status != 402 || parseError(t, r.body).Error.Type != "billing_error" || r.head.Get("X-Should-Retry") != "false") {
					t.Errorf("%d %v %s", r.status, r.head, r.body)
				}
			})
		}
		wg.Wait()
		if codes[""] != 20 || codes["over_budget"] != 30 { // 20 cost 2.01 dollars
			t.Errorf("%v", codes)
		}
		if n := strings.Count(st.logs.String(), "claude.spend.daily allows for today"); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
	inBubbleIn(t, dir, answers(dear), edit, func(t *testing.T, st *stage) {
		if r := st.post(hello); r.status != 402 {
			t.Errorf("after a restart: %d", r.status)
		}
		if r := st.send("GET", "/v1/models", "", nil); r.status != 200 {
			t.Errorf("what costs nothing: %d", r.status)
		}
	})
}

// Some answers are as long as they may be, most are a hundredth of that.
func TestAnswersOfAllLengthsStopWithinOneCallOfTheCeiling(t *testing.T) {
	var n atomic.Int64
	odd := func(w http.ResponseWriter, r *http.Request) {
		tokens := 100
		if n.Add(1)%7 == 0 {
			tokens = 10_000
		}
		if sleep(r.Context(), time.Second) == nil {
			says(200, fmt.Sprintf(`{"type":"message","model":"claude-sonnet-4-5","stop_reason":"end_turn","usage":{"input_tokens":10,"output_tokens":%d}}`, tokens))(w, r)
		}
	}
	inBubble(t, http.HandlerFunc(odd), func(c *claude.Config) { patient(c); c.Spend.Daily = 1; c.Recovery.Aggregate = false }, func(t *testing.T, st *stage) {
		var good, refused atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 20 {
					switch r := st.post(`{"model":"claude-sonnet-4-5","max_tokens":10000,"messages":[{"role":"user","content":"hello"}]}`); r.status {
					case 200:
						good.Add(1)
					case 402:
						refused.Add(1)
					default:
						t.Errorf("%d %s", r.status, r.body)
					}
				}
			})
		}
		wg.Wait()
		const one = 0.151
		if s := st.Stats(); s.SpentToday > 1+one || s.SpentToday < 1 || good.Load() < 10 || refused.Load() == 0 {
			t.Errorf("%v spent by %d calls, %d refused", s.SpentToday, good.Load(), refused.Load())
		}
	})
}
