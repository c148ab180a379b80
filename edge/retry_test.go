package edge_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/traffic"
)

// withBackup is green with all the weight, and blue standing by.
func withBackup() traffic.Plan {
	p := one("green-2", "green:80")
	p.Targets = append(p.Targets, traffic.Target{ID: "blue-1", Address: "blue:80", Color: "blue", Backup: true})
	return p
}

func (b *bubble) send(t *testing.T, method, body string, headers ...string) (status int, code, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://edge/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := b.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Mainstay-Code"), string(text)
}

func echo(color string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, color, " ", string(b))
	}
}

func TestTheBackupTakesWhatAKilledTargetCannot(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", echo("blue"))
		b.apply(t, withBackup()) // nobody listens on green:80
		for _, method := range []string{"GET", "PUT", "POST", "DELETE", "PATCH"} {
			if status, _, body := b.send(t, method, "precious"); status != 200 || body != "blue precious" {
				t.Errorf("%s: %d %q", method, status, body)
			}
		}
		tries := 0
		for i := range 5 {
			tries += b.ledger.next(t, i).Tries
		}
		if tries != 3*2+2 { // three in a row eject green
			t.Errorf("%d tries for 5 requests", tries)
		}
		b.app(t, "green:80", echo("green"))
		time.Sleep(time.Second)
		for range 3 {
			if _, _, body := b.send(t, "GET", ""); body != "green " {
				t.Errorf("green is back, and %q answered", body)
			}
		}
	})
}

func TestATargetThatBreaksOffCostsOnlyWhatMustNotBeRepeated(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		met := map[string]int{}
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) {
			met[r.Method]++
			io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		})
		b.app(t, "blue:80", echo("blue"))
		for _, tc := range []struct {
			method, body string
			headers      []string
			status       int
		}{
			{"PUT", strings.Repeat("x", 64<<10), nil, 200},
			{"PUT", strings.Repeat("x", 64<<10+1), nil, 502},
			{"GET", "", nil, 200},
			{"POST", "x", nil, 502},
			{"POST", "x", []string{"Idempotency-Key", "1"}, 200},
		} {
			b.apply(t, traffic.Plan{Mode: traffic.Hold}) // forgets what was ejected
			b.apply(t, withBackup())
			status, code, body := b.send(t, tc.method, tc.body, tc.headers...)
			if status != tc.status || status == 200 && body != "blue "+tc.body || status != 200 && code != "target_broke" {
				t.Errorf("%s %v of %d bytes: %d %s", tc.method, tc.headers, len(tc.body), status, code)
			}
		}
		if met["PUT"] != 2 || met["GET"] != 1 || met["POST"] != 2 {
			t.Errorf("green met %v", met)
		}
	})
}

func TestAnAnswerOf500IsTheAnswer(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", echo("blue"))
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "green", 500) })
		b.apply(t, withBackup())
		for i := range 5 {
			if status, _, body := b.send(t, "GET", ""); status != 500 || body != "green\n" || b.ledger.next(t, i).Tries != 1 {
				t.Errorf("%d %q", status, body)
			}
		}
	})
}

func TestATargetThatAnswersNobodyIsGivenUpAndOneThatIsSlowIsNot(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", echo("blue"))
		var hung atomic.Bool
		hung.Store(true)
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) {
			if hung.Load() {
				<-r.Context().Done()
				return
			}
			if r.Method == "GET" {
				time.Sleep(25 * time.Second)
			}
			io.WriteString(w, "green")
		})
		b.apply(t, withBackup())
		for i, want := range []time.Duration{10, 10, 10, 0, 0} {
			began := time.Now()
			if _, _, body := b.send(t, "GET", ""); body != "blue " || time.Since(began) != want*time.Second {
				t.Errorf("request %d: %q after %v", i, body, time.Since(began))
			}
		}
		hung.Store(false)
		b.apply(t, traffic.Plan{Mode: traffic.Hold})
		b.apply(t, withBackup())
		slow := make(chan string, 1)
		go func() { _, _, body := b.send(t, "GET", ""); slow <- body }()
		synctest.Wait()
		for range 5 {
			time.Sleep(5 * time.Second)
			b.send(t, "POST", "")
		}
		if body := <-slow; body != "green" {
			t.Errorf("the slow one: %q", body)
		}
	})
}

