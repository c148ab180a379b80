package edge_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/traffic"
)

const aMinute = "Cache-Control: max-age=60"

func TestWhatARequestMayHaveChangedIsNotGiven(t *testing.T) {
	for _, tc := range []struct {
		name, line, answer string
		headers            []string
		want               int
	}{
		{"POST", "POST /a", "", nil, 429},
		{"a redirect", "POST /a", "Status: 303|Location: /b", nil, 429},
		{"PATCH", "PATCH /a", "", nil, 429},
		{"an unknown method", "MEND /a", "", nil, 429},
		{"by https", "POST /a", "", []string{"X-Forwarded-Proto", "https"}, 429},
		{"what it names", "POST /other", "Status: 201|Location: /a", nil, 429},
		{"what it names wholly", "POST /other", "Content-Location: http://edge/a", nil, 429},
		{"no answer", "POST /a", "Abort: 1", nil, 429},
		{"what it names elsewhere", "POST /other", "Location: http://elsewhere/a", nil, 200},
		{"another URI", "POST /other", "", nil, 200},
		{"on another host", "POST elsewhere/a", "", nil, 200},
		{"refused", "POST /a", "Status: 403", nil, 200},
		{"failed", "POST /a", "Status: 500", nil, 200},
		{"a safe one", "OPTIONS /a", "", nil, 200},
		{"a search", "QUERY /a", "", nil, 200},
	} {
		inLarder(t, nil, func(l *larder) {
			l.app(l.t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-Answer") == "Abort: 1" {
					panic(http.ErrAbortHandler)
				}
				l.answer(w, r)
			})
			l.fill("GET /a", aMinute)
			l.fill(tc.line, tc.answer, tc.headers...)
			if got := l.status("GET /a"); got != tc.want {
				t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
			}
		})
	}
}

func TestWhatTheAppConfirmsIsYoungAgain(t *testing.T) {
	const tagged = `Cache-Control: max-age=60|ETag: "v1"`
	for name, tc := range map[string]struct {
		says    string
		headers []string
		want    int
	}{
		"the same":            {tagged, nil, 200},
		"the same, to a user": {tagged, []string{"Cookie", "a=b"}, 429},
		"another":             {`Cache-Control: max-age=60|ETag: "v2"`, nil, 429},
		"for one alone":       {`Cache-Control: private, max-age=60|ETag: "v1"`, nil, 429},
		"with a cookie":       {tagged + "|Set-Cookie: a=b", nil, 429},
		"for no time":         {`ETag: "v1"`, nil, 429},
		"it varies now":       {tagged + "|Vary: Accept", nil, 429},
	} {
		inLarder(t, func(_ *edge.Config, c *limits.Config) { c.Degrade.Stale.For = time.Second }, func(l *larder) {
			kept := l.fill("GET /a", tagged+"|X-Of: first")
			time.Sleep(50 * time.Second)
			l.fill("GET /a", tc.says+"|Status: 304|X-Of: second|X-New: 1|Content-Type: text/none", append(tc.headers, "If-None-Match", `"v1"`)...)
			time.Sleep(15 * time.Second)
			resp, body := l.beyond("GET /a")
			if resp.StatusCode != tc.want {
				t.Errorf("%s: %d, want %d", name, resp.StatusCode, tc.want)
			}
			if tc.want == 200 && (body != kept || resp.Header.Get("Age") != "15" || resp.Header.Get("X-Of") != "second" || resp.Header.Get("X-New") != "1" || resp.Header.Get("Content-Type") == "text/none") {
				t.Errorf("%s: %q %v", name, body, resp.Header)
			}
		})
	}
}

