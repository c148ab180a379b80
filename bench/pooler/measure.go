package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/bench/internal/cputime"
)

// command is pgbench, pointed at a subject.
func (b *bench) command(ctx context.Context, s *subject, user string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "pgbench", append(args, "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", user, "bench")...)
	ssl := s.ssl
	if ssl == "" {
		ssl = "disable"
	}
	cmd.Env = append(os.Environ(), "PGPASSWORD="+secret, "PGSSLMODE="+ssl)
	cmd.Dir = b.dir
	return cmd
}

func (b *bench) pgbench(ctx context.Context, s *subject, args ...string) (string, error) {
	out, err := b.command(ctx, s, "bench", args...).CombinedOutput()
	return string(out), err
}

var (
	tps          = regexp.MustCompile(`tps = ([0-9.]+) \(without initial connection time\)`)
	tpsC         = regexp.MustCompile(`tps = ([0-9.]+) \(including reconnection times\)`)
	average      = regexp.MustCompile(`latency average = ([0-9.]+) ms`)
	transactions = regexp.MustCompile(`number of transactions actually processed: ([0-9]+)`)
)

func number(re *regexp.Regexp, text string) float64 {
	m := re.FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseFloat(m[1], 64) // digits
	return n
}

// resident is a process's memory in bytes.
func resident(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.Atoi(strings.Fields(string(text))[1])
	return pages * os.Getpagesize()
}

// A figure is what a run of a cell gave.
type figure struct{ tps, latency, micros float64 }

// median is that of each value.
func median(runs []figure) (f figure) {
	return figure{
		middle(runs, func(f figure) float64 { return f.tps }),
		middle(runs, func(f figure) float64 { return f.latency }),
		middle(runs, func(f figure) float64 { return f.micros }),
	}
}

// middle is the median of what value says of each of all; 0 of none.
func middle[T any](all []T, value func(T) float64) float64 {
	if len(all) == 0 {
		return 0
	}
	values := make([]float64, len(all))
	for i, one := range all {
		values[i] = value(one)
	}
	slices.Sort(values)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}

// A cell is a run of pgbench, by its arguments.
type cell struct {
	name string
	args []string
}

// What is not measured in slices is by pgbench, in runs of some seconds.
const runs, seconds = 7, 2

func (b *bench) measure(ctx context.Context, s *subject, c cell) (f figure, err error) {
	before := cputime.Spent(s.pid)
	out, err := b.pgbench(ctx, s, append([]string{"-n", "-T", strconv.Itoa(seconds)}, c.args...)...)
	if err != nil {
		return f, fmt.Errorf("pgbench through %s: %w\n%s", s.name, err, out)
	}
	f.tps, f.latency = max(number(tps, out), number(tpsC, out)), number(average, out)
	if n := number(transactions, out); n > 0 && s.pid != 0 {
		f.micros = float64((cputime.Spent(s.pid) - before).Microseconds()) / n
	}
	return f, nil
}

// rows measures each cell for all subjects in turns and prints the medians of the runs,
// and that of the CPU as a multiple of what PgBouncer took in the same round.
func (b *bench) rows(ctx context.Context, all []*subject, cells []cell) error {
	fmt.Println("| | | tps | average ms | pooler µs/txn | ratio |\n|---|---|---|---|---|---|")
	for _, c := range cells {
		figures, ratios := make([][]figure, len(all)), make([][]float64, len(all))
		for round := range runs {
			took := make([]figure, len(all))
			for i := range all {
				i := (i + round) % len(all) // so that nobody always comes behind the same one
				var err error
				if took[i], err = b.measure(ctx, all[i], c); err != nil {
					return err
				}
				figures[i] = append(figures[i], took[i])
			}
			beside(all, ratios, func(i int) float64 { return took[i].micros })
		}
		for i, s := range all {
			f := median(figures[i])
			fmt.Printf("| %s | %s | %.0f | %.2f | %.1f | %s |\n", c.name, s.name, f.tps, f.latency, f.micros, ratio(middle(ratios[i], same), 1))
		}
	}
	fmt.Println()
	return nil
}

// beside adds to each subject's ratios what it took in a round as a multiple of what the
// first PgBouncer took, if that was measured.
func beside(all []*subject, ratios [][]float64, took func(i int) float64) {
	for i, s := range all {
		if !s.peer || took(i) == 0 {
			continue
		}
		for j := range all {
			ratios[j] = append(ratios[j], took(j)/took(i))
		}
		return
	}
}

// same is for the middle of numbers.
func same(v float64) float64 { return v }

// ratio is a multiple of the peer's figure, if both are known.
func ratio(own, peer float64) string {
	if own == 0 || peer == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", own/peer)
}
