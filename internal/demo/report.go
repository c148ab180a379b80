package demo

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Figures are one side of the table.
type figures struct {
	// Percentiles of the API's requests that were answered well, from when they
	// were due. Calls to Claude are not among them.
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
	P99 float64 `json:"p99_ms"`
	// RPS is how many requests were answered well per second, of both sorts.
	RPS float64 `json:"rps"`
	// ErrorRate is the share of all requests that failed, whatever the reason.
	ErrorRate float64 `json:"error_rate"`
	// ClaudeErrorRate is the share of requests to analyze that failed because the
	// app got no answer from Claude.
	ClaudeErrorRate float64 `json:"claude_error_rate"`
	// DeployFailed counts the requests that failed while a deploy was under way, in
	// all slices together, but for those of ClaudeErrorRate, which fail at any time.
	DeployFailed int64 `json:"deploy_failed"`
	Requests     int64 `json:"requests"`
}

// claudeCause is unitehub's word for a call to Claude that failed.
const claudeCause = "claude"

func (r *result) figures() figures {
	all, api, claude, deploys := r.all.Summary(nil), r.all.Summary(isAPI), r.all.Summary(isClaude), r.deploys.Summary(nil)
	f := figures{
		P50: milliseconds(api.P50), P95: milliseconds(api.P95), P99: milliseconds(api.P99),
		ErrorRate:    rounded(all.ErrorRate(), 6),
		DeployFailed: deploys.Failed - deploys.Causes[claudeCause],
		Requests:     all.Requests,
	}
	if r.took > 0 {
		f.RPS = rounded(float64(all.OK)/r.took.Seconds(), 2)
	}
	if claude.Requests > 0 {
		f.ClaudeErrorRate = rounded(float64(claude.Causes[claudeCause])/float64(claude.Requests), 6)
	}
	return f
}

func milliseconds(d time.Duration) float64 { return rounded(d.Seconds()*1000, 3) }

func rounded(x float64, digits int) float64 {
	unit := math.Pow10(digits)
	return math.Round(x*unit) / unit
}

// A report is the table for programs.
type report struct {
	Before figures        `json:"before"`
	After  figures        `json:"after"`
	Detail map[string]any `json:"detail"` // by side: what stands behind the figures
	Setup  setup          `json:"setup"`
}

// A setup is how the figures came about.
type setup struct {
	Seed         uint64   `json:"seed"`
	Rate         float64  `json:"rate"`
	BareCapacity float64  `json:"bare_capacity,omitempty"`
	Slices       int      `json:"slices"`
	SliceSeconds float64  `json:"slice_seconds"`
	FaultRate    float64  `json:"fault_rate"`
	CPUs         int      `json:"cpus"`
	CPU          string   `json:"cpu,omitempty"`
	Platform     string   `json:"platform"`
	Go           string   `json:"go"`
	LoadAverage  float64  `json:"load_average,omitempty"`
	Doubts       []string `json:"doubts"`
}

func (m *measurement) report() report {
	rep := report{Detail: map[string]any{}, Setup: setup{
		Seed: m.opts.Seed, Rate: m.rate, BareCapacity: rounded(m.capacity, 1),
		Slices: m.opts.Slices, SliceSeconds: m.opts.Slice.Seconds(), FaultRate: m.opts.FaultRate,
		CPUs: runtime.NumCPU(), CPU: processor(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(),
		LoadAverage: m.loadavg, Doubts: m.doubts(),
	}}
	rep.Before, rep.After = m.sides[0].figures(), m.sides[1].figures()
	for _, r := range m.sides {
		all, claude := r.all.Summary(nil), r.all.Summary(isClaude)
		var deploys []float64
		for _, w := range r.windows {
			deploys = append(deploys, rounded(w.Seconds(), 3))
		}
		rep.Detail[r.side.key] = map[string]any{
			"failed_by_cause": all.Causes, "deploy_failed_by_cause": r.deploys.Summary(nil).Causes,
			"claude_requests": claude.Requests, "claude_p50_ms": milliseconds(claude.P50), "claude_p95_ms": milliseconds(claude.P95),
			"deploy_seconds": deploys, "deploys_undone": len(r.undone), "not_sent": all.Saturated, "generator_lag_p99_ms": milliseconds(all.LagP99),
		}
	}
	return rep
}

// doubts are the reasons to mistrust the figures; none is good.
func (m *measurement) doubts() []string {
	doubts := []string{}
	if m.loadavg > float64(runtime.NumCPU()) {
		doubts = append(doubts, fmt.Sprintf("the machine was busy before the demo began: load average %.1f on %d CPUs", m.loadavg, runtime.NumCPU()))
	}
	for _, r := range m.sides {
		s := r.all.Summary(nil)
		if s.Saturated > 0 {
			doubts = append(doubts, fmt.Sprintf("%s: %d requests were never sent, because too many were in flight: this side could not hold the rate", r.side.key, s.Saturated))
		}
		if s.LagP99 > 10*time.Millisecond {
			doubts = append(doubts, fmt.Sprintf("%s: the load generator itself was late (p99 %s): the machine had no time for it", r.side.key, short(s.LagP99)))
		}
		if n := r.side.program.lives(); n > 0 {
			doubts = append(doubts, fmt.Sprintf("%s: %s ended by itself and was started again, %d times", r.side.key, r.side.program.name, n))
		}
		for _, err := range r.undone {
			doubts = append(doubts, fmt.Sprintf("%s: a deploy did not come to its end: %v", r.side.key, err))
		}
	}
	return doubts
}

// processor is the model name of the first CPU; "" where the kernel does not say.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// writeReport writes the report whole or not at all.
func writeReport(path string, m *measurement) error {
	text, err := json.MarshalIndent(m.report(), "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".demo-*.json")
	if err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails when it has its final name, as it should
	_, err = f.Write(append(text, '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	return nil
}
