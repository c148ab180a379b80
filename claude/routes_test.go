package claude_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
)

const backupKey = "sk-backup-that-must-not-leave"

// twoHouses is a Claude that is down until a time, and a backup; it notes what came.
type twoHouses struct {
	mu    sync.Mutex
	until time.Time
	came  []string // host, path, model, max_tokens, the key that was sent
}

func (h *twoHouses) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Model     string
		MaxTokens int `json:"max_tokens"`
	}
	text, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(text, &ask)
	h.mu.Lock()
	line, _ := json.Marshal([]any{r.Host, r.URL.Path, ask.Model, ask.MaxTokens, r.Header.Get("X-Api-Key") + r.Header.Get("Authorization")})
	h.came = append(h.came, string(line))
	down := time.Now().Before(h.until) && (r.Host == "claude.test" && ask.Model != "claude-haiku-4-5")
	h.mu.Unlock()
	if down {
		busy(w, r)
		return
	}
	fine(w, r)
}

func (h *twoHouses) last() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.came[len(h.came)-1]
}

func TestWhileClaudeIsDownTheNextRouteAnswersAndThenClaudeDoesAgain(t *testing.T) {
	h := &twoHouses{}
	edit := func(c *claude.Config) {
		patient(c)
		c.Recovery.Aggregate = false
		c.Routes = []claude.RouteConfig{
			{Name: "small", Models: map[string]string{"claude-sonnet": "claude-haiku-4-5"}, MaxTokens: 32, Tiers: []string{"free"}},
			{Name: "backup", Upstream: "http://backup.test/anthropic/", Keys: []claude.KeyConfig{{Name: "a", Key: backupKey}}, Auth: "bearer"},
		}
	}
	inBubble(t, h, edit, func(t *testing.T, st *stage) {
		if r := st.post(hello); r.status != 200 || r.head.Get("Mainstay-Claude-Route") != "claude" {
			t.Errorf("%d %v", r.status, r.head)
		}
		h.mu.Lock()
		h.until = time.Now().Add(time.Minute)
		h.mu.Unlock()
		atOnce := 0
		for range 20 {
			before := time.Now()
			r := st.post(hello)
			if r.status != 200 || r.head.Get("Mainstay-Claude-Route") != "backup" {
				t.Errorf("%d %v", r.status, r.head)
			}
			// Waits between attempts are drawn at random, so what a call may not have is more of them.
			tries, _ := strconv.Atoi(r.head.Get("Mainstay-Attempts"))
			if tries < 1 || tries > 6 || (tries == 1) != (time.Since(before) == 0) {
				t.Errorf("%d attempts in %v", tries, time.Since(before))
			}
			if tries == 1 {
				atOnce++
			}
			if x := newest(t, st); x.Saved != "route" {
				t.Errorf("saved by %q", x.Saved)
			}
			for _, values := range r.head {
				if strings.Contains(strings.Join(values, " "), backupKey) {
					t.Error("the key is in a header")
				}
			}
		}
		if atOnce < 15 {
			t.Errorf("%d of 20 calls went to the backup at once", atOnce)
		}
		if want := `["backup.test","/anthropic/v1/messages","claude-sonnet-5",64,"Bearer ` + backupKey + `"]`; h.last() != want {
			t.Error(h.last())
		}
		for _, line := range h.came {
			if strings.HasPrefix(line, `["backup`) && strings.Contains(line, key) {
				t.Error("the caller's own key went to the backup")
			}
		}
		time.Sleep(time.Minute)
		st.post(hello)
		time.Sleep(10 * time.Second)
		if r := st.post(hello); r.head.Get("Mainstay-Claude-Route") != "claude" || !strings.Contains(h.last(), key) {
			t.Errorf("%v %s", r.head, h.last())
		}
		if strings.Contains(st.logs.String(), backupKey) || strings.Contains(st.logs.String(), key) {
			t.Error("a key is in the log")
		}
	})
}

func TestADegradedRouteAsksForLessAndNotInTheNameOfOthers(t *testing.T) {
	h := &twoHouses{until: time.Now().Add(100_000 * time.Hour)}
	routes := func(tiers ...string) func(*claude.Config) {
		return func(c *claude.Config) {
			patient(c)
			c.Routes = []claude.RouteConfig{{Name: "small", Models: map[string]string{"claude-sonnet": "claude-haiku-4-5"}, MaxTokens: 32, Tiers: tiers}}
		}
	}
	inBubble(t, h, routes(), func(t *testing.T, st *stage) {
		r := st.post(hello)
		if r.status != 200 || r.head.Get("Mainstay-Claude-Route") != "small" || h.last() != `["claude.test","/v1/messages","claude-haiku-4-5",32,"`+key+`"]` {
			t.Errorf("%d %v %s", r.status, r.head, h.last())
		}
	})
	inBubble(t, h, routes("free"), func(t *testing.T, st *stage) {
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "20s") })
		if r.status != 529 {
			t.Errorf("a caller without the tier: %d %v", r.status, r.head)
		}
	})
}

