// Package turns loads several servers of PostgreSQL's protocol in turns, in slices of a
// fraction of a second: all connections to all of them stay open, so that what one slice
// gives can be compared with what the slice beside it gave, and a machine whose speed
// drifts changes both. The load comes from a process of its own with one thread and no
// garbage, which [Run] starts and [Serve] is.
//
// It asks pgbench -S's question of the tables that pgbench -i -s 10 makes, as the user
// bench in the database bench, without a password.
package turns

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// A Subject is what is loaded.
type Subject struct {
	Name string
	Port int // on 127.0.0.1
	PID  int // whose CPU time counts; 0: none
}

// A Plan is what is asked of the subjects.
type Plan struct {
	Subjects []Subject
	Protocol string        // simple, extended or prepared
	Clients  int           // connections to each
	TLS      bool          // they encrypt
	Rate     float64       // transactions to begin a second; 0: as many as there can be
	Traced   bool          // queries have a traceparent comment, simple ones only
	Sampled  float64       // part of those whose trace is sampled
	Slice    time.Duration // how long a subject is loaded at once
	Pause    time.Duration // between slices, for others who need the machine
	Rounds   int           // slices of each subject that count
	// Rest has a subject's CPU time counted from slice to slice and not only in them, for
	// those who do a part of their work later. It is how long the last may take.
	Rest time.Duration
}

// A Slice is what a subject gave in one.
type Slice struct {
	Transactions  int
	Took, CPU     time.Duration // CPU is 0 where there is no process to ask
	P50, P95, P99 time.Duration
}

// An Outcome is a subject's: its slices, of which those with the same index were in the
// same round, and percentiles over all of them.
type Outcome struct {
	Slices        []Slice
	P50, P95, P99 time.Duration
	TLS           string // what was agreed on
}

// Total sums the slices up.
func (o *Outcome) Total() (sum Slice) {
	for _, s := range o.Slices {
		sum.Transactions += s.Transactions
		sum.Took += s.Took
		sum.CPU += s.CPU
	}
	return sum
}

// warm is how many rounds come before those that count.
const warm = 2

// Run has this program, started again with args, carry the plan out; with them it must
// call [Serve]. The outcomes are in the order of the subjects.
func Run(ctx context.Context, p Plan, args ...string) ([]Outcome, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, self, args...)
	// The kernel's autogroup gives each session the same weight.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Nothing but the one thread is to run, and what is allocated for TLS may lie about.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=1GiB")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &out, &problems
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("load: %w\n%s", err, bytes.TrimSpace(problems.Bytes()))
	}
	var all []Outcome
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		return nil, fmt.Errorf("read what the load gave: %w", err)
	}
	return all, nil
}

// Serve carries out the plan that in has and writes the outcomes to out.
func Serve(in io.Reader, out io.Writer) error {
	var p Plan
	if err := json.NewDecoder(in).Decode(&p); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	all, err := carryOut(p)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(all)
}

// order is that of the subjects in a round. Each is first equally often, and each comes
// equally often behind each of its neighbours, for the caches are as that one left them.
func order(subjects, round int) []int {
	all := make([]int, subjects)
	for i := range all {
		step := i
		if round/subjects%2 == 1 {
			step = subjects - i // the other way round
		}
		all[i] = (round + step) % subjects
	}
	return all
}
