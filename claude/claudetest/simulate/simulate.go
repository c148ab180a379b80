// Package simulate runs the engine of the Claude plane in virtual time before a
// Claude API in memory that fails as a [Scenario] says, and tells what its callers
// see: days of traffic in seconds. Calls and faults come of fixed seeds; the engine's own
// jitter does not, so that figures differ a little from run to run.
//
// Tests of the plane and bench/claude import it.
package simulate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/telemetry"
)

// A Scenario says what calls come, and how the API fails them. What is zero does not
// happen.
type Scenario struct {
	Name      string
	Streams   bool          // the calls ask for streams
	PerSecond float64       // calls a second, at random; with Demand: at most
	Calls     int           // that each seed makes, however many are asked for; 0: as many as are asked for
	Work      time.Duration // mean length of an answer
	Deadline  time.Duration // of each call

	Faults float64                  // share of the attempts that fail
	Midway float64                  // of these, those that fail within the stream, if it is one
	Down   func(time.Duration) bool // whether all fail at that time

	Capacity  func(time.Duration) float64 // answers a second; a refusal costs 0.3 of one
	PerMinute float64                     // requests: the key's rate limit, kept by the second
	Demand    func(time.Duration) float64 // calls a second
}

const answers = 3 * time.Second

// Outage returns a scenario in which, beside few independent faults, all attempts fail
// for length in each quarter of an hour.
func Outage(streams bool, length time.Duration) Scenario {
	return Scenario{
		Name: fmt.Sprintf("0.5%% faults, %.0f s of outage each 15 minutes", length.Seconds()), Streams: streams,
		PerSecond: 2, Work: answers, Faults: 0.005, Midway: 0.65, Down: Every(15*time.Minute, length),
	}
}

// Every is an outage of a length, again and again, but for the first time.
func Every(period, length time.Duration) func(time.Duration) bool {
	return func(at time.Duration) bool { return at > length && at%period < length }
}

// Independent returns a scenario of 5% faults, 65% of them in the middle of streams.
func Independent(streams bool) Scenario {
	return Scenario{Name: "5% faults", Streams: streams, PerSecond: 2, Work: answers, Faults: 0.05, Midway: 0.65}
}

// OwnLimit returns a scenario of ten minutes in which 1000 calls a minute are allowed,
// and 912 come: eight a second, and 80 a second in the last six seconds of each minute.
func OwnLimit() Scenario {
	const most, ease, minutes = 80, 8, 10
	return Scenario{
		Name: "the own limit, in bursts", PerSecond: most, Calls: minutes * (54*ease + 6*most), Work: answers, PerMinute: 1000, Deadline: time.Minute,
		Demand: func(at time.Duration) float64 {
			if at%time.Minute > 54*time.Second {
				return most
			}
			return ease
		},
	}
}

// Overload returns a scenario of ten minutes in which the API, which answers 12 calls a
// second, answers two for half a minute, while ten a second come.
func Overload() Scenario {
	return Scenario{Name: "an overload that feeds itself", PerSecond: 10, Calls: 6000, Work: time.Second, Capacity: func(at time.Duration) float64 {
		if at > 30*time.Second && at < time.Minute {
			return 2
		}
		return 12
	}}
}

// Scenarios are all of the above.
func Scenarios() []Scenario {
	return []Scenario{
		Independent(false), Outage(false, 30*time.Second), Outage(false, time.Minute),
		Independent(true), Outage(true, 30*time.Second), Outage(true, time.Minute),
		OwnLimit(), Overload(),
	}
}

// A Policy is one by which calls are tried again.
type Policy struct {
	Name   string
	Policy *claude.Policy // as in [claude.Transport]: nil is the policy deadline
}

// Policies are the plane's two, what the official SDKs do by themselves (two retries
// after half a second and a second, less up to a quarter), and none.
func Policies() []Policy {
	compatible := claude.Compatible()
	return []Policy{
		{Name: "deadline"}, {"compatible", &compatible},
		{"SDK", &claude.Policy{Max: 2, Base: 500 * time.Millisecond, Cap: 8 * time.Second, Jitter: 0.25}},
		{"no retries", &claude.Policy{}},
	}
}

// A Verdict is what came of a simulation.
type Verdict struct {
	Calls, Failed, Attempts int64
	Came, Vain              int64         // calls that came, and attempts that were made, while all failed
	Refused                 int64         // attempts, by the key's rate limit
	Waited                  time.Duration // by the 99.9th of a hundred calls, in waits before attempts
}

func (v Verdict) String() string {
	return fmt.Sprintf("%d calls, %d failed (%.4f%%), %.3f attempts per call, p99.9 waited %v", v.Calls, v.Failed, v.Share(), v.PerCall(), v.Waited.Round(time.Millisecond))
}

// Share is the share of the calls that failed, in per cent.
func (v Verdict) Share() float64 { return 100 * float64(v.Failed) / float64(max(v.Calls, 1)) }

