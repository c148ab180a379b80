package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// paced is how many transactions a second are begun where not all that can be are: a
// quarter of what two cores carry.
const paced = 5000

// latency measures how long transactions take: as many as there can be, and at a pace,
// where those that start late count from when they should have.
func (b *bench) latency(ctx context.Context) error {
	all, end, err := b.both(service{auth: "trust"}, b.direct())
	if err != nil {
		return err
	}
	defer end()
	fmt.Println("| | | p50 ms | p95 ms | p99 ms | p95, ratio |\n|---|---|---|---|---|---|")
	for _, clients := range []int{50, 1000} {
		for _, protocol := range []string{"simple", "extended"} {
			c := mode(protocol, clients)
			if err := b.spread(ctx, all, c); err != nil {
				return err
			}
			c.name += fmt.Sprintf(", %d/s", paced)
			c.args = append(c.args, "-R", strconv.Itoa(paced))
			if err := b.spread(ctx, all, c); err != nil {
				return err
			}
		}
	}
	fmt.Println()
	return nil
}

// percentiles are those of one run, in milliseconds.
type percentiles struct{ p50, p95, p99 float64 }

// spread measures a cell for all subjects in turns and prints, for each, the medians of the
// rounds' percentiles, and that of the p95 as a multiple of PgBouncer's in the same round.
func (b *bench) spread(ctx context.Context, all []*subject, c cell) error {
	runs, ratios := make([][]percentiles, len(all)), make([][]float64, len(all))
	for round := range b.rounds {
		took := make([]percentiles, len(all))
		for i := range all {
			i := (i + round) % len(all)
			sorted, err := b.logged(ctx, all[i], c)
			if err != nil {
				return err
			}
			took[i] = percentiles{millis(percentile(sorted, .50)), millis(percentile(sorted, .95)), millis(percentile(sorted, .99))}
			runs[i] = append(runs[i], took[i])
		}
		beside(all, ratios, func(i int) float64 { return took[i].p95 })
	}
	for i, s := range all {
		fmt.Printf("| %s | %s | %.2f | %.2f | %.2f | %s |\n", c.name, s.name,
			middle(runs[i], func(p percentiles) float64 { return p.p50 }), middle(runs[i], func(p percentiles) float64 { return p.p95 }),
			middle(runs[i], func(p percentiles) float64 { return p.p99 }), ratio(middle(ratios[i], same), 1))
	}
	return nil
}

// logged runs a cell and returns how long each transaction took, the shortest first.
func (b *bench) logged(ctx context.Context, s *subject, c cell) (took []time.Duration, err error) {
	prefix := b.file("latency")
	out, err := b.pgbench(ctx, s, append([]string{"-n", "-T", strconv.Itoa(b.seconds), "-l", "--log-prefix", prefix}, c.args...)...)
	if err != nil {
		return nil, fmt.Errorf("pgbench through %s: %w\n%s", s.name, err, out)
	}
	err = readLogs(prefix, func(_ time.Time, d time.Duration) { took = append(took, d) })
	slices.Sort(took)
	return took, err
}

// readLogs tells of each transaction in pgbench's logs, when it ended and how long it
// took, and removes them.
func readLogs(prefix string, tell func(ended time.Time, took time.Duration)) error {
	paths, err := filepath.Glob(prefix + ".*")
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := readLog(path, tell); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// readLog reads one (https://www.postgresql.org/docs/15/pgbench.html#id-1.9.4.11.9.4).
func readLog(path string, tell func(ended time.Time, took time.Duration)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// client, transaction, microseconds, script, second, microsecond, …
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			return fmt.Errorf("%s: %q is no line of a log of pgbench", path, lines.Text())
		}
		took, err1 := strconv.ParseInt(fields[2], 10, 64)
		second, err2 := strconv.ParseInt(fields[4], 10, 64)
		micro, err3 := strconv.ParseInt(fields[5], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil {
			continue // skipped or failed
		}
		tell(time.Unix(second, micro*1000), time.Duration(took)*time.Microsecond)
	}
	return lines.Err()
}
