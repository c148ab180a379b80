package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"mainstay.dev/mainstay/bench/pooler/internal/turns"
)

// A pairedCell is a plan without its subjects, with a name for its rows.
type pairedCell struct {
	name string
	plan turns.Plan
}

// plain is pgbench's own SELECT in one way of the protocol.
func plain(protocol string, clients int) pairedCell {
	return pairedCell{fmt.Sprintf("%s, %d clients", protocol, clients), turns.Plan{Protocol: protocol, Clients: clients}}
}

// A column is something of which a subject's slice is compared with a peer's.
type column struct {
	title string
	of    func(turns.Slice) float64
}

// A view is which figures of a cell are printed.
type view struct {
	title   string // of the figures, as columns
	figures func(*turns.Outcome) string
	ratios  []column
}

var (
	costs = view{
		"tps | CPU, µs |",
		func(o *turns.Outcome) string {
			sum := o.Total()
			micros := "–"
			if sum.CPU > 0 {
				micros = fmt.Sprintf("%.1f", perTransaction(sum))
			}
			return fmt.Sprintf("%.0f | %s |", float64(sum.Transactions)/sum.Took.Seconds(), micros)
		},
		[]column{{"CPU", perTransaction}, {"tps", func(s turns.Slice) float64 { return float64(s.Transactions) / s.Took.Seconds() }}},
	}
	latencies = view{
		"p50, p95, p99 in ms |",
		func(o *turns.Outcome) string {
			return fmt.Sprintf("%.2f, %.2f, %.2f |", millis(o.P50), millis(o.P95), millis(o.P99))
		},
		[]column{
			{"p50", func(s turns.Slice) float64 { return millis(s.P50) }},
			{"p95", func(s turns.Slice) float64 { return millis(s.P95) }},
			{"p99", func(s turns.Slice) float64 { return millis(s.P99) }},
		},
	}
)

// perTransaction is in microseconds.
func perTransaction(s turns.Slice) float64 {
	return float64(s.CPU.Nanoseconds()) / 1000 / float64(s.Transactions)
}

// paired measures each cell for the subjects that carry it, in slices that alternate, and
// prints for each view their figures and how they compare with each peer's: those of the
// first as they come.
func (b *bench) paired(ctx context.Context, all []*subject, cells []pairedCell, first view, more ...view) error {
	fmt.Print(first.head(all))
	later := make([]string, len(more))
	agreed := map[string]string{}
	for _, c := range cells {
		outcomes, err := b.outcomes(ctx, all, c)
		if err != nil {
			return err
		}
		fmt.Print(first.rows(all, c, outcomes))
		for i, v := range more {
			later[i] += v.rows(all, c, outcomes)
		}
		for s, o := range outcomes {
			agreed[s.name] = o.TLS
		}
	}
	for i, v := range more {
		fmt.Print("\n", v.head(all), later[i])
	}
	fmt.Println()
	for _, s := range all {
		if what := agreed[s.name]; what != "" {
			fmt.Printf("%s agrees with its clients on %s.\n\n", s.name, what)
		}
	}
	return nil
}

// head is the first two lines of a table.
func (v view) head(all []*subject) string {
	titles := []string{"| | | " + v.title}
	for _, peer := range all {
		for _, r := range v.ratios {
			if peer.peer {
				titles = append(titles, fmt.Sprintf("%s, × %s |", r.title, peer.name))
			}
		}
	}
	head := strings.Join(titles, " ")
	return head + "\n" + strings.Repeat("|---", strings.Count(head, "|")-1) + "|\n"
}

// rows are those of a cell.
func (v view) rows(all []*subject, c pairedCell, outcomes map[*subject]*turns.Outcome) (text string) {
	for _, s := range all {
		if own := outcomes[s]; own != nil {
			text += fmt.Sprintf("| %s | %s | %s%s\n", c.name, s.name, v.figures(own), besidePeers(all, outcomes, s, v.ratios))
		}
	}
	return text
}

// besidePeers are the columns of what s gave as a multiple of what each peer gave.
func besidePeers(all []*subject, outcomes map[*subject]*turns.Outcome, s *subject, columns []column) (text string) {
	for _, peer := range all {
		if !peer.peer {
			continue
		}
		for _, c := range columns {
			r := "–"
			if peer == s {
				r = "1"
			} else if outcomes[peer] != nil {
				r = compare(values(outcomes[s], c), values(outcomes[peer], c)).String()
			}
			text += " " + r + " |"
		}
	}
	return text
}

func values(o *turns.Outcome, c column) (all []float64) {
	for _, s := range o.Slices {
		all = append(all, c.of(s))
	}
	return all
}

// outcomes carries out a cell.
func (b *bench) outcomes(ctx context.Context, all []*subject, c pairedCell) (map[*subject]*turns.Outcome, error) {
	c.plan.Slice, c.plan.Pause, c.plan.Rounds = b.slice, b.pause, b.rounds
	var able []*subject
	for _, s := range all {
		if s.old && c.plan.Protocol == "prepared" {
			continue
		}
		able = append(able, s)
		c.plan.Subjects = append(c.plan.Subjects, turns.Subject{Name: s.name, Port: s.port, PID: s.pid})
	}
	found, err := turns.Run(ctx, c.plan, "-load")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	outcomes := map[*subject]*turns.Outcome{}
	for i, s := range able {
		outcomes[s] = &found[i]
	}
	return outcomes, nil
}

// An interval is where a ratio lies with a probability of 95%: around mean.
type interval struct {
	mean, within float64
	pairs        int
}

func (i interval) String() string {
	if i.pairs == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3f ±%.3f", i.mean, i.within)
}

// compare is the geometric mean of the ratios of own to peer, pair by pair. A pair in
// which one of them is not known counts for nothing.
func compare(own, peer []float64) (i interval) {
	var logs []float64
	sum := 0.
	for n := range min(len(own), len(peer)) {
		if own[n] > 0 && peer[n] > 0 {
			l := math.Log(own[n] / peer[n])
			logs, sum = append(logs, l), sum+l
		}
	}
	if i.pairs = len(logs); i.pairs == 0 {
		return i
	}
	mean := sum / float64(i.pairs)
	squares := 0.
	for _, l := range logs {
		squares += (l - mean) * (l - mean)
	}
	i.mean, i.within = math.Exp(mean), math.Inf(1)
	if i.pairs > 1 {
		freedom := float64(i.pairs - 1)
		half := student(freedom) * math.Sqrt(squares/freedom/float64(i.pairs))
		i.within = i.mean * math.Sinh(half) // half the width of exp(mean-half) to exp(mean+half)
	}
	return i
}

// student is the quantile of Student's distribution for an interval of 95%, by the first
// terms of its expansion in the normal one's (Abramowitz and Stegun, 26.7.5).
func student(freedom float64) float64 {
	const z = 1.959964
	const z3, z5, z7 = z * z * z, z * z * z * z * z, z * z * z * z * z * z * z
	return z + (z3+z)/(4*freedom) + (5*z5+16*z3+3*z)/(96*freedom*freedom) +
		(3*z7+19*z5+17*z3-15*z)/(384*freedom*freedom*freedom)
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
