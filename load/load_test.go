package load

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A server made of a function, without a network, so that its time can be fake.
type server func(*http.Request) (status int, body string, err error)

func (s server) RoundTrip(req *http.Request) (*http.Response, error) {
	status, body, err := s(req)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

func get(name string, weight int) Kind {
	return Kind{Name: name, Weight: weight, Make: func(ctx context.Context, base string, _ *rand.Rand) (*http.Request, error) {
		return http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+name, nil)
	}}
}

// answerAfter answers 200 when d has passed, unless the request ends first.
func answerAfter(d time.Duration) server {
	return func(req *http.Request) (int, string, error) {
		select {
		case <-time.After(d):
			return 200, "fine", nil
		case <-req.Context().Done():
			return 0, "", req.Context().Err()
		}
	}
}

func mustRun(t *testing.T, ctx context.Context, p Plan) Report {
	t.Helper()
	report, err := Run(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestRequestsAreDueAtAConstantRateWhateverTheServerDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var due []time.Duration
		start := time.Now()
		report := mustRun(t, t.Context(), Plan{
			Base: "http://app", Rate: 4, Duration: 2 * time.Second, Mix: []Kind{get("x", 1)},
			Transport: answerAfter(10 * time.Second),
			Observe: func(o Outcome) {
				mu.Lock()
				defer mu.Unlock()
				due = append(due, o.Due.Sub(start))
				if o.Sent != o.Due {
					t.Errorf("due at %v, sent at %v", o.Due, o.Sent)
				}
			},
		})
		slices.Sort(due)
		var want []time.Duration
		for n := range 8 {
			want = append(want, time.Duration(n)*250*time.Millisecond)
		}
		if diff := cmp.Diff(want, due); diff != "" {
			t.Error(diff)
		}
		if report.Took != 2*time.Second {
			t.Errorf("took %v", report.Took)
		}
	})
}

func TestAStallIsFeltByEveryRequestThatWasDueMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		stalls := server(func(req *http.Request) (int, string, error) {
			if since := time.Since(start); since >= time.Second && since < 2*time.Second {
				time.Sleep(2*time.Second - since)
			}
			return 200, "", nil
		})
		report := mustRun(t, t.Context(), Plan{
			Base: "http://app", Rate: 100, Duration: 5 * time.Second, Mix: []Kind{get("x", 1)}, Transport: stalls,
		})
		s := report.Tally.Summary(nil)
		if s.Requests != 500 || s.OK != 500 {
			t.Fatalf("%+v", s)
		}
		// 100 of 500 waited 1000, 990, … 10 ms, so the 95th percentile is about 750 ms.
		// A closed loop would have met one slow request.
		if s.P50 > time.Millisecond || s.P95 < 740*time.Millisecond || s.P95 > 770*time.Millisecond || s.Max < time.Second {
			t.Errorf("p50 %v, p95 %v, max %v", s.P50, s.P95, s.Max)
		}
	})
}

func TestAGeneratorWithoutAPlaceInFlightBlamesItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := mustRun(t, t.Context(), Plan{
			Base: "http://app", Rate: 100, Duration: time.Second, Mix: []Kind{get("x", 1)}, InFlight: 10,
			Transport: answerAfter(2 * time.Second),
		})
		s := report.Tally.Summary(nil)
		if s.Requests != 10 || s.OK != 10 || s.Failed != 0 || s.Saturated != 90 || s.Causes["in_flight"] != 90 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTheSameSeedGivesTheSameRequestsInTheSameOrder(t *testing.T) {
	sequence := func(seed uint64, latency time.Duration) (names []string) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			kinds := []Kind{get("list", 6), get("create", 3), get("never", 0), get("analyze", 1)}
			outcomes := map[time.Time]string{}
			mustRun(t, t.Context(), Plan{
				Base: "http://app", Rate: 100, Duration: 10 * time.Second, Mix: kinds, Seed: seed,
				Transport: answerAfter(latency),
				Observe: func(o Outcome) {
					mu.Lock()
					defer mu.Unlock()
					outcomes[o.Due] = o.Kind
				},
			})
			var due []time.Time
			for at := range outcomes {
				due = append(due, at)
			}
			slices.SortFunc(due, time.Time.Compare)
			for _, at := range due {
				names = append(names, outcomes[at])
			}
		})
		return names
	}
	a, b, other := sequence(7, 0), sequence(7, 2*time.Second), sequence(8, 0)
	if !slices.Equal(a, b) {
		t.Error("the server's speed changed the sequence")
	}
	if slices.Equal(a, other) {
		t.Error("another seed gave the same sequence")
	}
	count := map[string]int{}
	for _, name := range a {
		count[name]++
	}
	if len(a) != 1000 || count["list"] < 550 || count["list"] > 650 || count["analyze"] < 60 || count["analyze"] > 140 || count["never"] != 0 {
		t.Errorf("the mix is %v", count)
	}
}

func TestStopEndsArrivalsAndWaitsForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		go func() {
			time.Sleep(995 * time.Millisecond)
			close(stop)
		}()
		report := mustRun(t, t.Context(), Plan{
			Base: "http://app", Rate: 10, Mix: []Kind{get("x", 1)}, Stop: stop, Transport: answerAfter(5 * time.Second),
		})
		if s := report.Tally.Summary(nil); s.OK != 10 || s.Requests != 10 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTheEndOfTheContextGivesUpWhatIsInFlightAndCountsItNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 1050*time.Millisecond)
		defer cancel()
		start := time.Now()
		report := mustRun(t, ctx, Plan{
			Base: "http://app", Rate: 10, Mix: []Kind{get("x", 1)}, Transport: answerAfter(500 * time.Millisecond),
		})
		if s := report.Tally.Summary(nil); s.OK != 6 || s.Requests != 6 || s.Saturated != 0 {
			t.Errorf("%+v", s)
		}
		if took := time.Since(start); took != 1050*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

func TestARequestWithoutAnAnswerEndsAtItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		report := mustRun(t, t.Context(), Plan{
			Base: "http://app", Rate: 1, Duration: time.Second, Timeout: 3 * time.Second, Mix: []Kind{get("x", 1)},
			Transport: answerAfter(time.Hour),
		})
		if s := report.Tally.Summary(nil); s.Verdicts["transport_error"] != 1 || s.Causes["timeout"] != 1 || s.ErrorRate() != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAKindThatCanMakeNoRequestEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("no template")
		_, err := Run(t.Context(), Plan{Base: "http://app", Rate: 10, Transport: answerAfter(0), Mix: []Kind{
			{Name: "broken", Weight: 1, Make: func(context.Context, string, *rand.Rand) (*http.Request, error) { return nil, broken }},
		}})
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), `"broken"`) {
			t.Errorf("got %v", err)
		}
	})
}

func TestABadPlanNamesEveryMistake(t *testing.T) {
	_, err := Run(t.Context(), Plan{Duration: -1, Mix: []Kind{{Name: "nothing", Weight: -1}}})
	for _, want := range []string{"rate", "duration", `"nothing" makes no request`, "negative", "no kind has a weight"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func TestSaturateCountsWhatTheServerCanDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		perSecond, tally, err := Saturate(t.Context(), Plan{
			Base: "http://app", Duration: 10 * time.Second, Mix: []Kind{get("x", 1)}, Transport: answerAfter(20 * time.Millisecond),
		}, 4)
		if err != nil || perSecond != 200 || tally.Summary(nil).OK != 2000 {
			t.Errorf("%v per second, %+v, %v", perSecond, tally.Summary(nil), err)
		}
	})
}

func TestAWindowCountsWhatTouchesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Window
		start := time.Now()
		at := func(due, done int) Outcome {
			return Outcome{Kind: "x", Due: start.Add(time.Duration(due) * time.Second), Done: start.Add(time.Duration(done) * time.Second)}
		}
		w.Add(at(0, 1)) // not open yet
		time.Sleep(10 * time.Second)
		w.Open()
		w.Add(at(0, 9))   // over before
		w.Add(at(5, 11))  // in flight at the opening
		w.Add(at(11, 12)) // within
		time.Sleep(10 * time.Second)
		w.Close()
		w.Open() // once is once
		w.Add(at(19, 25))
		w.Add(at(21, 22)) // due after
		if got := w.Tally().Summary(nil).Requests; got != 3 {
			t.Errorf("counted %d, want 3", got)
		}
		if w.Length() != 10*time.Second {
			t.Errorf("length %v", w.Length())
		}
	})
}

func TestMergedTalliesAreTheTallyOfAll(t *testing.T) {
	all, a, b := NewTally(), NewTally(), NewTally()
	r := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	for n := range 5000 {
		o := Outcome{Kind: []string{"x", "y"}[n%2], Due: start, Sent: start.Add(time.Duration(r.IntN(1e6))),
			Done: start.Add(time.Duration(r.Int64N(int64(2 * time.Second)))), Verdict: Verdict(r.IntN(int(Saturated) + 1))}
		if o.Verdict != OK {
			o.Cause = o.Verdict.String()
		}
		all.Add(o)
		[]*Tally{a, b}[n%3%2].Add(o)
	}
	a.Merge(b)
	for _, pick := range []func(string) bool{nil, func(kind string) bool { return kind == "x" }} {
		if diff := cmp.Diff(all.Summary(pick), a.Summary(pick)); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff([]string{"x", "y"}, a.Kinds()); diff != "" {
		t.Error(diff)
	}
}