func TestRoutesThatMakeNoSenseAreToldWithTheirMend(t *testing.T) {
	var c claude.Config
	c.SetDefaults()
	one := []claude.KeyConfig{{Name: "a", Key: "sk-secret with a blank", Weight: -1}, {Name: "a"}}
	c.Listen = "0.0.0.0:8700"
	c.Keys = []claude.KeyConfig{{Name: "so/so", Key: "k"}}
	c.Routes = []claude.RouteConfig{
		{Name: "", Upstream: "ftp://x", Auth: "basic"},
		{Name: "a", Keys: one, MaxTokens: -1},
		{Name: "a", Models: map[string]string{"x": ""}},
		{Name: "claude", Upstream: "https://u:p@h/", Keys: one[:1]},
		{Name: "self", Upstream: "http://localhost:8700/", Keys: one[:1], Models: map[string]string{"y": "a\"b"}},
	}
	c.Degrade = []claude.DegradeConfig{{Step: "warn", MaxTokens: -1}, {}}
	_, err := claude.Compile(c)
	if err == nil {
		t.Fatal("taken")
	}
	if strings.Contains(err.Error(), "sk-secret") {
		t.Error("the key stands in an error")
	}
	for _, want := range []string{
		"keys[0].name", "routes[0].name", "routes[0].upstream", "routes[0].keys", "routes[0].auth", "routes[1].keys", "routes[1]: ", "routes[1].max_tokens",
		"routes[1].keys[0].key", "routes[1].keys[0].weight", "routes[1].keys[1].name", "routes[1].keys[1].key", "routes[2].name", "routes[2].models",
		"routes[3].name", "routes[3].upstream", "routes[4].upstream: leads back", "routes[4].models", "degrade[0].step", "degrade[0].max_tokens", "degrade[1]: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in %v", want, err)
		}
	}
}

func TestARouteWhoseModelCanNotTakeACallIsPassedOver(t *testing.T) {
	h := &twoHouses{until: time.Now().Add(100_000 * time.Hour)}
	edit := func(c *claude.Config) {
		patient(c)
		c.Recovery.Aggregate = false
		c.Routes = []claude.RouteConfig{
			{Name: "small", Models: map[string]string{"claude-sonnet": "claude-haiku-4-5"}},
			{Name: "backup", Upstream: "http://backup.test", Keys: []claude.KeyConfig{{Name: "a", Key: backupKey}}},
		}
	}
	inBubble(t, h, edit, func(t *testing.T, st *stage) {
		for range 3 {
			r := st.post(strings.Replace(hello, `"max_tokens"`, `"thinking":{"type":"adaptive"},"max_tokens"`, 1))
			if r.status != 200 || r.head.Get("Mainstay-Claude-Route") != "backup" {
				t.Errorf("%d %v", r.status, r.head)
			}
		}
		if r := st.post(hello); r.status != 200 || r.head.Get("Mainstay-Claude-Route") != "small" {
			t.Errorf("%d %v", r.status, r.head)
		}
		if st.told("model_unfit") != 1 || !strings.Contains(st.logs.String(), "thinking:adaptive") {
			t.Errorf("told %d times", st.told("model_unfit"))
		}
	})
	inBubble(t, h, func(c *claude.Config) { edit(c); c.Cannot = map[string][]string{"claude-haiku": {}} }, func(t *testing.T, st *stage) {
		r := st.post(strings.Replace(hello, `"max_tokens"`, `"thinking":{"type":"adaptive"},"max_tokens"`, 1))
		if r.head.Get("Mainstay-Claude-Route") != "small" { // the file knows better
			t.Errorf("%d %v", r.status, r.head)
		}
	})
}

// A rate limit that asks for more than the call's patience, and a line that is too long,
// send the call by a route that has limits of its own, and by no other.
func TestAFinalRateLimitMovesToARouteWithOtherLimits(t *testing.T) {
	for name, c := range map[string]struct {
		route claude.RouteConfig
		moves bool
	}{
		"another upstream":             {claude.RouteConfig{Name: "other", Upstream: "http://backup.test", Keys: []claude.KeyConfig{{Name: "a", Key: backupKey}}}, true},
		"another class of models":      {claude.RouteConfig{Name: "other", Models: map[string]string{"claude-sonnet": "claude-haiku-4-5"}}, true},
		"the same class of the models": {claude.RouteConfig{Name: "other", Models: map[string]string{"claude-sonnet-5": "claude-sonnet-5-5"}}, false},
	} {
		limited := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			text, _ := io.ReadAll(r.Body)
			if r.Host == "claude.test" && strings.Contains(string(text), "claude-sonnet") {
				says(429, `{"type":"error","error":{"type":"rate_limit_error","message":"m"}}`, "Retry-After", "7200")(w, r)
				return
			}
			fine(w, r)
		})
		edit := func(cfg *claude.Config) {
			patient(cfg)
			cfg.Recovery.Aggregate = false
			cfg.Routes = []claude.RouteConfig{c.route}
		}
		inBubble(t, limited, edit, func(t *testing.T, st *stage) {
			for range 3 { // the first is refused; the lane is closed to the others
				r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "20s") })
				if r.status == 200 != c.moves || c.moves != (r.head.Get("Mainstay-Claude-Route") == "other") {
					t.Errorf("%s: %d %v", name, r.status, r.head)
				}
			}
		})
	}
}
