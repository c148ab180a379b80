package claude_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/telemetry"
)

const (
	keyA = "sk-first-that-must-not-leave"
	keyB = "sk-second-that-must-not-leave"
)

// locks is an API that answers each key with its own status, 200 if none is set.
type locks struct {
	mu     sync.Mutex
	status map[string]int // by host, or by key
	came   []string       // host, key, body
}

func (l *locks) set(who string, status int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status[who] = status
}

func (l *locks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, _ := io.ReadAll(r.Body)
	key := r.Header.Get("X-Api-Key")
	l.mu.Lock()
	l.came = append(l.came, r.Host+" "+key+" "+string(text))
	status := max(l.status[key], l.status[r.Host])
	l.mu.Unlock()
	if status > 0 {
		says(status, `{"type":"error","error":{"type":"api_error","message":"no"}}`)(w, r)
		return
	}
	fine(w, r)
}

// asked are the keys that were asked with, in order, without repetitions.
func (l *locks) asked() (keys []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.came {
		if key := strings.Fields(line)[1]; !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

func (l *locks) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.came[len(l.came)-1]
}

func twoKeys(c *claude.Config) {
	patient(c)
	c.Recovery.Aggregate = false
	c.Keys = []claude.KeyConfig{{Name: "a", Key: keyA}, {Name: "b", Key: keyB}}
}

func prompt(n int) string {
	return fmt.Sprintf(`{"model":"claude-sonnet-5","max_tokens":64,"system":"%d","messages":[{"role":"user","content":"hello"}]}`, n)
}

// events are the names of the events that the plane told of.
func (st *stage) told(name string) int {
	return strings.Count(st.logs.String(), "event="+name)
}

// newest is the last call that was written down, when none is under way.
func newest(t *testing.T, st *stage) telemetry.GenAI {
	t.Helper()
	waitFor(t, func() bool { return st.Stats().InFlight == 0 && int64(st.book.len()) == st.Stats().Calls })
	st.book.mu.Lock()
	defer st.book.mu.Unlock()
	return st.book.all[len(st.book.all)-1].GenAI
}

// hides fails the test if a key shows anywhere.
func (st *stage) hides(t *testing.T, replies ...reply) {
	t.Helper()
	stats, err := json.Marshal(st.Stats())
	if err != nil {
		t.Fatal(err)
	}
	all := st.logs.String() + string(stats) + st.Stats().Summary() + fmt.Sprint(st.Levels())
	st.book.mu.Lock()
	for _, x := range st.book.all {
		all += fmt.Sprintf("%+v", x)
	}
	st.book.mu.Unlock()
	for _, r := range replies {
		all += fmt.Sprint(r.head, r.body)
	}
	for _, secret := range []string{keyA, keyB} {
		if strings.Contains(all, secret) {
			t.Error("a key shows")
		}
	}
}

func TestAKeyThatIsRefusedIsTakenOutAndTheOthersGoOn(t *testing.T) {
	l := &locks{status: map[string]int{keyA: 401}}
	inBubble(t, l, twoKeys, func(t *testing.T, st *stage) {
		for i := range 40 {
			if r := st.post(prompt(i)); r.status != 200 {
				t.Fatal(r)
			}
		}
		if n := strings.Count(strings.Join(l.came, "\n"), keyA); n != 1 || st.told("key_refused") != 1 {
			t.Errorf("asked %d times, told %d times", n, st.told("key_refused"))
		}
		keys := st.Stats().Routes[0].Keys
		if keys[0].State != "refused" || keys[1].State != "fit" || keys[1].Served != 40 || !strings.Contains(st.Stats().Summary(), "key claude/a refused") {
			t.Errorf("%+v %s", keys, st.Stats().Summary())
		}
		if x := newest(t, st); x.Via != "claude/b" {
			t.Errorf("%+v", x)
		}
		l.set(keyA, 0)
		time.Sleep(6 * time.Minute)
		for i := range 40 {
			st.post(prompt(i))
		}
		if st.told("key_back") != 1 || !slices.Equal(l.asked(), []string{keyA, keyB}) && !slices.Equal(l.asked(), []string{keyB, keyA}) {
			t.Errorf("%d %v", st.told("key_back"), l.asked())
		}
		l.set(keyA, 401)
		l.set(keyB, 401)
		r := st.post(hello)
		if r.status != 401 {
			t.Errorf("%d", r.status)
		}
		st.hides(t, r)
	})
}

func TestWhatIsForbiddenToEveryKeyIsTheCallersOwnDoing(t *testing.T) {
	l := &locks{status: map[string]int{keyA: 403, keyB: 403}}
	inBubble(t, l, twoKeys, func(t *testing.T, st *stage) {
		if r := st.post(hello); r.status != 403 || len(l.came) != 2 || st.told("key_refused") != 0 {
			t.Errorf("%d, %d tries, told %d times", r.status, len(l.came), st.told("key_refused"))
		}
		l.set(keyB, 0)
		for i := range 10 {
			if r := st.post(prompt(i)); r.status != 200 {
				t.Errorf("%d", r.status)
			}
		}
		if st.told("key_refused") != 1 {
			t.Error("a key that is forbidden what another may do stays")
		}
	})
}

func TestTheSamePromptKeepsItsKeyAndFilesHaveOne(t *testing.T) {
	l := &locks{status: map[string]int{}}
	inBubble(t, l, twoKeys, func(t *testing.T, st *stage) {
		for range 5 {
			st.post(hello)
		}
		if keys := l.asked(); len(keys) != 1 {
			t.Error(keys)
		}
		l.came = nil
		st.send("GET", "/v1/files", "", nil)
		for i := range 5 {
			st.post(strings.Replace(prompt(i), `"hello"`, `[{"type":"document","source":{"type":"file","file_id":"f"}}]`, 1))
		}
		if keys := l.asked(); len(keys) != 1 || keys[0] == key {
			t.Error(keys)
		}
		l.set(l.asked()[0], 429)
		for i := range 10 {
			if r := st.post(prompt(i)); r.status != 200 {
				t.Errorf("%d while the limit of one of two keys is used up", r.status)
			}
		}
	})
}

func TestACallThatFailedForGoodOnOneRouteGoesByTheNext(t *testing.T) {
	l := &locks{status: map[string]int{}}
	edit := func(c *claude.Config) {
		patient(c)
		c.Recovery.Aggregate = false
		c.Routes = []claude.RouteConfig{{Name: "backup", Upstream: "http://backup.test", Keys: []claude.KeyConfig{{Name: "a", Key: keyA}}}}
	}
	final := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "claude.test" { // one that no retry can mend
			says(529, `{"type":"error","error":{"type":"overloaded_error","message":"no"}}`, "X-Should-Retry", "false")(w, r)
			return
		}
		l.ServeHTTP(w, r)
	})
	inBubble(t, final, edit, func(t *testing.T, st *stage) {
		r := st.post(hello)
		if r.status != 200 || r.head.Get("Mainstay-Claude-Route") != "backup" || r.head.Get("Mainstay-Attempts") != "2" || newest(t, st).Via != "backup/a" {
			t.Errorf("%d %v %+v", r.status, r.head, newest(t, st))
		}
		st.hides(t, r)
	})
}

