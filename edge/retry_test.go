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