// A GET that the app has read before a POST changed it may come back after that.
func TestAnAnswerFromBeforeAChangeIsNotKept(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		goOn := make(chan struct{})
		l.app(l.t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Slow") != "" {
				<-goOn
			}
			l.answer(w, r)
		})
		var slow sync.WaitGroup
		slow.Go(func() { l.fill("GET /a", aMinute, "X-Slow", "1") })
		synctest.Wait()
		l.fill("POST /a", "")
		close(goOn)
		slow.Wait()
		if got := l.status("GET /a"); got != 429 {
			t.Errorf("%d", got)
		}
		l.fill("GET /a", aMinute)
		if got := l.status("GET /a"); got != 200 {
			t.Errorf("asked again: %d", got)
		}
	})
}

func TestAnOlderAnswerThatComesLateReplacesNoNewerOne(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		goOn := make(chan struct{})
		l.app(l.t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			body := "new"
			if r.Header.Get("X-Slow") != "" {
				body = "old"
				<-goOn
			}
			w.Header().Set("Cache-Control", "max-age=60")
			fmt.Fprint(w, body)
		})
		var slow sync.WaitGroup
		slow.Go(func() { l.fill("GET /a", "", "X-Slow", "1") })
		time.Sleep(time.Second)
		l.fill("GET /a", "")
		close(goOn)
		slow.Wait()
		if _, body := l.beyond("GET /a"); body != "new" {
			t.Errorf("%q", body)
		}
	})
}

func TestAClientThatHangsUpLeavesNoHalfAnswer(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		l.app(l.t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			fmt.Fprint(w, "half")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		ctx, cancel := context.WithCancel(l.t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://edge/a", nil)
		resp, err := l.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		resp.Body.Close()
		synctest.Wait()
		if got := l.status("GET /a"); got != 429 {
			t.Errorf("%d", got)
		}
	})
}

func TestWhoIsShedGetsWhatIsKept(t *testing.T) {
	inLarder(t, func(c *edge.Config, _ *limits.Config) {
		c.Overload.Concurrency, c.Overload.Most, c.Overload.Queue.Requests = "fixed", 1, 0
	}, func(l *larder) {
		busy := make(chan struct{})
		l.app(l.t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/busy" {
				<-busy
			}
			l.answer(w, r)
		})
		kept := l.fill("GET /a", aMinute)
		var slow sync.WaitGroup
		slow.Go(func() { l.fill("GET /busy", "") })
		synctest.Wait()
		resp, body := l.ask("10.2.0.1", "GET /a")
		if resp.StatusCode != 200 || body != kept || !strings.HasSuffix(resp.Header.Get("Cache-Status"), "; detail=shed") || resp.Header.Get("X-Ratelimit-Remaining") != "0" {
			t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
		}
		if resp, _ := l.ask("10.2.0.2", "GET /b"); resp.StatusCode != 503 || resp.Header.Get("Mainstay-Code") != "shed" {
			t.Errorf("nothing is kept of it: %d %v", resp.StatusCode, resp.Header)
		}
		if st := l.Stats(); st.Kept.Given["shed"] != 1 || st.Kept.Missed["shed"] != 1 || st.Targets[0].InFlight != 1 {
			t.Errorf("%+v", st)
		}
		close(busy)
		slow.Wait()
	})
}

