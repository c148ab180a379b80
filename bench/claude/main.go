// Command claude measures what Mainstay's Claude plane costs beside a plain
// httputil.ReverseProxy, in turns, before an upstream that does next to nothing:
//
//	go run ./bench/claude               # some minutes
//	go run ./bench/claude -rounds 10 -only json
//	go run ./bench/claude -faults       # what callers see of faults, in virtual time; an hour
//
// Each proxy, and the upstream, is a process of its own, in a session of its own,
// since the kernel's autogroup would have them share the client's weight otherwise.
// The plane has what the binary has: metrics, time series, the latest calls, and a
// line of log for each call. CPU is what the proxy's process itself used, from
// /proc/PID/stat. Nobody imports it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	be := flag.String("be", "", "for its own use: upstream, plain, plane or gathering")
	to := flag.String("to", "", "for its own use: where the upstream is")
	b := bench{}
	flag.DurationVar(&b.span, "t", 300*time.Millisecond, "how long each half of a turn takes: callers one after the other, and all at once")
	flag.IntVar(&b.rounds, "rounds", 40, "turns of each proxy, in each row")
	flag.IntVar(&b.clients, "c", 32, "callers at saturation")
	flag.StringVar(&b.only, "only", "", "json, stream or memory")
	faults := flag.Bool("faults", false, "simulate faults instead")
	calls := flag.Int("calls", 100_000, "with -faults: calls of each seed")
	seeds := flag.Int("seeds", 10, "with -faults: seeds")
	flag.StringVar(&profile, "profile", "", "a folder for the processor profiles of the proxies")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case *faults:
		simulated(*calls, *seeds) // does not return
	case *be != "":
		err = serve(ctx, *be, *to)
	default:
		err = b.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var profile string

type bench struct {
	span    time.Duration
	rounds  int
	clients int
	only    string
}

// A row is one kind of call, measured through the subjects that it names.
type row struct {
	name     string
	part     string
	body     string
	subjects []string
	base     int // which of them the others are compared with
}

// rows: the last one compares calls that do not stream, but are gathered from a stream,
// with a stream through the plain proxy.
var rows = []row{
	{name: "JSON, not gathered", part: "json", body: message(false), subjects: []string{"direct", "plain", "plane"}, base: 1},
	{name: "stream of 40 deltas", part: "stream", body: message(true), subjects: []string{"direct", "plain", "plane"}, base: 1},
	{name: "JSON, gathered, beside the plain proxy's stream", part: "json", body: message(false), subjects: []string{"plain stream", "gathering"}, base: 0},
}

func (b *bench) run(ctx context.Context) error {
	house, err := open()
	if err != nil {
		return err
	}
	defer house.end()
	if b.only == "" || b.only == "memory" {
		if err := b.weigh(ctx, house); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	fmt.Println("| | | p50 µs | added µs | × plain | CPU µs | × plain | a second |\n|---|---|---|---|---|---|---|---|")
	for _, r := range rows {
		if b.only != "" && b.only != r.part {
			continue
		}
		if err := b.measure(ctx, house, r); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}
