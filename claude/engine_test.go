package claude_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// house carries calls to a handler without a network.
func house(h http.Handler) http.RoundTripper {
	return dripping(func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		in := r.Clone(r.Context())
		in.Host = r.URL.Host
		h.ServeHTTP(w, in)
		return w.Result(), nil
	})
}

// library is a Transport that obeys the defaults as edited, for calls to claude.test.
func library(t *testing.T, base http.RoundTripper, edit func(*claude.Config)) (*claude.Transport, *book) {
	t.Helper()
	var cfg claude.Config
	cfg.SetDefaults()
	cfg.Upstream = "http://claude.test"
	edit(&cfg)
	tr, err := claude.NewTransport(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &book{}
	tr.Base, tr.Sink = base, b
	return tr, b
}

func throughSDK(tr http.RoundTripper, opts ...option.RequestOption) anthropic.Client {
	return anthropic.NewClient(append([]option.RequestOption{
		option.WithBaseURL("http://claude.test"), option.WithAPIKey(key), option.WithHTTPClient(&http.Client{Transport: tr}),
	}, opts...)...)
}

// The library's two doors have the plane's engine: each row of the fault matrix ends
// in a whole answer for the official SDK, without a retry of its own.
func TestTheLibraryEndsEveryRowOfTheMatrixInAWholeAnswer(t *testing.T) {
	eachOfTheMatrix(t, func(t *testing.T, fault claudetest.Fault, n int, streams, gathers bool) {
		synctest.Test(t, func(t *testing.T) {
			back := newPipes()
			fake := claudetest.New(claudetest.Options{RetryAfter: "2"})
			if err := fake.Serve(back); err != nil {
				t.Fatal(err)
			}
			wire := &http.Transport{DialContext: back.dial, DisableCompression: true}
			tr, b := library(t, wire, func(c *claude.Config) {
				c.Recovery.Aggregate, c.Timeouts.FirstByte = gathers, time.Minute
			})
			for range n {
				fake.Next(fault)
			}
			if err := converse(t, throughSDK(tr), "hello", streams); err != nil {
				t.Errorf("Transport: %v", err)
			}
			for range n {
				fake.Next(fault)
			}
			_, err := claude.Do(t.Context(), tr, func(_ context.Context, via *http.Client) (int, error) {
				return 0, converse(t, throughSDK(nil, option.WithHTTPClient(via)), "hello", streams)
			})
			if err != nil {
				t.Errorf("Do: %v", err)
			}
			for _, x := range b.pages(t, 2) {
				if x.Code != "ok" || x.Tries != n+1 {
					t.Errorf("%s after %d tries", x.Code, x.Tries)
				}
			}
			wire.CloseIdleConnections()
			fake.Close()
			synctest.Wait()
		})
	})
}

func TestTheLibraryTellsAFinalFailureAsAnErrorOfTheAPIAndTheSDKLeavesItAtThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, b := library(t, house(busy), func(*claude.Config) {})
		c := throughSDK(tr)
		_, err := c.Messages.New(t.Context(), ask("hello"), option.WithHeader("Mainstay-Deadline", "20s"))
		if e, ok := errors.AsType[*anthropic.Error](err); !ok || e.StatusCode != 529 || e.Response.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%v", err)
		}
		if x := b.last(t, 1); x.Code != "overloaded" || x.HTTP.Status != 529 {
			t.Errorf("%s %d", x.Code, x.HTTP.Status)
		}
		tr.Base = dripping(nil) // is not looked at any more
		down := &claude.Transport{Base: dripping(func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF })}
		c = throughSDK(down)
		_, err = c.Messages.New(t.Context(), ask("hello"), option.WithHeader("Mainstay-Deadline", "20s"))
		if e, ok := errors.AsType[*anthropic.Error](err); !ok || e.StatusCode != 502 || e.Type() != "api_error" {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err = c.Messages.New(ctx, ask("hello")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestTheLibraryHasKeysRoutesAndOnlyForItsUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &twoHouses{}
		tr, b := library(t, house(h), func(c *claude.Config) {
			c.Upstream += "/base"
			c.Recovery.Aggregate = false
			c.Keys = []claude.KeyConfig{{Name: "a", Key: keyA}}
			c.Routes = []claude.RouteConfig{{Name: "backup", Upstream: "http://backup.test", Keys: []claude.KeyConfig{{Name: "a", Key: backupKey}}}}
		})
		c := throughSDK(tr, option.WithBaseURL("http://claude.test/base"))
		call := func(want string, opts ...option.RequestOption) {
			t.Helper()
			var res *http.Response
			if _, err := c.Messages.New(t.Context(), ask("hello"), append(opts, option.WithResponseInto(&res))...); err != nil {
				t.Fatal(err)
			}
			if got := res.Header.Get("Mainstay-Claude-Route"); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		call("claude")
		if want := `["claude.test","/base/v1/messages","claude-sonnet-5",256,"` + keyA + `"]`; h.last() != want {
			t.Error(h.last())
		}
		h.until = time.Now().Add(time.Hour)
		call("backup")
		if want := `["backup.test","/v1/messages","claude-sonnet-5",256,"` + backupKey + `"]`; h.last() != want {
			t.Error(h.last())
		}
		h.until = time.Time{}
		call("", option.WithBaseURL("http://elsewhere.test/base"))
		if want := `["elsewhere.test","/base/v1/messages","claude-sonnet-5",256,"` + key + `"]`; h.last() != want {
			t.Error("a call to another host took a key along: " + h.last())
		}
		if x := b.last(t, 3); x.Code != "ok" || tr.Stats().Calls != 3 || len(tr.Stats().Routes) != 2 {
			t.Errorf("%s %+v", x.Code, tr.Stats())
		}
	})
}