// PerCall is how many attempts were made for each call.
func (v Verdict) PerCall() float64 { return float64(v.Attempts) / float64(max(v.Calls, 1)) }

// Run simulates s under a policy with seeds 0 to seeds-1, each with this many calls, and
// adds up what came of them. A call has failed whose answer is not there, word for word.
func Run(t *testing.T, s Scenario, p *claude.Policy, calls, seeds int) (sum Verdict) {
	if s.Calls > 0 {
		calls = s.Calls
	}
	var mu sync.Mutex
	var waits []time.Duration
	t.Run("seeds", func(t *testing.T) { // ends when all of them have
		for seed := range uint64(seeds) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					v, waited := s.run(t.Context(), p, seed, calls)
					mu.Lock()
					defer mu.Unlock()
					sum.add(v)
					waits = append(waits, waited...)
				})
			})
		}
	})
	slices.Sort(waits)
	if n := len(waits); n > 0 {
		sum.Waited = waits[n*999/1000]
	}
	return sum
}

func (v *Verdict) add(o Verdict) {
	v.Calls, v.Failed, v.Attempts = v.Calls+o.Calls, v.Failed+o.Failed, v.Attempts+o.Attempts
	v.Came, v.Vain, v.Refused = v.Came+o.Came, v.Vain+o.Vain, v.Refused+o.Refused
}

// run is Run for one seed.
func (s Scenario) run(ctx context.Context, p *claude.Policy, seed uint64, calls int) (v Verdict, waited []time.Duration) {
	w := &world{Scenario: s, dice: rand.New(rand.NewPCG(seed, 1)), begun: time.Now()}
	waits := &waits{all: make([]time.Duration, 0, calls)}
	tr := &claude.Transport{Base: w, Policy: p, Sink: waits}
	arrivals := rand.New(rand.NewPCG(seed, 2))
	var failed atomic.Int64
	var wg sync.WaitGroup
	for range calls {
		w.rest(arrivals)
		if w.isDown() {
			v.Came++
		}
		wg.Go(func() {
			if s.call(ctx, tr) != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	v.Calls, v.Failed, v.Attempts, v.Vain, v.Refused = int64(calls), failed.Load(), w.attempts.Load(), w.vain.Load(), w.refused.Load()
	return v, waits.all
}

// rest waits until the next call comes.
func (w *world) rest(dice *rand.Rand) {
	for {
		time.Sleep(time.Duration(dice.ExpFloat64() * float64(time.Second) / w.PerSecond))
		if w.Demand == nil || dice.Float64()*w.PerSecond < w.Demand(time.Since(w.begun)) {
			return
		}
	}
}

// waits is a sink that notes how long calls waited.
type waits struct {
	mu  sync.Mutex
	all []time.Duration
}

func (w *waits) Record(x *telemetry.Exchange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, x.Waited)
}

func (w *waits) Emit(telemetry.Event) {}

// call makes one call; its error says what is wrong with the answer.
func (s Scenario) call(ctx context.Context, tr *claude.Transport) error {
	body := fmt.Sprintf(`{"model":"claude-sonnet-4-5","max_tokens":64,"stream":%v,"messages":[{"role":"user","content":"hello"}]}`, s.Streams)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://claude.test/v1/messages", strings.NewReader(body))
	if err != nil {
		return err
	}
	if s.Deadline > 0 {
		req.Header.Set("Mainstay-Deadline", s.Deadline.String())
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK:
		return errors.New(res.Status)
	}
	said, err := text(got, s.Streams)
	if err == nil && said != strings.Join(script, "") {
		err = fmt.Errorf("the answer says %q", said)
	}
	return err
}

// text is what an answer says, which must be a whole one.
func text(answer []byte, stream bool) (said string, err error) {
	if !stream {
		var m struct {
			Content []struct{ Text string }
			Stop    string `json:"stop_reason"`
		}
		if err := json.Unmarshal(answer, &m); err != nil || len(m.Content) != 1 || m.Stop != "end_turn" {
			return "", fmt.Errorf("no message: %s", answer)
		}
		return m.Content[0].Text, nil
	}
	var types []string
	for event := range strings.SplitSeq(strings.TrimSuffix(string(answer), "\n\n"), "\n\n") {
		_, data, _ := strings.Cut(event, "data: ")
		var e struct {
			Type  string
			Index int
			Delta struct{ Text string }
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil || e.Index != 0 {
			return "", fmt.Errorf("no event of a message: %q", event)
		}
		if e.Type == "content_block_delta" {
			said += e.Delta.Text
		} else if e.Type != "ping" {
			types = append(types, e.Type)
		}
	}
	if want := []string{"message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"}; !slices.Equal(types, want) {
		return "", fmt.Errorf("the stream tells %v", types)
	}
	return said, nil
}
