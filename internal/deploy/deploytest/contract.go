package deploytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
)

// patience bounds every wait for something that must happen; it is never the
// measure of anything.
const patience = 30 * time.Second

// Brisk, in the environment of an app built with the race detector, spares it the
// second that it would wait at its end.
const Brisk = "GORACE=atexit_sleep_ms=0"

// Contract checks that a driver keeps its promises. open is called for each life
// of Mainstay: what it returns must find again what an earlier one started. The
// test binary's TestMain must call [RunIfApp].
func Contract(t *testing.T, open func(t *testing.T) deploy.Driver) {
	for _, c := range []struct {
		promise string
		test    func(*testing.T, deploy.Driver)
	}{
		{"a copy serves on its own address with its environment", serves},
		{"a copy that is told to stop may end in its own way", stopsGently},
		{"a copy that ignores the request is killed when its grace is over", killsTheDeaf},
		{"the end of the context ends the grace", killsWhenCalledOff},
		{"a copy that ends by itself leaves its code and its last lines", tellsTheExit},
		{"a program that does not exist is named", namesTheMissing},
		{"where a copy listens can be told", tellsWhereItListens},
		{"stopping twice and at the same time is harmless", stopsOnce},
	} {
		t.Run(c.promise, func(t *testing.T) { c.test(t, open(t)) })
	}
	t.Run("a later life adopts a copy and stops it", func(t *testing.T) { adopts(t, open(t), open(t)) })
	t.Run("a copy that ended is not adopted", func(t *testing.T) { adoptsNoDead(t, open(t), open(t)) })
}

// LentContract checks what a driver of copies promises that somebody else runs: the
// part of [Contract] that is about being reached and found again, and that it ends
// nobody. What open returns must run the copies whose addresses its Start takes up.
func LentContract(t *testing.T, open func(t *testing.T) deploy.Driver) {
	for _, c := range []struct {
		promise string
		test    func(*testing.T, deploy.Driver)
	}{
		{"a copy serves on its own address", serves},
		{"a copy that is stopped serves on, for whoever runs it", leavesServing},
		{"stopping twice and at the same time is harmless", stopsOnce},
	} {
		t.Run(c.promise, func(t *testing.T) { c.test(t, open(t)) })
	}
	t.Run("a later life takes a copy up again", func(t *testing.T) { takesUpAgain(t, open(t), open(t)) })
}

// Start starts a copy that is stopped at the latest when the test ends.
func Start(t *testing.T, d deploy.Driver, id string, words ...string) deploy.Instance {
	t.Helper()
	in, err := d.Start(t.Context(), Spec(id, words...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Stop(context.Background(), 0) })
	return in
}

// Spec is what Start starts.
func Spec(id string, words ...string) deploy.Spec {
	color, _, _ := strings.Cut(id, "-")
	return deploy.Spec{ID: id, Color: color, Command: App(words...), Dir: os.TempDir(), Env: append(os.Environ(), "COLOR="+color, "PORT=1", Brisk)}
}

// Await waits until what holds, and fails the test if it never does.
func Await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("waited %v in vain until %s", patience, what)
		}
	}
}

// AwaitExit waits until in has ended.
func AwaitExit(t *testing.T, in deploy.Instance) deploy.Exit {
	t.Helper()
	select {
	case <-in.Exited():
	case <-time.After(patience):
		t.Fatalf("the copy did not end within %v", patience)
	}
	return in.Exit()
}

// Ask waits until in answers, and returns what.
func Ask(t *testing.T, in deploy.Instance) (answer string) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	Await(t, "the copy answers", func() bool {
		resp, err := client.Get("http://" + in.Handle().Address)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		answer = string(b)
		return err == nil
	})
	return answer
}

func serves(t *testing.T, d deploy.Driver) {
	b, g := Start(t, d, "blue-1", "serve"), Start(t, d, "green-2", "serve")
	if b.Handle().Address == g.Handle().Address {
		t.Fatalf("both have the address %s", b.Handle().Address)
	}
	for color, in := range map[string]deploy.Instance{"blue": b, "green": g} {
		answer := Ask(t, in)
		f := strings.Fields(answer)
		if _, port, _ := net.SplitHostPort(in.Handle().Address); len(f) != 3 || f[1] != color || f[2] != port {
			t.Errorf("%s at %s answered %q", color, in.Handle().Address, answer)
		}
		if (in.Exit() != deploy.Exit{}) {
			t.Errorf("%s runs, with the exit %v", color, in.Exit())
		}
	}
}