func TestAnAppThatGivesNoAnswerIsCoveredIfTheFileSaysSo(t *testing.T) {
	for _, on := range []bool{true, false} {
		for _, tc := range []struct {
			name   string
			down   func(*larder)
			status int // without a kept answer
			code   string
		}{
			{"it is gone", func(l *larder) { l.apply(l.t, one("blue-2", "nowhere:80")) }, 502, "target_unreachable"},
			{"it breaks off", func(l *larder) {
				l.app(l.t, "blue:80", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
			}, 502, "target_broke"},
			{"it hangs", func(l *larder) {
				l.app(l.t, "blue:80", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			}, 504, "target_timeout"},
			{"it has no room", func(l *larder) {
				l.app(l.t, "blue:80", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
			}, 503, "app_error"},
			{"it does not come back", func(l *larder) {
				l.apply(l.t, traffic.Plan{Mode: traffic.Hold, Targets: []traffic.Target{{ID: "blue-1", Address: "blue:80", Color: "blue"}}})
			}, 503, "hold_timeout"},
		} {
			inLarder(t, func(_ *edge.Config, c *limits.Config) { c.Degrade.Stale.IfError = on }, func(l *larder) {
				kept := l.fill("GET /a", aMinute)
				tc.down(l)
				want, detail := tc.status, ""
				if on {
					want, detail = 200, "; detail=stale-failed"
				}
				time.Sleep(2 * time.Minute)
				resp, body := l.ask("10.2.0.1", "GET /a")
				if resp.StatusCode != want || on && body != kept || !strings.HasSuffix(resp.Header.Get("Cache-Status"), detail) || on && resp.Header.Get("X-Ratelimit-Remaining") != "0" {
					t.Errorf("%s, %v: %d %q %v", tc.name, on, resp.StatusCode, body, resp.Header)
				}
				if resp, _ := l.ask("10.2.0.2", "GET /b"); resp.StatusCode != tc.status {
					t.Errorf("%s, %v: nothing is kept of it: %d", tc.name, on, resp.StatusCode)
				}
				synctest.Wait()
				x := l.ledger.next(t, 1)
				if x.Code != tc.code || x.HTTP.Status != want || (x.HTTP.Cache == "stale") != on || x.Blame.String() == "none" {
					t.Errorf("%s, %v: recorded as %s, %d from %q", tc.name, on, x.Code, x.HTTP.Status, x.HTTP.Cache)
				}
				if tc.code == "app_error" && (x.Tries != 1 || x.Attempts[0].Status != 503) {
					t.Errorf("%s, %v: its attempt is recorded as %+v", tc.name, on, x.Attempts)
				}
			})
		}
	}
}

func TestAnAppsOwnErrorPassesWhereNothingMayTakeItsPlace(t *testing.T) {
	inLarder(t, func(_ *edge.Config, c *limits.Config) { c.Degrade.Stale.IfError = true }, func(l *larder) {
		l.fill("GET /a", aMinute)
		for name, tc := range map[string]struct {
			line, answer string
			headers      []string
			want         int
		}{
			"a status that is no failure": {"GET /a", "Status: 404", nil, 404},
			"an unusual failure":          {"GET /a", "Status: 501", nil, 501},
			"another method":              {"POST /a", "Status: 500", nil, 500},
			"a known caller":              {"GET /a", "Status: 500", []string{"Cookie", "a=b"}, 500},
		} {
			l.fill("GET /a", aMinute)
			resp, _ := l.ask("10.0.0.1", tc.line, append(tc.headers, "X-Answer", tc.answer)...)
			if resp.StatusCode != tc.want {
				t.Errorf("%s: %d, want %d", name, resp.StatusCode, tc.want)
			}
		}
	})
}

// What the ladder made smaller is not what others are to get later.
func TestAnAnswerThatWasMadeForLessIsNotKept(t *testing.T) {
	inLarder(t, func(_ *edge.Config, c *limits.Config) {
		c.Tiers["free"] = limits.Tier{Requests: 2, Window: time.Hour}
		c.Degrade.Cheaper = 1
	}, func(l *larder) {
		for _, want := range []struct{ asked, beyond int }{{1, 200}, {2, 429}} {
			path := fmt.Sprint("/", want.asked)
			resp, _ := l.ask("10.2.0.1", "GET "+path, "X-Answer", aMinute)
			if resp.StatusCode != 200 {
				t.Fatalf("%d", resp.StatusCode)
			}
			l.ask("10.3.0.1", "OPTIONS /")
			l.ask("10.3.0.1", "OPTIONS /")
			if resp, _ := l.ask("10.3.0.1", "GET "+path); resp.StatusCode != want.beyond {
				t.Errorf("answer %d: %d, want %d", want.asked, resp.StatusCode, want.beyond)
			}
		}
	})
}

func TestAPreviewIsNeitherKeptNorAnsweredFromWhatIsKept(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		l.app(l.t, "green:80", l.answer)
		l.apply(l.t, traffic.Plan{Mode: traffic.Serve, Preview: traffic.Preview{Color: "green", Header: "X-Preview", Secret: "s3cret"}, Targets: []traffic.Target{
			{ID: "blue-1", Address: "blue:80", Color: "blue", Weight: 1}, {ID: "green-2", Address: "green:80", Color: "green"}}})
		l.fill("GET /new", aMinute, "X-Preview", "s3cret")
		l.fill("GET /old", aMinute)
		for _, tc := range []struct {
			path    string
			headers []string
			want    int
		}{{"/new", nil, 429}, {"/old", nil, 200}, {"/old", []string{"X-Preview", "s3cret"}, 429}, {"/old", []string{"X-Preview", "wrong"}, 200}} {
			if got := l.status("GET "+tc.path, tc.headers...); got != tc.want {
				t.Errorf("%s %v: %d, want %d", tc.path, tc.headers, got, tc.want)
			}
		}
	})
}

// A world of pages that depend on what their headers say they do, and of callers who
// differ in all of it: whatever is given in place of a refusal is what the app would
// have answered that caller at some moment since the page was last changed.
func TestRandomCallersNeverGetAWrongAnswer(t *testing.T) {
	for seed := range uint64(8) {
		inLarder(t, nil, func(l *larder) {
			r := rand.New(rand.NewPCG(seed, 2))
			changes := map[string]int{}
			// Each page tells in its body whose it is.
			l.app(l.t, "blue:80", func(w http.ResponseWriter, req *http.Request) {
				page := int(req.URL.Path[1] - '0')
				if req.Method == "POST" {
					changes[req.Host+req.URL.RequestURI()]++
					return
				}
				about, cc := "", [...]string{"max-age=60", "public, max-age=60", "max-age=30, stale-if-error=60", "private, max-age=60"}[page]
				switch page {
				case 0: // its own for whoever is known, though it does not say so
					about = req.Header.Get("Cookie") + req.Header.Get("Authorization")
				case 1:
					w.Header().Set("Vary", "Accept-Language, X-Device")
					about = req.Header.Get("Accept-Language") + "/" + req.Header.Get("X-Device")
				case 2:
					w.Header().Set("Vary", "Accept-Encoding")
					about = req.Header.Get("Accept-Encoding") + req.Header.Get("Cookie") + req.Header.Get("Authorization")
				}
				w.Header().Set("Cache-Control", cc)
				fmt.Fprintf(w, "%s%s %s %d", req.Host, req.URL.RequestURI(), about, changes[req.Host+req.URL.RequestURI()])
			})
			choose := func(of ...string) string { return of[r.IntN(len(of))] }
			given := 0
			for range 1500 {
				page := r.IntN(4)
				host, query := choose("one", "two"), choose("", "?q=1", "?q=2")
				line := fmt.Sprintf("%s/%d%s", host, page, query)
				var headers []string
				about := [4]string{}
				for name, value := range map[string]string{
					"Cookie": choose("", "", "a", "b"), "Authorization": choose("", "", "t"), "Accept-Language": choose("de", "en"),
					"X-Device": choose("", "phone"), "Accept-Encoding": choose("br", "gzip"),
				} {
					if value == "" {
						continue
					}
					headers = append(headers, name, value)
					switch name {
					case "Cookie", "Authorization":
						about[0] += value
					}
				}
				value := func(name string) string {
					for i := 0; i < len(headers); i += 2 {
						if headers[i] == name {
							return headers[i+1]
						}
					}
					return ""
				}
				whoever := value("Cookie") + value("Authorization")
				about = [4]string{whoever, value("Accept-Language") + "/" + value("X-Device"), value("Accept-Encoding") + whoever, ""}
				switch op := r.IntN(10); {
				case op < 4:
					l.ask("10.0.0.1", "GET "+line, headers...)
				case op < 5:
					l.ask("10.0.0.1", "POST "+line)
				case op < 6:
					time.Sleep(time.Duration(r.IntN(40)) * time.Second)
				default:
					// The same address has nothing left, unless an hour has passed.
					l.ask("10.9.9.9", "OPTIONS /0")
					resp, body := l.ask("10.9.9.9", "GET "+line, headers...)
					if resp.StatusCode == 429 || resp.Header.Get("Cache-Status") == "" {
						continue
					}
					given++
					if want := fmt.Sprintf("%s %s %d", line, about[page], changes[line]); page == 3 || body != want {
						t.Errorf("seed %d: %s %v got %q, want %q", seed, line, headers, body, want)
					}
				}
			}
			if given < 50 {
				t.Errorf("seed %d: only %d answers were kept ones", seed, given)
			}
		})
	}
}

func TestADeployLeavesWhatTheOldColorGaveBehind(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		l.app(l.t, "green:80", l.answer)
		blue, green := traffic.Target{ID: "blue-1", Address: "blue:80", Color: "blue"}, traffic.Target{ID: "green-2", Address: "green:80", Color: "green"}
		plan := func(mode traffic.Mode, toBlue, toGreen int) {
			blue.Weight, green.Weight = toBlue, toGreen
			l.apply(l.t, traffic.Plan{Mode: mode, Targets: []traffic.Target{blue, green}})
		}
		l.fill("GET /a", "Cache-Control: max-age=60")
		for _, step := range []struct {
			name          string
			mode          traffic.Mode
			blue, green   int
			want          int
			thenKeptAgain bool
		}{
			{"some of the traffic is green's", traffic.Serve, 9, 1, 200, false},
			{"all copies are gone for a moment", traffic.Hold, 0, 0, 200, false},
			{"they are back", traffic.Serve, 9, 1, 200, false},
			{"in maintenance", traffic.Maintenance, 9, 1, 429, false},
			{"after it", traffic.Serve, 9, 1, 200, false},
			{"the switch", traffic.Serve, 0, 1, 429, true},
			{"the way back", traffic.Serve, 1, 0, 429, true},
		} {
			plan(step.mode, step.blue, step.green)
			if got := l.status("GET /a"); got != step.want {
				t.Errorf("%s: %d, want %d", step.name, got, step.want)
			}
			if step.thenKeptAgain {
				l.fill("GET /a", "Cache-Control: max-age=60")
				if got := l.status("GET /a"); got != 200 {
					t.Errorf("%s: what the new color gave is answered %d", step.name, got)
				}
			}
		}
	})
}

