package claude_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/retry"
)

// calls is how many calls each seed of a simulation makes, and seeds how many there
// are: go test ./claude -run Simulated -calls 100000 -seeds 10 -v
var (
	calls = flag.Int("calls", 2000, "simulated calls per seed")
	seeds = flag.Int("seeds", 2, "seeds per simulation")
)

// world is a Claude API in memory and in virtual time, without a network: the whole
// engine in front of it is the real one.
type world struct {
	mu       sync.Mutex
	rng      *rand.Rand
	begun    time.Time
	rate     float64                     // of calls that fail
	mid      float64                     // of these, those that fail within the stream
	down     func(at time.Duration) bool // whether all fail
	work     time.Duration               // median length of an answer
	attempts atomic.Int64
	vain     atomic.Int64 // attempts made while all fail
	came     atomic.Int64 // calls made then

	capacity func(at time.Duration) float64 // answers a second; nil: no bound
	level    float64                        // of the second's capacity
	seen     time.Time

	perMinute float64                        // requests, as the key's rate limit; 0: no limit
	left      float64                        // of what a second brings: no more can be saved up
	limited   atomic.Int64                   // attempts that it refused
	demand    func(at time.Duration) float64 // calls a second; nil: what the simulation says
	deadline  time.Duration                  // of each call; 0: none
}

