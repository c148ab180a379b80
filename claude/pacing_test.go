package claude_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
)

// limited says that a key has so many requests a minute, and none left.
var limited = says(200, `{"type":"message","model":"claude-sonnet-5","usage":{"input_tokens":3,"output_tokens":5}}`,
	"Anthropic-Ratelimit-Requests-Limit", "6", "Anthropic-Ratelimit-Requests-Remaining", "0")

func TestCallsBeyondTheRateLimitWaitInLineAndOtherKeysDoNot(t *testing.T) {
	inBubble(t, answers(limited), func(c *claude.Config) { patient(c); c.Pacing.Headroom = 0 }, func(t *testing.T, st *stage) {
		st.post(hello)
		began := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { st.post(hello) })
		}
		time.Sleep(time.Second)
		s := st.Stats()
		if s.Attempts != 1 || len(s.Pacing) != 1 || s.Pacing[0].Waiting != 3 || s.Pacing[0].Oldest != 1 || !strings.Contains(s.Summary(), "3 calls wait for a rate limit; ") {
			t.Errorf("%+v: %s", s, s.Summary())
		}
		levels := map[string]float64{}
		for _, l := range st.Levels() {
			if len(l.Labels) == 0 || l.Labels[0].Value == "requests" {
				levels[l.Name] = l.Value
			}
		}
		if levels["mainstay_claude_queue_depth"] != 3 || levels["mainstay_claude_queue_oldest_seconds"] != 1 || levels["mainstay_claude_limit_used_ratio"] < 0.8 {
			t.Errorf("%v", levels)
		}
		other := func(r *http.Request) { r.Header.Set("X-Api-Key", "another") }
		if r := st.send("POST", "/v1/messages", hello, other); r.status != 200 || time.Since(began) != time.Second {
			t.Errorf("another key: %d after %v", r.status, time.Since(began))
		}
		wg.Wait()
		if d := time.Since(began); d != 30*time.Second {
			t.Errorf("three calls at six a minute took %v", d)
		}
		if x := st.book.last(t, 5); x.Waited != 30*time.Second || x.Tries != 1 {
			t.Errorf("%+v", x)
		}
	})
}

func TestACallThatTheRateLimitLeavesNoRoomForEndsWithOneErrorInTime(t *testing.T) {
	inBubble(t, answers(limited), patient, func(t *testing.T, st *stage) {
		st.post(hello)
		began := time.Now()
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "5s") })
		after, _ := strconv.Atoi(r.head.Get("Retry-After"))
		if time.Since(began) >= 5*time.Second || r.status != 429 || parseError(t, r.body).Error.Type != "rate_limit_error" || after < 5 || after > 10 ||
			r.head.Get("X-Should-Retry") != "false" || r.head.Get("Mainstay-Code") != "limited" {
			t.Errorf("%d after %v: %v %s", r.status, time.Since(began), r.head, r.body)
		}
		if s := st.Stats(); s.Attempts != 1 || s.Pacing[0].Waiting != 0 || s.Pacing[0].Flying != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAFullLineRefusesAtOnceAndPacingCanBeTurnedOff(t *testing.T) {
	inBubble(t, answers(limited), func(c *claude.Config) { patient(c); c.Pacing.Queue = 1 }, func(t *testing.T, st *stage) {
		st.post(hello)
		var wg sync.WaitGroup
		wg.Go(func() { st.post(hello) })
		time.Sleep(time.Second)
		began := time.Now()
		if r := st.post(hello); r.status != 429 || time.Since(began) != 0 {
			t.Errorf("%d after %v", r.status, time.Since(began))
		}
		wg.Wait()
	})
	inBubble(t, answers(limited), func(c *claude.Config) { patient(c); c.Pacing.Enabled = false }, func(t *testing.T, st *stage) {
		began := time.Now()
		for range 20 {
			st.post(hello)
		}
		if s := st.Stats(); time.Since(began) != 0 || len(s.Pacing) != 0 {
			t.Errorf("%v %+v", time.Since(began), s)
		}
	})
}

func TestThePriorityOfACallGoesNoFurther(t *testing.T) {
	seen := make(chan http.Header, 1)
	h := func(w http.ResponseWriter, r *http.Request) { seen <- r.Header; fine(w, r) }
	inBubble(t, http.HandlerFunc(h), patient, func(t *testing.T, st *stage) {
		st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Priority", "low") })
		if got := (<-seen).Get("Mainstay-Priority"); got != "" {
			t.Error("it went upstream")
		}
	})
}

// office is an API that lets an organisation make a number of requests a minute,
// whichever of its keys they come with.
type office struct {
	mu      sync.Mutex
	left    float64
	at      time.Time
	refused int
	tells   bool // whose key it is
}

func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const perMinute = 60
	_, _ = io.Copy(io.Discard, r.Body)
	o.mu.Lock()
	now := time.Now()
	if o.at.IsZero() {
		o.left, o.at = 10, now
	}
	o.left, o.at = min(o.left+now.Sub(o.at).Seconds()*perMinute/60, 10), now
	ok := o.left >= 1
	if ok {
		o.left--
	} else {
		o.refused++
	}
	h := w.Header()
	h.Set("Anthropic-Ratelimit-Requests-Limit", strconv.Itoa(perMinute))
	h.Set("Anthropic-Ratelimit-Requests-Remaining", strconv.Itoa(int(o.left)))
	if o.tells {
		h.Set("Anthropic-Organization-Id", "0123-4567")
	}
	o.mu.Unlock()
	if !ok {
		says(429, `{"type":"error","error":{"type":"rate_limit_error","message":"m"}}`, "Retry-After", "1")(w, r)
		return
	}
	fine(w, r)
}

func TestKeysOfOneOrganisationAreNotRefusedForOneAnother(t *testing.T) {
	for name, c := range map[string]struct {
		tells bool
		owner string
		clean bool
	}{
		"nobody says so":   {false, "", false},
		"the answers say":  {true, "", true},
		"the file says so": {false, "acme", true},
	} {
		o := &office{tells: c.tells}
		edit := func(cfg *claude.Config) {
			twoKeys(cfg)
			for i := range cfg.Keys {
				cfg.Keys[i].Owner = c.owner
			}
		}
		inBubble(t, o, edit, func(t *testing.T, st *stage) {
			for i := range 8 { // both keys are heard of
				st.post(prompt(i))
				time.Sleep(2 * time.Second)
			}
			var wg sync.WaitGroup
			for i := range 80 {
				wg.Go(func() {
					if r := st.post(prompt(i)); r.status != 200 {
						t.Errorf("%s: %d", name, r.status)
					}
				})
			}
			wg.Wait()
			t.Logf("%s: %d refused", name, o.refused)
			if c.clean && o.refused > 25 || // the bucket is smaller than its limit, which shows at the first refusals
				len(st.Stats().Pacing) != map[bool]int{true: 1, false: 2}[c.clean] {
				t.Errorf("%s: %d refused, %+v", name, o.refused, st.Stats().Pacing)
			}
		})
	}
}

func TestACallInFastModeKeepsToTheLimitsOfFastMode(t *testing.T) {
	inBubble(t, answers(limited), patient, func(t *testing.T, st *stage) {
		st.post(hello)
		began := time.Now()
		if r := st.post(strings.Replace(hello, "{", `{"speed":"fast",`, 1)); r.status != 200 || time.Since(began) != 0 {
			t.Errorf("%d after %v", r.status, time.Since(began))
		}
		if s := st.Stats().Pacing; len(s) != 2 || s[0].Class+s[1].Class != "sonnet-5sonnet-5 fast" {
			t.Errorf("%+v", s)
		}
	})
}
