package edge_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/traffic"
)

func split(green, blue int) traffic.Plan {
	return traffic.Plan{Mode: traffic.Serve, Targets: []traffic.Target{
		{ID: "green-2", Address: "green:80", Color: "green", Version: "2", Weight: green},
		{ID: "blue-1", Address: "blue:80", Color: "blue", Version: "1", Weight: blue},
	}}
}

func TestAClientKeepsItsColorByCookie(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", echo("blue"))
		b.app(t, "green:80", echo("green"))
		p := split(50, 50)
		p.Sticky.By = traffic.StickyCookie
		b.apply(t, p)
		given := map[string]string{}
		for len(given) < 2 {
			resp, err := b.client.Get("http://edge/")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			c := resp.Cookies()
			if len(c) != 1 || c[0].Name != "mainstay-color" || !c[0].HttpOnly || c[0].SameSite != http.SameSiteLaxMode || c[0].Secure {
				t.Fatalf("cookies: %v", c)
			}
			given[strings.TrimSpace(string(body))] = c[0].Value
		}
		for color, value := range given {
			for range 20 {
				if _, _, body := b.send(t, "GET", "", "Cookie", "a=b; mainstay-color="+value); body != color+" " {
					t.Fatalf("a client of %s got %q", color, body)
				}
			}
		}
		b.apply(t, func() traffic.Plan { p := split(100, 0); p.Sticky.By = traffic.StickyCookie; return p }())
		if _, _, body := b.send(t, "GET", "", "Cookie", "mainstay-color="+given["blue"]); body != "green " {
			t.Errorf("a color without weight got %q", body)
		}
	})
}

func TestClientsMoveToAGrowingColorAndNeverBack(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", echo("blue"))
		b.app(t, "green:80", echo("green"))
		before := map[int]bool{}
		for _, weight := range []int{10, 50} {
			p := split(weight, 100-weight)
			p.Sticky = traffic.Sticky{By: traffic.StickyHeader, Name: "X-User"}
			b.apply(t, p)
			on := 0
			for user := range 1000 {
				_, _, body := b.send(t, "GET", "", "X-User", fmt.Sprintf("user-%d", user))
				green := body == "green "
				if before[user] && !green {
					t.Errorf("user %d went back to blue", user)
				}
				if before[user] = green; green {
					on++
				}
			}
			if off := on - 10*weight; off < -60 || off > 60 { // the hash is fixed, so this never varies
				t.Errorf("%d of 1000 are on green at %d%%", on, weight)
			}
		}
	})
}

func TestThePreviewShowsAColorToThoseWhoKnowTheSecret(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", echo("blue"))
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "green", r.Header["X-Preview"]) })
		p := split(0, 100)
		p.Preview = traffic.Preview{Color: "green", Header: "x-preview", Secret: "s3cret", Host: "next.example.com"}
		for _, mode := range []traffic.Mode{traffic.Serve, traffic.Maintenance} {
			p.Mode = mode
			b.apply(t, p)
			if _, _, body := b.send(t, "GET", "", "X-Preview", "s3cret"); body != "green[]" {
				t.Errorf("%s: with the secret: %q", mode, body)
			}
			if _, code, body := b.send(t, "GET", "", "X-Preview", "guess"); body != "blue " && code != "maintenance" {
				t.Errorf("%s: with a guess: %q", mode, body)
			}
			req, _ := http.NewRequest("GET", "http://edge/", nil)
			req.Host = "Next.example.com:80"
			resp, err := b.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(body) != "green[]" {
				t.Errorf("%s: by host: %q", mode, body)
			}
		}
	})
}

func TestAMirrorCopiesTheNextRequestsAndSlowsNone(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		var mu sync.Mutex
		copies := 0
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "blue", r.Header["Mainstay-Mirror"]) })
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if r.Header.Get("Mainstay-Mirror") != "1" || r.Header.Get("Authorization") != "Bearer x" {
				t.Errorf("the copy: %v", r.Header)
			}
			copies++
		})
		p := split(0, 100)
		p.Mirror = traffic.Mirror{Color: "green", Requests: 5}
		b.apply(t, p)
		for i := range 10 {
			method := []string{"GET", "POST"}[i%2]
			if _, _, body := b.send(t, method, "", "Authorization", "Bearer x", "Mainstay-Mirror", "1"); body != "blue[]" {
				t.Errorf("%q", body)
			}
			synctest.Wait()
		}
		b.apply(t, p) // the same mirror is not begun anew
		for range 5 {
			b.send(t, "GET", "", "Authorization", "Bearer x")
			synctest.Wait()
		}
		mu.Lock()
		defer mu.Unlock()
		if copies != 5 {
			t.Errorf("%d copies", copies)
		}
	})
}

func TestAMirrorThatHangsSlowsNobody(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", echo("blue"))
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		p := split(0, 100)
		p.Mirror = traffic.Mirror{Color: "green", Requests: 100}
		b.apply(t, p)
		for i := range 30 {
			b.send(t, "GET", "")
			if x := b.ledger.next(t, i); x.Took != 0 {
				t.Errorf("request %d took %v", i, x.Took)
			}
		}
		for _, target := range b.Stats().Targets {
			if target.Color == "green" && target.InFlight != 8 {
				t.Errorf("%d copies in flight", target.InFlight)
			}
		}
	})
}

func TestMaintenanceShowsBrowsersThePage(t *testing.T) {
	h := start(t, defaults())
	if _, err := h.Apply(traffic.Plan{Mode: traffic.Maintenance, Page: "<h1>Back at noon"}); err != nil {
		t.Fatal(err)
	}
	for accept, want := range map[string]string{"text/html,*/*": "<h1>Back at noon", "application/json": `"code":"maintenance"`, "*/*": "code: maintenance"} {
		if resp, body := get(t, "http://"+h.addr, "Accept", accept); resp.StatusCode != 503 || !strings.Contains(body, want) {
			t.Errorf("%s: %s %q", accept, resp.Status, body)
		}
	}
}

func TestACutAtTheDrainLimitIsNotTheClientsDoing(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		b.apply(t, one("blue-1", "blue:80"))
		go b.get(t.Context())
		synctest.Wait()
		b.stop()
		time.Sleep(time.Minute)
		if x := b.ledger.next(t, 0); x.Code != "stopping" || x.Blame.String() != "mainstay" {
			t.Errorf("recorded %s, blaming %s", x.Code, x.Blame)
		}
	})
}