func TestAHeldCallTakesAnotherRouteAsSoonAsThatIsBack(t *testing.T) {
	l := &locks{status: map[string]int{"claude.test": 529, "backup.test": 529}}
	edit := func(c *claude.Config) {
		patient(c)
		c.Recovery.Aggregate = false
		c.Routes = []claude.RouteConfig{{Name: "backup", Upstream: "http://backup.test", Keys: []claude.KeyConfig{{Name: "a", Key: keyA}}}}
	}
	inBubble(t, l, edit, func(t *testing.T, st *stage) {
		var all sync.WaitGroup
		began := time.Now()
		for range 20 {
			all.Go(func() {
				r := st.post(hello)
				if took := time.Since(began); r.status != 200 || r.head.Get("Mainstay-Claude-Route") != "backup" || took > 70*time.Second {
					t.Errorf("%d %v after %v", r.status, r.head, took)
				}
			})
		}
		time.Sleep(30 * time.Second)
		l.set("backup.test", 0)
		all.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		if n := len(l.came); n > 20+20+5*40 {
			t.Errorf("%d attempts", n)
		}
	})
}

func TestErrorsNameTheUpstreamThatFailed(t *testing.T) {
	edit := func(c *claude.Config) {
		patient(c)
		c.Recovery.Aggregate = false
		c.Routes = []claude.RouteConfig{{Name: "backup", Upstream: "http://backup.test", Keys: []claude.KeyConfig{{Name: "a", Key: keyA}}}}
	}
	broken := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "claude.test" {
			says(529, `{}`, "X-Should-Retry", "false")(w, r)
			return
		}
		panic(http.ErrAbortHandler)
	})
	inBubble(t, broken, edit, func(t *testing.T, st *stage) {
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "10s") })
		if r.status == 200 || strings.Contains(r.body, "at claude.test") {
			t.Errorf("%d %s", r.status, r.body)
		}
		st.hides(t, r)
	})
}

