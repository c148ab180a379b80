package simulate

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// world is a Claude API in memory and in virtual time, without a network.
type world struct {
	Scenario
	mu    sync.Mutex
	dice  *rand.Rand
	begun time.Time
	level float64 // of the second's capacity
	left  float64 // of what a second of the key's limit brings: no more can be saved up
	seen  time.Time

	attempts, vain, refused atomic.Int64
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
	fails, within, at, slow := w.dice.Float64() < w.Faults, w.dice.Float64() < w.Midway, w.dice.IntN(12), 0.3+1.4*w.dice.Float64()
	w.mu.Unlock()
	if w.isDown() {
		w.vain.Add(1)
		fails = true
	}
	if w.Capacity != nil && !w.take() {
		fails = true
	}
	streams := strings.Contains(string(body), `"stream":true`)
	limits, ok := w.allow()
	if !ok {
		w.refused.Add(1)
		limits["Retry-After"] = []string{"1"}
		return answer(429, `{"type":"error","error":{"type":"rate_limit_error","message":"m"}}`, nil, limits), nil
	}
	if fails && (!within || !streams) {
		return answer(529, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`, nil, nil), nil
	}
	if !streams {
		if err := sleep(r.Context(), time.Duration(float64(w.Work)*slow)); err != nil {
			return nil, err
		}
		return answer(200, fmt.Sprintf(`{"id":"m","type":"message","content":[{"type":"text","text":%q}],"stop_reason":"end_turn"}`, strings.Join(script, "")), nil, limits), nil
	}
	if !fails {
		at = 100
	}
	return answer(200, "", &telling{ctx: r.Context(), said: spoken(string(body)), until: at, pause: time.Duration(float64(w.Work) * slow / 12)}, limits), nil
}

func (w *world) isDown() bool { return w.Down != nil && w.Down(time.Since(w.begun)) }

// take uses up a part of the capacity: all of what an answer costs, or, without
// enough for that, what a refusal costs, which is 0.3 of it.
func (w *world) take() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	rate := w.Capacity(now.Sub(w.begun))
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
	if w.PerMinute == 0 {
		return nil, true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	second := w.PerMinute / 60
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
		"Anthropic-Ratelimit-Requests-Limit":     {fmt.Sprint(int(w.PerMinute))},
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
		return "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"type\":\"message\",\"content\":[],\"usage\":{\"input_tokens\":3}}}\n\n" +
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
