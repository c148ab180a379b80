package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
	"mainstay.dev/mainstay/telemetry"
)

// A drill is what is asked for.
type drill struct {
	outage time.Duration
	rate   int // calls a second
}

// A drilled is what the app would have seen under one policy.
type drilled struct {
	Policy   string         `json:"policy"`
	Calls    int            `json:"calls"`
	Failed   int            `json:"failed"`
	Attempts int            `json:"attempts"`
	Longest  time.Duration  `json:"longest_ns"` // that a call took, from the app's point of view
	SavedBy  map[string]int `json:"saved_by"`
}

func (c *cli) claudeDrill() *cobra.Command {
	cmd := &cobra.Command{
		Use: "drill", Short: "Rehearse an outage of Claude, without touching anything real",
		Example: "  mainstay claude drill overload", Args: knownVerb, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var d drill
	var asJSON bool
	overload := &cobra.Command{
		Use: "overload", Short: "See what the app would see while Claude answers 529", Args: noArgs,
		Long: `Runs the claude section of the file in this process, on loopback, before a fake of the
Claude API that answers 529 for a while and then recovers, and sends it short calls;
beside it the same with the policy compatible. Neither the running Mainstay nor the
real API is touched, and nothing is paid for: every upstream, those of claude.routes
too, is a fake, and claude.spend does not count.`,
		Example: "  mainstay claude drill overload\n  mainstay claude drill overload --for 30s --rate 5\n  mainstay claude drill overload --json | jq '.[0].failed'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.outage < time.Second || d.outage > 5*time.Minute {
				return fmt.Errorf("%w: --for must be from 1s to 5m", errUsage)
			}
			if d.rate < 1 || d.rate > 100 {
				return fmt.Errorf("%w: --rate must be from 1 to 100", errUsage)
			}
			res, err := c.resolve(nil)
			if err != nil {
				return err
			}
			seen, err := d.run(cmd.Context(), res.Claude)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(seen)
			}
			return printDrill(cmd.OutOrStdout(), d, seen)
		},
	}
	overload.Flags().DurationVar(&d.outage, "for", 10*time.Second, "how long the fake answers 529")
	overload.Flags().IntVar(&d.rate, "rate", 4, "calls a second")
	overload.Flags().BoolVar(&asJSON, "json", false, "print the figures as JSON; times are in nanoseconds")
	cmd.AddCommand(overload)
	return cmd
}

// run drills the section as it is, and with the policy compatible, at the same time.
func (d drill) run(ctx context.Context, own claude.Config) ([]drilled, error) {
	other := own
	other.Retry.Policy = "compatible"
	seen, errs := make([]drilled, 2), make([]error, 2)
	var wg sync.WaitGroup
	for i, cfg := range []claude.Config{own, other} {
		wg.Go(func() { seen[i], errs[i] = d.under(ctx, cfg) })
	}
	wg.Wait()
	seen[0].Policy += " (the file's)"
	return seen, errors.Join(errs...)
}

// under drills one policy.
func (d drill) under(ctx context.Context, cfg claude.Config) (drilled, error) {
	fake := claudetest.New(claudetest.Options{Latency: 20 * time.Millisecond})
	healthy := claudetest.New(claudetest.Options{Latency: 20 * time.Millisecond})
	for _, f := range []*claudetest.Server{fake, healthy} {
		if err := f.Open("127.0.0.1:0"); err != nil {
			return drilled{}, err
		}
		defer f.Close()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return drilled{}, fmt.Errorf("listen for the drill: %w", err)
	}
	cfg.Upstream, cfg.Spend.Daily, cfg.Routes = fake.URL(), 0, slices.Clone(cfg.Routes)
	for i := range cfg.Routes {
		if r := &cfg.Routes[i]; r.Upstream != "" {
			r.Upstream, r.Kind = healthy.URL(), ""
		}
	}
	seen := &witness{drilled: drilled{Policy: cfg.Retry.Policy, SavedBy: map[string]int{}}}
	srv, err := claude.New(cfg, claude.Deps{Listener: ln, Dial: loopback, Sink: seen})
	if err != nil {
		return drilled{}, errors.Join(err, ln.Close())
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() { ran <- srv.Run(serving) }()
	err = d.call(ctx, "http://"+ln.Addr().String(), fake, seen)
	stop()
	return seen.drilled, errors.Join(err, <-ran)
}

// loopback connects to this machine alone, whatever the file says.
func loopback(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("a drill does not call %s", addr)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

// call plays the app while the fake goes through the outage, and waits for all calls.
func (d drill) call(ctx context.Context, url string, fake *claudetest.Server, seen *witness) error {
	before, after := d.outage/5, d.outage/2
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, before+d.outage+after+patience)
	defer cancel()
	down := time.AfterFunc(before, func() { fake.SetFaults(1, claudetest.Overloaded) })
	up := time.AfterFunc(before+d.outage, func() { fake.SetFaults(0) })
	defer down.Stop()
	defer up.Stop()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(time.Second / time.Duration(d.rate))
	defer tick.Stop()
	var calls sync.WaitGroup
	for i := range int((before + d.outage + after).Seconds() * float64(d.rate)) {
		calls.Go(func() {
			began := time.Now()
			seen.saw(ask(ctx, client, url, i), time.Since(began))
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	calls.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the drill was given up: %w", err)
	}
	return nil
}

// ask makes a short call, every other one a stream, and tells whether its answer is whole.
func ask(ctx context.Context, client *http.Client, url string, i int) bool {
	stream := i%2 == 1
	body := fmt.Sprintf(`{"model":"claude-sonnet-5","max_tokens":64,"stream":%v,"messages":[{"role":"user","content":"drill %d"}]}`, stream, i)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/messages", strings.NewReader(body))
	if err != nil {
		return false
	}
	req.Header.Set("X-Api-Key", "drill-"+strconv.Itoa(i%3))
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	const most = 1 << 20
	answer, err := io.ReadAll(io.LimitReader(res.Body, most))
	if err != nil || res.StatusCode != http.StatusOK {
		return false
	}
	if stream {
		return strings.Contains(string(answer), "event: message_stop")
	}
	return json.Valid(answer)
}

// A witness adds up what a drill comes to.
type witness struct {
	mu sync.Mutex
	drilled
}

func (w *witness) saw(good bool, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Calls++
	if !good {
		w.Failed++
	}
	w.Longest = max(w.Longest, took)
}

// Record takes from the plane what the app does not see.
func (w *witness) Record(x *telemetry.Exchange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Attempts += x.Tries
	if x.GenAI.Saved != "" {
		w.SavedBy[strings.Clone(x.GenAI.Saved)]++
	}
}

// Emit does nothing.
func (w *witness) Emit(telemetry.Event) {}

func printDrill(out io.Writer, d drill, seen []drilled) error {
	fmt.Fprintf(out, "Claude answered 529 for %s; %d calls a second, half of them streams.\n\n", d.outage, d.rate)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POLICY\tCALLS\tFAILED\tATTEMPTS\tLONGEST\tSAVED BY")
	for _, s := range seen {
		var saved []string
		for how, n := range s.SavedBy {
			saved = append(saved, fmt.Sprintf("%s %d", how, n))
		}
		slices.Sort(saved)
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", s.Policy, s.Calls, s.Failed, s.Attempts, brief(s.Longest), strings.Join(saved, ", "))
	}
	return w.Flush()
}
