package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A victim is a user with few clients at a slow pace; a flood is a hundred clients of
// another, who keep every server of the pool busy in slices of a second. Between them
// are slices without a flood, the control.
const (
	slice      = time.Second
	settling   = 200 * time.Millisecond // at the beginning of a slice, which belongs to none
	victims    = 4
	victimRate = 200 // transactions a second
	flooders   = 100
)

// floods are what the other user does: sleep in PostgreSQL, so that only the queue is
// what the victim can lose by, and select without a pause, which also takes the
// processors that all of this shares.
var floods = []struct{ name, script string }{
	{"sleeps of 20 ms", "SELECT pg_sleep(0.02);\n"},
	{"SELECTs", "\\set aid random(1, 1000000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"},
}

// victim measures what a user loses by another's flood.
func (b *bench) victim(ctx context.Context) error {
	fmt.Println("| flood | | control: p95 ms (its slices) | in the flood: p95 ms (its slices) | ratio |\n|---|---|---|---|---|")
	kept, err := b.mainstay(service{auth: "trust", share: victims})
	if err != nil {
		return err
	}
	kept.name = fmt.Sprintf("Mainstay, min: %d", victims)
	all, end, err := b.start(service{auth: "trust"}, kept)
	if err != nil {
		return err
	}
	defer end()
	for _, flood := range floods {
		script, err := b.write("flood.sql", flood.script)
		if err != nil {
			return err
		}
		for _, s := range all {
			control, flooded, err := b.slices(ctx, s, script)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			fmt.Printf("| %s | %s | %s | %s | %s |\n", flood.name, s.name, control, flooded, ratio(millis(flooded.middle()), millis(control.middle())))
		}
	}
	fmt.Println()
	return nil
}

// A tally is the p95 of each slice.
type tally []time.Duration

func (t tally) sorted() tally { return slices.Sorted(slices.Values(t)) }

// middle is the median.
func (t tally) middle() time.Duration { return percentile(t.sorted(), .5) }

func (t tally) String() string {
	s := t.sorted()
	if len(s) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", millis(s.middle()), millis(s[0]), millis(s[len(s)-1]))
}

// slices lets the flood come and go beside the victim.
func (b *bench) slices(ctx context.Context, s *subject, script string) (control, flooded tally, err error) {
	const n = 14
	seconds := strconv.Itoa(n + 2)
	prefix := b.file("victim")
	flood := b.command(ctx, s, "flood", "-n", "-f", script, "-c", strconv.Itoa(flooders), "-T", seconds)
	victim := b.command(ctx, s, "victim", "-n", "-S", "-c", strconv.Itoa(victims), "-R", strconv.Itoa(victimRate), "-T", seconds, "-l", "--log-prefix", prefix)
	for _, cmd := range []*exec.Cmd{flood, victim} {
		if err := cmd.Start(); err != nil {
			return nil, nil, err
		}
	}
	// A flood that is stopped lets its queries end, and asks for nothing more.
	signal := func(sig syscall.Signal) { _ = flood.Process.Signal(sig) } // it may be over
	time.Sleep(slice)                                                    // all of them connect
	began := time.Now()
	for i := range n {
		signal(map[bool]syscall.Signal{true: syscall.SIGSTOP, false: syscall.SIGCONT}[i%2 == 0])
		time.Sleep(time.Until(began.Add(time.Duration(i+1) * slice)))
	}
	signal(syscall.SIGKILL)
	_ = flood.Wait() // it was killed
	if err := victim.Wait(); err != nil {
		return nil, nil, fmt.Errorf("pgbench of the victim: %w", err)
	}
	took := make([][]time.Duration, n)
	err = readLogs(prefix, func(ended time.Time, d time.Duration) {
		// A transaction belongs to the slice in which it was to begin.
		if at := ended.Add(-d).Sub(began); at >= 0 && at < time.Duration(n)*slice && at%slice >= settling {
			took[at/slice] = append(took[at/slice], d)
		}
	})
	for i, all := range took {
		slices.Sort(all)
		if p95 := percentile(all, .95); i%2 == 0 {
			control = append(control, p95)
		} else {
			flooded = append(flooded, p95)
		}
	}
	return control, flooded, err
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

// percentile returns the value below which the part p (0 to 1) of the sorted values is.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}
