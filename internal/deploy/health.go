package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// prober asks a copy over HTTP whether it is fit. Every probe has a connection of
// its own, so that a copy that no longer accepts any is noticed.
type prober struct{ client *http.Client }

func newProber() *prober {
	return &prober{&http.Client{
		Transport: &http.Transport{
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// maxProbeBody is how much of an answer's body is read before the connection is
// dropped.
const maxProbeBody = 64 << 10

// probe returns nil if the copy at address is fit, or an error that says what was
// asked and what came.
func (p *prober) probe(ctx context.Context, address string, h Health) error {
	path := h.Path
	if path == "" {
		path = "/"
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return fmt.Errorf("probe %s: %w", path, err)
	}
	req.Header.Set("User-Agent", "mainstay-health")
	resp, err := p.client.Do(req)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("GET %s got no answer within %v", path, h.Timeout)
	case errors.Is(err, syscall.ECONNREFUSED):
		return err
	case err != nil:
		return fmt.Errorf("GET %s got no HTTP answer: %w", path, bare(err))
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody)) // lets the app finish its answer; whether it can is not judged
	_ = resp.Body.Close()
	want := expectation{h.Status, h.Contains, h.Header}
	if h.Path == "" {
		want.status = "100-499"
	}
	if why := want.unmet(resp, body); why != "" {
		return fmt.Errorf("GET %s %s", path, why)
	}
	return nil
}

// An expectation is what an answer must be like.
type expectation struct{ status, contains, header string }

// unmet says in words what is not as expected; empty if all is.
func (e expectation) unmet(resp *http.Response, body []byte) string {
	low, high, err := statuses(e.status)
	if s := resp.StatusCode; err != nil || s < low || s > high {
		why := "answered " + strings.TrimSpace(fmt.Sprint(s, " ", http.StatusText(s)))
		if e.status != "" && s < 500 {
			why += ", not " + e.status
		}
		return why
	}
	if !bytes.Contains(body, []byte(e.contains)) {
		return fmt.Sprintf("answered without the text %q", e.contains)
	}
	if e.header == "" {
		return ""
	}
	name, want, valued := strings.Cut(e.header, ":")
	got := resp.Header.Values(strings.TrimSpace(name))
	want = strings.TrimSpace(want)
	matches := func(v string) bool {
		return strings.EqualFold(v, want) || strings.HasPrefix(strings.ToLower(v), strings.ToLower(want)+";")
	}
	if len(got) == 0 || valued && !slices.ContainsFunc(got, matches) {
		return fmt.Sprintf("answered without the header %q (it has %q)", e.header, strings.Join(got, ", "))
	}
	return ""
}

// bare strips what net/http puts around an error: method and address are in the
// sentence already.
func bare(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil || !strings.HasPrefix(err.Error(), "Get ") {
			return err
		}
		err = inner
	}
}

// explain says why a probe of inst gave err, and what would mend it. For a copy
// that refuses connections it looks where the copy listens instead.
func explain(inst Instance, err error) (why, mend string) {
	if e, ok := inst.(Explainer); ok {
		if why, mend = e.Explain(); why != "" {
			return why, mend
		}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) || len(addresses(inst)) > 1 {
		return err.Error(), ""
	}
	want, perr := netip.ParseAddrPort(inst.Handle().Address)
	if perr != nil {
		return err.Error(), ""
	}
	at, lerr := inst.Listening()
	if lerr != nil {
		return fmt.Sprintf("nothing accepts connections on %v (where the app listens could not be read: %v)", want, lerr), ""
	}
	if len(at) == 0 {
		return fmt.Sprintf("the app does not listen on PORT=%d yet", want.Port()), ""
	}
	var ports []string
	for _, a := range at {
		if a.Port() == want.Port() {
			return fmt.Sprintf("the app listens on %v, not on %v", a, want),
				"make it listen on 127.0.0.1 or 0.0.0.0 (for example HOSTNAME=0.0.0.0 for Next.js)"
		}
		if port := fmt.Sprint(a.Port()); len(ports) == 0 || ports[len(ports)-1] != port {
			ports = append(ports, port)
		}
	}
	return fmt.Sprintf("the app listens on %s, not on PORT=%d", strings.Join(ports, ", "), want.Port()),
		"make it read PORT (for example `next start -p $PORT`)"
}

// ask probes every address of inst and says which are not fit, and why.
func (d *Deployer) ask(ctx context.Context, inst Instance, h Health) map[string]error {
	at := addresses(inst)
	errs := make([]error, len(at))
	var probes sync.WaitGroup
	for i, a := range at[1:] {
		probes.Go(func() { errs[i+1] = d.probe(ctx, a, h) })
	}
	errs[0] = d.probe(ctx, at[0], h)
	probes.Wait()
	faults := map[string]error{}
	for i, err := range errs {
		if err != nil && len(at) > 1 {
			err = fmt.Errorf("%s: %w", at[i], bare(err))
		}
		if err != nil {
			faults[at[i]] = err
		}
	}
	return faults
}

// first is one of the faults, always the same: of the address that comes first.
func first(faults map[string]error) error {
	for _, a := range slices.Sorted(maps.Keys(faults)) {
		return faults[a]
	}
	return nil
}

// awaitHealthy probes inst until it is healthy; it gives up when inst ends, when
// health.start_within is over, or when ctx is done. tell is called with each new
// reason why it is not healthy yet. A new release must be healthy at all of its
// addresses; one that served before at one of them, the others are out.
func (d *Deployer) awaitHealthy(ctx context.Context, id string, inst Instance, all bool, tell func(Step, string)) (out map[string]error, err error) {
	h := d.policy.Load().Health
	deadline := time.NewTimer(h.StartWithin)
	defer deadline.Stop()
	tick := time.NewTicker(min(h.Interval, d.timing.startProbe))
	defer tick.Stop()
	w := waiting{began: time.Now(), notice: d.timing.notice}
	for good := 0; ; {
		out = d.ask(ctx, inst, h)
		err := first(out)
		if err == nil || !all && len(out) < len(addresses(inst)) {
			good++
		} else if ctx.Err() == nil {
			good = 0
			if w.learn(inst, err) {
				tell(StepWaiting, w.text())
			}
			d.logWaiting(id, &w)
		}
		select {
		case <-inst.Exited():
			return nil, &StartError{Target: id, What: "ended before it was healthy: " + inst.Exit().String(), Lines: inst.LastLines()}
		default:
		}
		if good >= h.HealthyAfter {
			return out, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s to become healthy: %w", id, context.Cause(ctx))
		case <-inst.Exited():
		case <-deadline.C:
			return nil, &StartError{
				Target: id, What: fmt.Sprintf("was not healthy within %v (health.start_within): %s", h.StartWithin, w.why),
				Mend: w.mend, Lines: inst.LastLines(),
			}
		case <-tick.C:
		}
	}
}

// waiting is what is known of a copy that is not healthy yet.
type waiting struct {
	began        time.Time
	notice       time.Duration // until then a reason may well pass by itself
	why, mend    string
	told, logged string
	level        slog.Level // at which logged was logged
	looked       time.Time
}

func (w *waiting) young() bool { return time.Since(w.began) < w.notice }

func (w *waiting) text() string {
	if w.mend == "" {
		return w.why
	}
	return w.why + ": " + w.mend
}

// learn looks into why a probe gave err and reports whether that is news worth
// telling. An app may listen elsewhere first and on PORT a moment later, so what
// needs a mend is told only after a while.
func (w *waiting) learn(inst Instance, err error) (news bool) {
	refused := errors.Is(err, syscall.ECONNREFUSED)
	if refused && w.why != "" && time.Since(w.looked) < w.notice/4 {
		return false // looking costs a walk through /proc
	}
	w.looked = time.Now()
	w.why, w.mend = explain(inst, err)
	if w.mend != "" && w.young() || w.text() == w.told {
		return false
	}
	w.told = w.text()
	return true
}

// logWaiting puts into the log what a copy waits for once that takes long, so
// that nobody has to sit out the deadline to learn what to mend: what passes by
// itself in most apps as a note first, and as a warning only after a good while.
func (d *Deployer) logWaiting(id string, w *waiting) {
	if w.young() {
		return
	}
	level := slog.LevelInfo
	if w.mend != "" || time.Since(w.began) >= 5*w.notice {
		level = slog.LevelWarn
	}
	if w.text() == w.logged && level <= w.level {
		return
	}
	w.logged, w.level = w.text(), level
	d.deps.Log.Log(context.Background(), level, "the app is not healthy yet", "target", id, "reason", w.text())
}