func stopsGently(t *testing.T, d deploy.Driver) {
	in := Start(t, d, "blue-1", "serve")
	Ask(t, in)
	if err := in.Stop(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
	if e := in.Exit(); e != (deploy.Exit{}) {
		t.Errorf("exit %+v", e)
	}
	if l := in.LastLines(); len(l) == 0 || l[len(l)-1] != "bye" {
		t.Errorf("last lines %q", l)
	}
	if _, err := net.Dial("tcp", in.Handle().Address); err == nil {
		t.Error("it still accepts connections")
	}
}

func killsTheDeaf(t *testing.T, d deploy.Driver) {
	in := Start(t, d, "blue-1", "serve", "deaf")
	Ask(t, in)
	if err := in.Stop(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if e := in.Exit(); e.Signal != "SIGKILL" {
		t.Errorf("exit %+v", e)
	}
}

func killsWhenCalledOff(t *testing.T, d deploy.Driver) {
	in := Start(t, d, "blue-1", "serve", "deaf")
	Ask(t, in)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.Stop(ctx, time.Hour); err != nil {
		t.Fatal(err)
	}
	AwaitExit(t, in)
}

func tellsTheExit(t *testing.T, d deploy.Driver) {
	in := Start(t, d, "blue-1", "exit", "3")
	if e := AwaitExit(t, in); e.Code != 3 || e.Signal != "" {
		t.Errorf("exit %+v", e)
	}
	if l := fmt.Sprint(in.LastLines()); l != "[giving up]" {
		t.Errorf("last lines %s", l)
	}
	if err := in.Stop(t.Context(), patience); err != nil {
		t.Errorf("stop after the end: %v", err)
	}
	if at, err := in.Listening(); err != nil || len(at) != 0 {
		t.Errorf("listening after the end: %v, %v", at, err)
	}
}

func namesTheMissing(t *testing.T, d deploy.Driver) {
	s := Spec("blue-1")
	s.Command = deploy.Command{"no-such-program-anywhere"}
	if _, err := d.Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), "no-such-program-anywhere") {
		t.Errorf("got %v", err)
	}
}

func tellsWhereItListens(t *testing.T, d deploy.Driver) {
	own := Start(t, d, "blue-1", "serve")
	Ask(t, own)
	if at, err := own.Listening(); err != nil || len(at) != 1 || at[0].String() != own.Handle().Address {
		t.Errorf("%s listens on %v, %v", own.Handle().Address, at, err)
	}
	other := Start(t, d, "green-2", "parent", "elsewhere")
	var at []netip.AddrPort
	Await(t, "the app listens somewhere", func() bool {
		at, _ = other.Listening()
		return len(at) > 0
	})
	if len(at) != 1 || at[0].String() == other.Handle().Address {
		t.Errorf("listens on %v", at)
	}
}

func stopsOnce(t *testing.T, d deploy.Driver) {
	in := Start(t, d, "blue-1", "serve")
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() { errs <- in.Stop(context.Background(), patience) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func adopts(t *testing.T, first, second deploy.Driver) {
	in := Start(t, first, "blue-1", "serve")
	before := Ask(t, in)
	again, err := second.Adopt(t.Context(), Spec("blue-1"), in.Handle())
	if err != nil {
		t.Fatal(err)
	}
	if after := Ask(t, again); after != before {
		t.Errorf("%q before, %q after", before, after)
	}
	other := Start(t, second, "green-2", "serve")
	if other.Handle().Address == again.Handle().Address {
		t.Error("the address of an adopted copy was given to another")
	}
	if err := again.Stop(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
	if l := again.LastLines(); len(l) == 0 || l[len(l)-1] != "bye" {
		t.Errorf("last lines %q", l)
	}
	AwaitExit(t, in)
}

func leavesServing(t *testing.T, d deploy.Driver) {
	in := Start(t, d, "blue-1", "serve")
	before := Ask(t, in)
	select {
	case <-in.Exited():
		t.Fatal("it is said to have ended")
	default:
	}
	if err := in.Stop(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
	if e := AwaitExit(t, in); e != (deploy.Exit{}) {
		t.Errorf("exit %+v", e)
	}
	if after := Ask(t, in); after != before {
		t.Errorf("%q before, %q after", before, after)
	}
}

func takesUpAgain(t *testing.T, first, second deploy.Driver) {
	in := Start(t, first, "blue-1", "serve")
	before := Ask(t, in)
	again, err := second.Adopt(t.Context(), deploy.Spec{ID: "blue-1", Color: "blue"}, in.Handle())
	if err != nil {
		t.Fatal(err)
	}
	if after := Ask(t, again); after != before {
		t.Errorf("%q before, %q after", before, after)
	}
	if _, err := second.Start(t.Context(), Spec("green-2", "serve")); err != nil {
		t.Errorf("another copy: %v", err)
	}
	if err := again.Stop(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
}

func adoptsNoDead(t *testing.T, first, second deploy.Driver) {
	in := Start(t, first, "blue-1", "serve")
	Ask(t, in)
	if err := in.Stop(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Adopt(t.Context(), Spec("blue-1"), in.Handle()); !errors.Is(err, deploy.ErrGone) {
		t.Errorf("got %v", err)
	}
}
