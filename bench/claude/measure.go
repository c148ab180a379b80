package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/bench/internal/cputime"
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
// latency the median of the rounds' medians; of processor time, which is counted in
// ticks of 10 ms, the sum.
func (b *bench) measure(ctx context.Context, h *house, r row) error {
	figures := make([]figure, len(r.subjects))
	for round := range b.rounds + 1 {
		p50, err := b.oneByOne(ctx, h, r)
		if err != nil {
			return err
		}
		for i := range r.subjects {
			i = (i + round) % len(r.subjects) // nobody is always first
			p, body := h.subject(r, i)
			before, began := cputime.Spent(p.pid), time.Now()
			took, err := drive(ctx, p.url, body, b.clients, b.span)
			if err != nil {
				return fmt.Errorf("%s: %w", r.subjects[i], err)
			}
			if round == 0 { // for getting warm
				continue
			}
			g := &figures[i]
			g.p50 = append(g.p50, p50[i])
			g.cpu, g.calls, g.took = g.cpu+cputime.Spent(p.pid)-before, g.calls+len(took), g.took+time.Since(began)
		}
	}
	r.print(figures)
	return nil
}

// subject is the process that subject i of a row is, and what it is asked.
func (h *house) subject(r row, i int) (p *process, body string) {
	if name := r.subjects[i]; name != "plain stream" {
		return h.subjects[name], r.body
	}
	return h.subjects["plain"], message(true)
}

// oneByOne makes calls one after the other, a few for each subject in its turn, so that
// all of them see the same moods of the machine, and returns their medians in
// microseconds. The first calls of a turn, which find cold caches, do not count.
func (b *bench) oneByOne(ctx context.Context, h *house, r row) ([]float64, error) {
	tr := &http.Transport{DisableCompression: true}
	defer tr.CloseIdleConnections()
	took := make([][]float64, len(r.subjects))
	const turn, cold = 50, 5
	for begun := time.Now(); time.Since(begun) < b.span*time.Duration(len(r.subjects)); {
		for i, name := range r.subjects {
			p, body := h.subject(r, i)
			for n := range turn {
				at := time.Now()
				if err := call(ctx, tr, p.url, body); err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				if n >= cold {
					took[i] = append(took[i], micros(time.Since(at)))
				}
			}
		}
	}
	p50 := make([]float64, len(took))
	for i := range took {
		p50[i] = median(took[i])
	}
	return p50, nil
}

func (r row) print(figures []figure) {
	base := figures[r.base]
	direct := slices.Index(r.subjects, "direct")
	for i, name := range r.subjects {
		f := figures[i]
		rate := float64(f.calls) / f.took.Seconds()
		line := fmt.Sprintf("| %s | %s | %.0f", r.name, name, median(f.p50))
		rest := fmt.Sprintf("%.1f | %.2f | %.0f", f.micros(), f.micros()/base.micros(), rate)
		switch {
		case i == direct:
			line += fmt.Sprintf(" | | | | | %.0f", rate)
		case direct >= 0:
			added, plain := median(minus(f.p50, figures[direct].p50)), median(minus(base.p50, figures[direct].p50))
			line += fmt.Sprintf(" | %.0f | %.2f | %s", added, added/plain, rest)
		default:
			line += fmt.Sprintf(" | | %.2f | %s", median(f.p50)/median(base.p50), rest)
		}
		fmt.Println(line + " |")
	}
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

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func median(of []float64) float64 {
	of = slices.Sorted(slices.Values(of))
	return of[len(of)/2]
}

func minus(a, b []float64) []float64 {
	all := make([]float64, len(a))
	for i := range a {
		all[i] = a[i] - b[i]
	}
	return all
}
