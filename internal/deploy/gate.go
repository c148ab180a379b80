package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A warmer sends requests to a copy for warm up and smoke. Unlike a prober it
// keeps connections, and reads whole answers.
type warmer interface {
	Do(*http.Request) (*http.Response, error)
}

func newWarmer() warmer {
	return &http.Client{
		Transport: &http.Transport{
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        5 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

const (
	maxSmokeBody  = 1 << 20
	maxHookOutput = 16 << 10
)

// warm sends the new color its first requests. What they answer counts for
// nothing; a color that dies of them fails the deploy.
func (d *Deployer) warm(ctx context.Context, t *transition) error {
	cfg := d.policy.Load().Warm
	if cfg.Requests > 0 {
		d.progress(t, StepWarming, fmt.Sprintf("%d requests warm it up", cfg.Requests))
		sent, bad := d.warmUp(ctx, t, cfg)
		if bad > 0 || sent < cfg.Requests {
			d.progress(t, StepWarming, fmt.Sprintf("%d of %d requests were sent within %v, %d had no answer or a 5xx one", sent, cfg.Requests, cfg.Within, bad))
		}
	}
	if cfg.Mirror > 0 {
		d.progress(t, StepWarming, fmt.Sprintf("up to %d real requests are shown to it, too, for %v", cfg.Mirror, cfg.Within))
		if err := d.shadow(ctx, t, cfg); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (d *Deployer) warmUp(ctx context.Context, t *transition, cfg Warm) (sent, bad int) {
	_, inst := d.instance(t.next)
	at := addresses(inst)
	ctx, cancel := context.WithTimeout(ctx, cfg.Within)
	defer cancel()
	for i := range cfg.Requests {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at[i/len(cfg.Paths)%len(at)]+cfg.Paths[i%len(cfg.Paths)], nil)
		if err != nil {
			return sent, bad + 1
		}
		req.Header.Set("User-Agent", "mainstay-warm-up")
		resp, err := d.warmer.Do(req)
		if ctx.Err() != nil {
			return sent, bad
		}
		sent++
		if err != nil {
			bad++
			continue
		}
		if resp.StatusCode >= 500 {
			bad++
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxSmokeBody)) // an answer that breaks off warms, too
		_ = resp.Body.Close()
	}
	return sent, bad
}

// shadow lets the edge send copies of real requests to the new color for a while.
func (d *Deployer) shadow(ctx context.Context, t *transition, cfg Warm) error {
	set := func(n int) error {
		d.mu.Lock()
		d.mirror = n
		d.mu.Unlock()
		_, err := d.steer()
		return err
	}
	if err := set(cfg.Mirror); err != nil {
		return err
	}
	_, inst := d.instance(t.next)
	timer := time.NewTimer(cfg.Within)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-inst.Exited():
	case <-ctx.Done():
	}
	return set(0)
}

// passGates fails while something burns, unless the deploy is forced; then the
// record says what it passed over, and must have been written.
func (d *Deployer) passGates(ctx context.Context, t *transition) error {
	if d.deps.Burning == nil {
		return nil
	}
	burning := d.deps.Burning(ctx)
	if len(burning) == 0 {
		return nil
	}
	all := strings.Join(burning, "; ")
	d.mu.Lock()
	forced := t.record.Force
	if forced {
		t.record.Overrode = burning
	}
	d.mu.Unlock()
	if !forced {
		return fmt.Errorf("a gate is closed: %s; mend that first, or deploy with --force and --why", all)
	}
	if err := d.save(); err != nil {
		return fmt.Errorf("a gate is closed (%s), and that the deploy is forced could not be written down: %w", all, err)
	}
	d.progress(t, StepForced, "goes on by force though a gate is closed: "+all)
	d.emit(slog.LevelWarn, "gate_forced", t.next.color, "the deploy goes on by force though a gate is closed: "+all, slog.String("who", t.record.Who), slog.String("why", t.record.Why))
	return nil
}

// verify judges the new color by smoke requests, hooks and one more probe.
func (d *Deployer) verify(ctx context.Context, t *transition) error {
	cfg := d.policy.Load()
	id, inst := d.instance(t.next)
	for _, s := range cfg.Smoke {
		for _, at := range addresses(inst) {
			if why := d.smoke(ctx, at, s); why != "" {
				return &StartError{Target: id, What: "failed the smoke request " + s.line() + " at " + at + ": it " + why, Lines: inst.LastLines()}
			}
		}
		d.progress(t, StepVerifying, s.line()+" is answered as expected")
	}
	for _, h := range cfg.Hooks {
		if h.On != string(Verifying) {
			continue
		}
		if r := d.hook(ctx, t, h); !r.OK {
			return fmt.Errorf("hook %q failed: %s", r.Name, strings.TrimSpace(r.Output))
		}
		d.progress(t, StepVerifying, "hook "+h.name()+" agrees")
	}
	select {
	case <-inst.Exited():
		return &StartError{Target: id, What: "ended before the switch: " + inst.Exit().String(), Lines: inst.LastLines()}
	default:
	}
	if err := first(d.ask(ctx, inst, cfg.Health)); err != nil {
		return &StartError{Target: id, What: "was healthy, and is not any more: " + brief(err), Lines: inst.LastLines()}
	}
	return nil
}

func (s Smoke) line() string {
	if s.Method == "" {
		return "GET " + s.Path
	}
	return s.Method + " " + s.Path
}

// smoke sends one request and says what is wrong with the answer, if anything is.
func (d *Deployer) smoke(ctx context.Context, address string, s Smoke) string {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, s.Method, "http://"+address+s.Path, strings.NewReader(s.Body))
	if err != nil {
		return "cannot be sent: " + err.Error()
	}
	req.Header.Set("User-Agent", "mainstay-smoke")
	for k, v := range s.Headers {
		if strings.EqualFold(k, "Host") {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	resp, err := d.warmer.Do(req)
	var body []byte
	if err == nil {
		defer resp.Body.Close()
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxSmokeBody))
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("was not answered within %v", s.Timeout)
	case err != nil:
		return "got no whole answer: " + bare(err).Error()
	}
	return expectation{s.Status, s.Contains, s.Header}.unmet(resp, body)
}

// told runs the hooks that are told of how a deploy ended.
func (d *Deployer) told(t *transition, p Phase) {
	for _, h := range d.policy.Load().Hooks {
		if h.On != string(p) {
			continue
		}
		r := d.hook(t.life, t, h)
		text := "hook " + r.Name + " was told"
		if !r.OK {
			text = "hook " + r.Name + " failed: " + strings.TrimSpace(r.Output)
			d.deps.Log.Warn("a hook failed", "hook", r.Name, "output", r.Output)
		}
		d.progress(t, StepHook, text)
	}
}

// hook runs h within its timeout and keeps what came of it in the record.
func (d *Deployer) hook(ctx context.Context, t *transition, h Hook) HookResult {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	var out string
	var err error
	if len(h.Run) > 0 {
		out, err = d.runHook(ctx, t, h)
	} else {
		out, err = d.postHook(ctx, t, h)
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end within %v", h.Timeout)
	}
	if err != nil {
		out += err.Error()
	}
	r := HookResult{Name: h.name(), On: Phase(h.On), OK: err == nil, TookMS: time.Since(began).Milliseconds(), Output: out}
	d.mu.Lock()
	t.record.Hooks = append(t.record.Hooks, r)
	d.mu.Unlock()
	return r
}

func (d *Deployer) runHook(ctx context.Context, t *transition, h Hook) (string, error) {
	env, err := d.deps.Env(t.next.color)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	r, address := t.record, ""
	if t.next.inst != nil {
		address = t.next.inst.Handle().Address
	}
	d.mu.Unlock()
	cmd := exec.CommandContext(ctx, h.Run[0], h.Run[1:]...)
	cmd.Dir = t.next.release.folder()
	cmd.Env = append(append(slices.Clip(env), t.next.release.Env...), "MAINSTAY_PHASE="+string(r.Phase), "MAINSTAY_COLOR="+r.Color, "MAINSTAY_TARGET="+r.Target,
		"MAINSTAY_ADDRESS="+address, "MAINSTAY_VERSION="+r.Version, fmt.Sprintf("MAINSTAY_NUMBER=%d", r.Number))
	out := &tail{limit: maxHookOutput}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it started ends with it
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	return out.String(), err
}

func (d *Deployer) postHook(ctx context.Context, t *transition, h Hook) (string, error) {
	d.mu.Lock()
	r := t.record.clone()
	d.mu.Unlock()
	r.Steps, r.Hooks, r.Command = nil, nil, nil // a command may hold what is nobody's business
	body, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL.Reveal(), bytes.NewReader(body))
	if err != nil {
		return "", errors.New("the address of the webhook cannot be used")
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.warmer.Do(req)
	if err != nil {
		return "", fmt.Errorf("no answer: %w", bare(errors.Unwrap(err))) // without the address, which is a secret
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxHookOutput)) // what came is enough to be shown
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return string(answer), fmt.Errorf("it answered %s", resp.Status)
	}
	return string(answer), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	limit int
	b     []byte
}

func (w *tail) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	if over := len(w.b) - w.limit; over > 0 {
		w.b = append(w.b[:0], w.b[over:]...)
	}
	return len(p), nil
}

func (w *tail) String() string { return strings.ToValidUTF8(string(w.b), "?") }
