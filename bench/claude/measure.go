package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A figure is what the turns of a subject came to.
type figure struct {
	p50   []float64 // of each turn, in microseconds
	cpu   time.Duration
	calls int
	took  time.Duration
}

// micros is the processor time of a call.
func (f figure) micros() float64 { return micros(f.cpu) / float64(f.calls) }

// measure gives the subjects of a row their turns, and prints what these came to: of
// latency the median, and the median of the ratios within each round; of processor
// time, which is counted in ticks of 10 ms, the sum.
func (b *bench) measure(ctx context.Context, h *house, r row) error {
	figures := make([]figure, len(r.subjects))
	for round := range b.rounds + 1 {
		for i := range r.subjects {
			i = (i + round) % len(r.subjects) // nobody is always first
			f, err := b.turn(ctx, h, r, r.subjects[i])
			if err != nil {
				return fmt.Errorf("%s: %w", r.subjects[i], err)
			}
			if round > 0 { // the first is for getting warm
				g := &figures[i]
				g.p50, g.cpu, g.calls, g.took = append(g.p50, f.p50), g.cpu+f.cpu, g.calls+f.calls, g.took+f.took
			}
		}
	}
	for i, name := range r.subjects {
		f, base := figures[i], figures[r.base]
		line := fmt.Sprintf("| %s | %s | %.0f", r.name, name, median(f.p50))
		direct := slices.Index(r.subjects, "direct")
		rest := fmt.Sprintf("%.1f | %.2f | %.0f", f.micros(), f.micros()/base.micros(), float64(f.calls)/f.took.Seconds())
		switch {
		case i == direct:
			line += fmt.Sprintf(" | | | | | %.0f", float64(f.calls)/f.took.Seconds())
		case direct >= 0:
			added := minus(f.p50, figures[direct].p50)
			line += fmt.Sprintf(" | %.0f | %.2f | %s", median(added), median(ratios(added, minus(base.p50, figures[direct].p50))), rest)
		default:
			line += fmt.Sprintf(" | | %.2f | %s", median(ratios(f.p50, base.p50)), rest)
		}
		fmt.Println(line + " |")
	}
	return nil
}

type turn struct {
	p50   float64 // of calls that come one after the other
	cpu   time.Duration
	calls int
	took  time.Duration // of the calls at saturation, which cpu is of
}

// turn is one subject's: calls one after the other for p50, then as many as callers can
// make for the processor time of one.
func (b *bench) turn(ctx context.Context, h *house, r row, name string) (t turn, err error) {
	body := r.body
	if name == "plain stream" {
		name, body = "plain", message(true)
	}
	p := h.subjects[name]
	took, err := drive(ctx, p.url, body, 1, b.span)
	if err != nil {
		return t, err
	}
	t.p50 = micros(took[len(took)/2])
	before, began := spent(p.pid), time.Now()
	if took, err = drive(ctx, p.url, body, b.clients, b.span); err != nil {
		return t, err
	}
	t.cpu, t.calls, t.took = spent(p.pid)-before, len(took), time.Since(began)
	return t, nil
}

// drive makes calls from so many callers for a time, and returns how long they took, in
// order.
func drive(ctx context.Context, url, body string, clients int, span time.Duration) ([]time.Duration, error) {
	tr := &http.Transport{DisableCompression: true, MaxIdleConns: clients, MaxIdleConnsPerHost: clients}
	defer tr.CloseIdleConnections()
	took, errs := make([][]time.Duration, clients), make(chan error, clients)
	begun := time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for time.Since(begun) < span {
				at := time.Now()
				if err := call(ctx, tr, url, body); err != nil {
					errs <- fmt.Errorf("call %d of caller %d of %d: %w", len(took[i]), i, clients, err)
					return
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	return all, nil
}

func call(ctx context.Context, tr *http.Transport, url, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/messages", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header["X-Api-Key"] = []string{"sk-ant-of-the-bench"}
	req.Header["Anthropic-Version"] = []string{"2023-06-01"}
	req.Header["Content-Type"] = []string{"application/json"}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || n < int64(len(said))) {
		err = fmt.Errorf("%s and %d bytes", res.Status, n)
	}
	return err
}

// spent is the CPU time of a process so far (proc(5), fields 14 and 15, in ticks of
// 10 ms).
func spent(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func median(of []float64) float64 {
	of = slices.Sorted(slices.Values(of))
	return of[len(of)/2]
}

func ratios(a, b []float64) []float64 { return each(a, b, func(x, y float64) float64 { return x / y }) }
func minus(a, b []float64) []float64  { return each(a, b, func(x, y float64) float64 { return x - y }) }

func each(a, b []float64, of func(x, y float64) float64) []float64 {
	all := make([]float64, len(a))
	for i := range a {
		all[i] = of(a[i], b[i])
	}
	return all
}