// RoundTrip answers a message, or fails in the way that the dice say.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.attempts.Add(1)
	body, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	fails, within, at, slow := w.rng.Float64() < w.rate, w.rng.Float64() < w.mid, w.rng.IntN(12), 0.3+1.4*w.rng.Float64()
	w.mu.Unlock()
	if w.isDown() {
		w.vain.Add(1)
		fails = true
	}
	if w.capacity != nil && !w.take() {
		fails = true
	}
	streams := strings.Contains(string(body), `"stream":true`)
	limits, ok := w.allow()
	if !ok {
		w.limited.Add(1)
		limits["Retry-After"] = []string{"1"}
		return answer(429, `{"type":"error","error":{"type":"rate_limit_error","message":"m"}}`, nil, limits), nil
	}
	if fails && (!within || !streams) {
		return answer(529, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`, nil, nil), nil
	}
	if !streams {
		if err := sleep(r.Context(), time.Duration(float64(w.work)*slow)); err != nil {
			return nil, err
		}
		return answer(200, `{"type":"message","stop_reason":"end_turn"}`, nil, limits), nil
	}
	if !fails {
		at = 100
	}
	return answer(200, "", &telling{ctx: r.Context(), said: spoken(string(body)), until: at, pause: time.Duration(float64(w.work) * slow / 12)}, limits), nil
}

func (w *world) isDown() bool { return w.down != nil && w.down(time.Since(w.begun)) }

// take uses up a part of the capacity: all of what an answer costs, or, without
// enough for that, what a refusal costs, which is 0.3 of it.
func (w *world) take() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	rate := w.capacity(now.Sub(w.begun))
	w.level = min(w.level+rate*now.Sub(w.seen).Seconds(), rate)
	w.seen = now
	if w.level >= 1 {
		w.level--
		return true
	}
	w.level = max(w.level-0.3, -rate)
	return false
}

// allow takes one request off the key's limit and says how that stands.
func (w *world) allow() (http.Header, bool) {
	if w.perMinute == 0 {
		return nil, true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	second := w.perMinute / 60
	if w.seen.IsZero() {
		w.left = second
	}
	w.left = min(w.left+second*now.Sub(w.seen).Seconds(), second)
	w.seen = now
	ok := w.left >= 1
	if ok {
		w.left--
	}
	return http.Header{
		"Anthropic-Ratelimit-Requests-Limit":     {fmt.Sprint(int(w.perMinute))},
		"Anthropic-Ratelimit-Requests-Remaining": {fmt.Sprint(int(w.left))},
	}, ok
}

func answer(status int, body string, stream io.Reader, limits http.Header) *http.Response {
	h := http.Header{"Content-Type": {"application/json"}}
	maps.Copy(h, limits)
	if stream == nil {
		stream = strings.NewReader(body)
	} else {
		h.Set("Content-Type", "text/event-stream")
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(stream), ContentLength: -1}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// script is what every answer says; each word is unlike all others.
var script = strings.Split("alpha1 bravo2 charlie3 delta4 echo5 foxtrot6 golf7 hotel8 india9 juliett10", " ")

// spoken is how many words a request says have been said.
func spoken(body string) int {
	n := 0
	if i := strings.Index(body, `"role":"assistant"`); i > 0 {
		for n < len(script) && strings.Contains(body[i:], script[n]) {
			n++
		}
	}
	return n
}

// telling is a stream of events, which breaks after until of them.
type telling struct {
	ctx   context.Context
	said  int
	sent  int
	until int
	pause time.Duration
	left  string
}

func (s *telling) Read(p []byte) (int, error) {
	if s.left == "" {
		if err := sleep(s.ctx, s.pause); err != nil {
			return 0, err
		}
		if s.sent == s.until {
			s.left = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n"
		} else if s.left = s.event(); s.left == "" {
			return 0, io.EOF
		}
		s.sent++
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

func (s *telling) event() string {
	switch words := len(script) - s.said; {
	case s.sent == 0:
		return "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":3}}}\n\n" +
			"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
	case s.sent <= words:
		return fmt.Sprintf("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":%q}}\n\n", script[s.said+s.sent-1])
	case s.sent == words+1:
		return "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n" +
			"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":10}}\n\n" +
			"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	}
	return ""
}

// verdicts is what came of a simulation.
type verdicts struct{ calls, failed, attempts, came, vain, limited int64 }

func (v verdicts) String() string {
	return fmt.Sprintf("%d calls, %d failed (%.4f%%), %.3f attempts per call", v.calls, v.failed, 100*float64(v.failed)/float64(v.calls), float64(v.attempts)/float64(v.calls))
}

// simulate makes two calls a second, at random, through a [claude.Transport].
func simulate(t *testing.T, n int, policy *claude.Policy, streams bool, make func(seed uint64) *world) (v verdicts) {
	return simulateAt(t, 2, n, policy, streams, make)
}

func simulateAt(t *testing.T, rate float64, n int, policy *claude.Policy, streams bool, make func(seed uint64) *world) (v verdicts) {
	for seed := range uint64(*seeds) {
		synctest.Test(t, func(t *testing.T) {
			w := make(seed)
			w.rng, w.begun = rand.New(rand.NewPCG(seed, 1)), time.Now()
			tr := &claude.Transport{Base: w, Policy: policy}
			arrivals := rand.New(rand.NewPCG(seed, 2))
			body := strings.Replace(helloS, "sonnet-5", "sonnet-4-5", 1)
			if !streams {
				body = hello
			}
			var failed atomic.Int64
			var wg sync.WaitGroup
			for range n {
				w.rest(arrivals, rate)
				if w.isDown() {
					w.came.Add(1)
				}
				wg.Go(func() {
					if err := oneCall(t.Context(), tr, body, streams, w.deadline); err != nil {
						failed.Add(1)
					}
				})
			}
			wg.Wait()
			v.calls, v.failed, v.attempts = v.calls+int64(n), v.failed+failed.Load(), v.attempts+w.attempts.Load()
			v.came, v.vain = v.came+w.came.Load(), v.vain+w.vain.Load()
			v.limited += w.limited.Load()
		})
	}
	return v
}

// rest waits until the next call comes.
func (w *world) rest(dice *rand.Rand, rate float64) {
	for {
		time.Sleep(time.Duration(dice.ExpFloat64() * float64(time.Second) / rate))
		if w.demand == nil || dice.Float64()*rate < w.demand(time.Since(w.begun)) {
			return
		}
	}
}

func oneCall(ctx context.Context, tr *claude.Transport, body string, streams bool, deadline time.Duration) error {
	req, err := http.NewRequestWithContext(ctx, "POST", "http://claude.test/v1/messages", strings.NewReader(body))
	if err != nil {
		return err
	}
	if deadline > 0 {
		req.Header.Set("Mainstay-Deadline", deadline.String())
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != 200 || !streams {
		if res.StatusCode != 200 {
			return fmt.Errorf("%d", res.StatusCode)
		}
		return nil
	}
	m, err := read(string(got))
	if err == nil && m.blocks[0] != "text:"+strings.Join(script, "") {
		err = fmt.Errorf("%q", m.blocks)
	}
	return err
}

// every is an outage of a length, again and again.
func every(period, length time.Duration) func(time.Duration) bool {
	return func(at time.Duration) bool { return at > length && at%period < length }
}

// ofSDK is what the official SDKs do by themselves: two retries after half a second and
// a second, less up to a quarter.
func ofSDK() *claude.Policy {
	return &retry.Policy{Max: 2, Base: 500 * time.Millisecond, Cap: 8 * time.Second, Jitter: 0.25}
}

func TestSimulatedCallsOfTheDefaultPolicyDoNotFail(t *testing.T) {
	compatible := claude.Compatible()
	for _, c := range []struct {
		name    string
		streams bool
		make    func(uint64) *world
	}{
		{"json, 5% faults", false, func(uint64) *world { return &world{rate: 0.05, work: 3 * time.Second} }},
		{"json, 30 s outage each 15 min", false, func(uint64) *world {
			return &world{rate: 0.005, work: 3 * time.Second, down: every(15*time.Minute, 30*time.Second)}
		}},
		{"json, 60 s outage each 15 min", false, func(uint64) *world {
			return &world{rate: 0.005, work: 3 * time.Second, down: every(15*time.Minute, time.Minute)}
		}},
		{"streams, 5% faults, 65% of them within", true, func(uint64) *world { return &world{rate: 0.05, mid: 0.65, work: 3 * time.Second} }},
		{"streams, 30 s outage each 15 min", true, func(uint64) *world {
			return &world{rate: 0.005, mid: 0.65, work: 3 * time.Second, down: every(15*time.Minute, 30*time.Second)}
		}},
		{"streams, 60 s outage each 15 min", true, func(uint64) *world {
			return &world{rate: 0.005, mid: 0.65, work: 3 * time.Second, down: every(15*time.Minute, time.Minute)}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := simulate(t, *calls, nil, c.streams, c.make)
			t.Logf("deadline:   %s", v)
			t.Logf("compatible: %s", simulate(t, min(*calls, 10_000), &compatible, c.streams, c.make))
			t.Logf("an SDK's:   %s", simulate(t, min(*calls, 10_000), ofSDK(), c.streams, c.make))
			if v.failed*10_000 >= v.calls {
				t.Errorf("%d of %d failed, 0.01%% or more", v.failed, v.calls)
			}
			if v.attempts*100 > v.calls*115 {
				t.Errorf("%d attempts for %d calls", v.attempts, v.calls)
			}
		})
	}
}

// While Claude is down no more is tried than comes, but for one retry: the one that tells a
// call that failed from an outage. It is a tenth of what comes where ten calls come while
// Claude is down, and more where fewer do.
func TestASimulatedOutageMeetsNextToNoRetries(t *testing.T) {
	for rate, most := range map[float64]int64{0.05: 150, 0.1: 120, 0.25: 110, 0.5: 110, 1: 110, 2: 110, 20: 110} {
		t.Run(fmt.Sprint(rate, " calls a second"), func(t *testing.T) {
			w := func(uint64) *world {
				return &world{work: 3 * time.Second, down: every(10*time.Minute, time.Minute)}
			}
			v := simulateAt(t, rate, max(*calls, int(rate*13*60)), nil, false, w)
			t.Logf("%s; in the outages %d calls came, and %d attempts were made (%.3f per call)", v, v.came, v.vain, float64(v.vain)/float64(v.came))
			if v.failed != 0 {
				t.Errorf("%d of %d failed", v.failed, v.calls)
			}
			if v.came == 0 || v.vain*100 > v.came*most {
				t.Errorf("%d attempts in the outages for %d calls", v.vain, v.came)
			}
		})
	}
}

// Bursts beyond the key's own limit, whose mean is within it, wait in line.
func TestASimulatedBurstBeyondTheOwnLimitIsPaced(t *testing.T) {
	compatible := claude.Compatible()
	bursts := func(uint64) *world {
		return &world{work: 3 * time.Second, perMinute: 1000, deadline: time.Minute, demand: func(at time.Duration) float64 {
			if at%time.Minute > 54*time.Second {
				return 80
			}
			return 8
		}}
	}
	v := simulateAt(t, 80, 5*2*912, nil, false, bursts)
	t.Logf("deadline:   %s, %d refused", v, v.limited)
	c := simulateAt(t, 80, 5*2*912, &compatible, false, bursts)
	t.Logf("compatible: %s, %d refused", c, c.limited)
	c = simulateAt(t, 80, 5*2*912, ofSDK(), false, bursts)
	t.Logf("an SDK's:   %s, %d refused", c, c.limited)
	if v.failed != 0 || v.limited != 0 {
		t.Errorf("%d of %d failed, and %d attempts were refused", v.failed, v.calls, v.limited)
	}
}

// An overload feeds itself: with compatible it never ends. With deadline it does, and
// of the calls that it met none fails.
func TestASimulatedOverloadIsRiddenOut(t *testing.T) {
	compatible := claude.Compatible()
	overload := func(uint64) *world {
		return &world{work: time.Second, capacity: func(at time.Duration) float64 {
			if at > 30*time.Second && at < time.Minute {
				return 2
			}
			return 12
		}}
	}
	v := simulateAt(t, 10, 6000, nil, false, overload)
	t.Logf("deadline:   %s", v)
	t.Logf("compatible: %s", simulateAt(t, 10, 6000, &compatible, false, overload))
	t.Logf("an SDK's:   %s", simulateAt(t, 10, 6000, ofSDK(), false, overload))
	if v.failed != 0 {
		t.Errorf("%d of %d failed", v.failed, v.calls)
	}
	if v.attempts*10 > v.calls*11 {
		t.Errorf("%d attempts for %d calls", v.attempts, v.calls)
	}
}