func TestTheLibraryStopsAtItsCeilingAndRemembersIt(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		for round, want := range [][2]int64{{20, 10}, {0, 30}} {
			tr, _ := library(t, house(dear), func(c *claude.Config) { c.Spend.Daily, c.Recovery.Aggregate = 2, false })
			tr.Dir = dir
			c := throughSDK(tr)
			var good, refused atomic.Int64
			var wg sync.WaitGroup
			for range 30 {
				wg.Go(func() {
					_, err := c.Messages.New(t.Context(), anthropic.MessageNewParams{Model: "claude-sonnet-4-5", MaxTokens: 7000, Messages: ask("hello").Messages})
					if e, ok := errors.AsType[*anthropic.Error](err); ok && e.StatusCode == 402 {
						refused.Add(1)
					} else if err == nil {
						good.Add(1)
					} else {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if good.Load() != want[0] || refused.Load() != want[1] {
				t.Errorf("round %d: %d good, %d refused", round, good.Load(), refused.Load())
			}
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestATransportThatIsWiredWronglySaysSoAtEachCall(t *testing.T) {
	var cfg claude.Config
	cfg.SetDefaults()
	cfg.Upstream = "nowhere"
	if _, err := claude.NewTransport(cfg); err == nil || !strings.Contains(err.Error(), "upstream") {
		t.Errorf("%v", err)
	}
	tr := &claude.Transport{Config: &cfg}
	c := throughSDK(tr, option.WithMaxRetries(0))
	if _, err := c.Messages.New(t.Context(), ask("x")); err == nil || !strings.Contains(err.Error(), "claude.Transport.Config: upstream") {
		t.Errorf("%v", err)
	}
	if _, err := claude.Do(t.Context(), tr, func(context.Context, *http.Client) (int, error) { return 0, nil }); err == nil {
		t.Error("Do went on")
	}
	if tr.Close() == nil || tr.Stats().Calls != 0 {
		t.Error("Close and Stats went on")
	}
}

// Work that Do can't look into is held while all of it fails, and let in when it is
// well again.
func TestDoHoldsWorkWhileAllOfItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		tr := &claude.Transport{Sink: b}
		begun := time.Now()
		var tries, calls, failed int
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 60 {
			time.Sleep(time.Second)
			calls++
			wg.Go(func() {
				_, err := claude.Do(t.Context(), tr, func(context.Context, *http.Client) (int, error) {
					mu.Lock()
					defer mu.Unlock()
					if tries++; time.Since(begun) < 45*time.Second {
						return 0, io.ErrUnexpectedEOF
					}
					return 1, nil
				})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed++
				}
			})
		}
		wg.Wait()
		if failed != 0 || tries > calls+45*12/10 {
			t.Errorf("%d calls, %d failed, %d tries", calls, failed, tries)
		}
		if x := b.last(t, calls); x.Code != "ok" || tr.Stats().InFlight != 0 || tr.Stats().Calls != int64(calls) {
			t.Errorf("%s %+v", x.Code, tr.Stats())
		}
	})
}

func TestDoGivesUpWhenItsPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &claude.Transport{}
		begun := time.Now()
		_, err := claude.Do(t.Context(), tr, func(context.Context, *http.Client) (int, error) { return 0, io.ErrUnexpectedEOF })
		if took := time.Since(begun); !errors.Is(err, io.ErrUnexpectedEOF) || took > 2*time.Minute {
			t.Errorf("%v after %v", err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun = time.Now()
		if _, err = claude.Do(ctx, tr, func(context.Context, *http.Client) (int, error) { return 0, io.ErrUnexpectedEOF }); err == nil || time.Since(begun) > time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// An outage costs calls through Do no more attempts than it costs the plane's.
func TestASimulatedOutageThroughDoMeetsNextToNoRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		down := func() bool { at := time.Since(begun); return at > time.Minute && at < 2*time.Minute }
		var vain, came atomic.Int64
		base := dripping(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			if down() {
				vain.Add(1)
				return answer(529, `{"type":"error","error":{"type":"overloaded_error","message":"m"}}`, nil, nil), nil
			}
			return answer(200, `{"type":"message","stop_reason":"end_turn","content":[{"type":"text","text":"x"}]}`, nil, nil), nil
		})
		tr := &claude.Transport{Base: base}
		var wg sync.WaitGroup
		for i := range 400 {
			time.Sleep(500 * time.Millisecond)
			if down() {
				came.Add(1)
			}
			wg.Go(func() {
				_, err := claude.Do(t.Context(), tr, func(ctx context.Context, via *http.Client) (int, error) {
					return 0, converse(t, throughSDK(nil, option.WithHTTPClient(via)), fmt.Sprint(i), false)
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if came.Load() == 0 || vain.Load()*100 > came.Load()*110 {
			t.Errorf("%d attempts in the outage for %d calls", vain.Load(), came.Load())
		}
	})
}