func TestBodiesThatAreChangedForARouteAreCountedOnceAndGivenBack(t *testing.T) {
	l := &locks{status: map[string]int{"claude.test": 529}}
	edit := func(c *claude.Config) {
		patient(c)
		c.Recovery.Aggregate = false
		c.Limits.Replay, c.Limits.ReplayMemory = 100e3, 160e3
		c.Routes = []claude.RouteConfig{{Name: "backup", Upstream: "http://backup.test", Keys: []claude.KeyConfig{{Name: "a", Key: keyA}}, Models: map[string]string{"*": "claude-haiku-4-5"}}}
	}
	inBubble(t, l, edit, func(t *testing.T, st *stage) {
		small := st.post(hello)
		if small.status != 200 || !strings.Contains(l.last(), "backup.test") || !strings.Contains(l.last(), "claude-haiku-4-5") {
			t.Errorf("%d %s", small.status, l.last())
		}
		large := strings.Replace(hello, "hello", strings.Repeat("x", 90e3), 1)
		r := st.send("POST", "/v1/messages", large, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "5s") })
		if r.status != 529 {
			t.Errorf("%d: the changed copy has no room", r.status)
		}
		if n := st.Stats().ReplayBytes; n != 0 {
			t.Errorf("%d bytes were not given back", n)
		}
	})
}

// named opens what the app forwards: a tier and a step.
type named struct{}

func (named) Open(text string) (identity.Who, string) {
	tier, step, _ := strings.Cut(text, ",")
	return identity.Who{Tier: tier}, step
}

func TestCallersAreMadeContentWithLessByTierAndStep(t *testing.T) {
	fake := &twoHouses{}
	st := start(t, setup{who: named{}, upstream: "http://claude.test", dial: serveOne(t, fake), edit: func(c *claude.Config) {
		patient(c)
		c.Degrade = []claude.DegradeConfig{
			{Tiers: []string{"free"}, Models: map[string]string{"claude-sonnet": "claude-haiku-4-5"}, MaxTokens: 32},
			{Step: "cheaper", MaxTokens: 16},
		}
	}})
	for who, want := range map[string][2]string{
		"free,":        {"claude-haiku-4-5, max_tokens 32", `"claude-haiku-4-5",32`},
		"pro,":         {"", `"claude-sonnet-5",64`},
		"pro,cheaper":  {"max_tokens 16", `"claude-sonnet-5",16`},
		"free,cheaper": {"claude-haiku-4-5, max_tokens 32", `"claude-haiku-4-5",32`},
	} {
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) {
			r.Header.Set(identity.Header, who)
			r.Header.Set("Mainstay-Aggregate", "off")
		})
		if r.status != 200 || r.head.Get("Mainstay-Degraded") != want[0] || !strings.Contains(fake.last(), want[1]) {
			t.Errorf("%s: %d %v %s", who, r.status, r.head, fake.last())
		}
		waitFor(t, func() bool { return st.Stats().InFlight == 0 })
		if got := newest(t, st).Degraded; got != want[0] {
			t.Errorf("%s: the log says %q", who, got)
		}
	}
	if n := st.Stats().ReplayBytes; n != 0 {
		t.Errorf("%d bytes were not given back", n)
	}
}

// serveOne serves h in memory and returns how to get there.
func serveOne(t *testing.T, h http.Handler) claude.Dial {
	t.Helper()
	back := newPipes()
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(back) }()
	t.Cleanup(func() { _ = srv.Shutdown(context.WithoutCancel(t.Context())); _ = srv.Close(); <-done })
	return back.dial
}