func TestWhoKeepsToAColorGetsWhatThatGave(t *testing.T) {
	inLarder(t, nil, func(l *larder) {
		l.app(l.t, "green:80", l.answer)
		p := traffic.Plan{Mode: traffic.Serve, Sticky: traffic.Sticky{By: traffic.StickyHeader, Name: "X-Session"}, Targets: []traffic.Target{
			{ID: "blue-1", Address: "blue:80", Color: "blue", Weight: 1}, {ID: "green-2", Address: "green:80", Color: "green", Weight: 1}}}
		l.apply(l.t, p)
		of := map[string]string{} // a session for each color
		for i := 0; len(of) < 2; i++ {
			session := fmt.Sprint("session", i)
			l.fill("GET /who", "", "X-Session", session)
			synctest.Wait()
			of[l.ledger.next(t, i).Color] = session
		}
		l.fill("GET /a", "Cache-Control: max-age=60", "X-Session", of["blue"])
		if blue, green := l.status("GET /a", "X-Session", of["blue"]), l.status("GET /a", "X-Session", of["green"]); blue != 200 || green != 429 {
			t.Errorf("blue's client: %d, green's: %d", blue, green)
		}
		l.fill("GET /a", "Cache-Control: max-age=60", "X-Session", of["green"])
		if blue, green := l.status("GET /a", "X-Session", of["blue"]), l.status("GET /a", "X-Session", of["green"]); blue != 200 || green != 200 {
			t.Errorf("with both: blue's client: %d, green's: %d", blue, green)
		}
	})
}