// twins are two copies of green that share the traffic evenly.
func twins() traffic.Plan {
	p := one("green-1", "one:80")
	p.Targets = append(p.Targets, traffic.Target{ID: "green-2", Address: "two:80", Color: "green", Weight: 1})
	return p
}

func (b *bubble) shareOf(t *testing.T, who string) (percent int) {
	t.Helper()
	for range 400 {
		if _, _, body := b.send(t, "GET", ""); body == who+" " {
			percent++
		}
	}
	return percent / 4
}

func TestATargetThatComesBackGetsItsShareLittleByLittle(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "two:80", echo("two"))
		b.apply(t, twins()) // nobody listens on one:80
		b.shareOf(t, "two")
		if st := b.Stats().Targets; st[0].State != edge.Ejected || st[0].Until.IsZero() || st[0].Failed < 3 || st[1].State != edge.Ready {
			t.Errorf("%+v", st)
		}
		b.app(t, "one:80", echo("one"))
		time.Sleep(time.Second)
		if got := b.shareOf(t, "one"); got == 0 || got > 25 {
			t.Errorf("at once it got %d%%", got)
		}
		if st := b.Stats().Targets; st[0].State != edge.SlowStart || st[0].Failed != 0 {
			t.Errorf("%+v", st)
		}
		time.Sleep(10 * time.Second)
		if got := b.shareOf(t, "one"); got < 35 || got > 65 {
			t.Errorf("after its slow start it got %d%%", got)
		}
		if st := b.Stats().Targets; st[0].State != edge.Ready {
			t.Errorf("%+v", st)
		}
	})
}

func TestATargetThatJoinsOthersOfItsColorStartsSlowly(t *testing.T) {
	for slow, most := range map[time.Duration]int{10 * time.Second: 25, 0: 65} {
		inBubble(t, func(c *edge.Config) { c.Slow = slow }, func(t *testing.T, b *bubble) {
			b.app(t, "one:80", echo("one"))
			b.app(t, "two:80", echo("two"))
			b.apply(t, one("green-1", "one:80"))
			b.apply(t, twins())
			if got := b.shareOf(t, "two"); got == 0 || got > most || slow == 0 && got < 35 {
				t.Errorf("slow_start %v: it got %d%%", slow, got)
			}
		})
	}
}

func TestABodyOfUnknownLengthIsSentAgainIfItIsSmall(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Read") == "all" {
				io.Copy(io.Discard, r.Body)
			} else {
				io.ReadFull(r.Body, make([]byte, 3))
			}
			panic(http.ErrAbortHandler)
		})
		b.app(t, "blue:80", echo("blue"))
		put := func(method, read string, body io.Reader) (int, string) {
			b.apply(t, traffic.Plan{Mode: traffic.Hold}) // forgets what was ejected
			b.apply(t, withBackup())
			req, _ := http.NewRequestWithContext(t.Context(), method, "http://edge/", body)
			req.Header.Set("Read", read)
			resp, err := b.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(text)
		}
		small, large := strings.Repeat("x", 60<<10), strings.Repeat("x", 100<<10)
		for _, tc := range []struct {
			method, body string
			status       int
		}{{"PUT", small, 200}, {"PUT", large, 502}, {"POST", small, 502}} {
			if status, got := put(tc.method, "all", io.MultiReader(strings.NewReader(tc.body))); status != tc.status || status == 200 && got != "blue "+tc.body {
				t.Errorf("%s of %d bytes: %d", tc.method, len(tc.body), status)
			}
		}
		// Green breaks off in the middle; what comes later goes to blue, behind what came.
		in, out := io.Pipe()
		go func() {
			io.WriteString(out, "one")
			time.Sleep(20 * time.Second)
			io.WriteString(out, "two")
			out.Close()
		}()
		if status, got := put("PUT", "some", in); status != 200 || got != "blue onetwo" {
			t.Errorf("%d %q", status, got)
		}
	})
}
