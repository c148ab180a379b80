// Command deploy measures what users notice of a switch from one version of an app
// to the next: 1,000 switches of Mainstay's edge under open-loop load, and a few of
// it and of its peers beside one another, with the same load. Both versions of the
// app live on all the time, so whatever is cut is the proxy's doing.
//
// kamal-proxy, nginx, haproxy and caddy are found in PATH, or by KAMAL_PROXY,
// NGINX, HAPROXY and CADDY; one that is not there is left out, and told so. The
// exit code is 1 if Mainstay failed or cut anything.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"
)

func main() {
	switches := flag.Int("switches", 1000, "switches of the long run")
	every := flag.Duration("every", 250*time.Millisecond, "the time between two of them")
	peers := flag.Bool("peers", true, "compare with the peers")
	listen := flag.String("serve", "", "be the edge (used by the command itself)")
	control := flag.String("control", "", "where the edge is told to switch")
	flag.Parse()
	if *listen != "" {
		if err := serve(*listen, *control); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := bench(*switches, *every, *peers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func bench(switches int, every time.Duration, peers bool) error {
	one, err := app("one")
	if err != nil {
		return err
	}
	two, err := app("two")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-deploy-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	fmt.Println("| | switches | requests | failed | p99 near a switch | new version after | stale | WS cut / told | SSE cut / told / holes | 8 s requests lost | 100 MB | 30 s stream |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|")
	var bad error
	m, err := mainstay(one)
	if err != nil {
		return err
	}
	bad = try(m, one, two, switches, every)
	if !peers {
		return bad
	}
	makers := []func(dir string) (*proxy, error){
		func(string) (*proxy, error) { return mainstay(one) },
		func(dir string) (*proxy, error) { return kamal(dir, one) },
		func(dir string) (*proxy, error) { return nginx(dir, one) },
		func(dir string) (*proxy, error) { return haproxy(dir, one, two) },
		func(dir string) (*proxy, error) { return caddy(dir, one) },
	}
	for i, make := range makers {
		at := fmt.Sprintf("%s/%d", dir, i)
		if err := os.Mkdir(at, 0o700); err != nil {
			return err
		}
		p, err := make(at)
		if errors.Is(err, errAbsent) {
			fmt.Fprintln(os.Stderr, err)
			continue
		}
		if err != nil {
			return err
		}
		if err := try(p, one, two, 5, 6*time.Second); i == 0 {
			bad = errors.Join(bad, err)
		} else if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return bad
}

// try puts a proxy under load, switches it, and prints its row.
func try(p *proxy, one, two string, switches int, every time.Duration) error {
	if err := p.start(); err != nil {
		return err
	}
	defer settle(context.Background())
	defer p.stop()
	l := newLoad(p.addr, p.h2)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx) })
	time.Sleep(beforeFirst)
	var flips []aflip
	for n := range switches {
		to, name := two, "two"
		if n%2 > 0 {
			to, name = one, "one"
		}
		f := aflip{begun: time.Since(l.began), to: name}
		if err := p.flip(to); err != nil {
			l.fail("switch", err)
		}
		f.done = time.Since(l.began)
		flips = append(flips, f)
		time.Sleep(max(0, every-(f.done-f.begun)))
	}
	cancel()
	wg.Wait()
	p99, fresh, stale := l.judge(flips)
	fmt.Printf("| %s | %d | %d | %d | %v | %v | %d | %d / %d | %d / %d / %d | %d of %d | %s | %s |\n", p.name, len(flips), l.requests.Load(), l.failed.Load(),
		p99.Round(100*time.Microsecond), fresh.Round(100*time.Microsecond), stale, l.wsCut.Load(), l.wsTold.Load(), l.sseCut.Load(), l.sseTold.Load(), l.holes.Load(),
		l.slowLost.Load(), l.slow.Load(), l.big, l.drip)
	for _, f := range l.first {
		fmt.Fprintln(os.Stderr, p.name+": "+f)
	}
	if l.failed.Load()+l.wsCut.Load()+l.sseCut.Load()+l.holes.Load()+l.slowLost.Load() > 0 || l.big != "equal" || l.drip != "equal" || p.name == "Mainstay" && stale > 0 {
		return fmt.Errorf("%s failed or cut something", p.name)
	}
	return nil
}
