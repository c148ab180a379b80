//go:build linux

package pooler

import (
	"runtime"
	"testing"

	"mainstay.dev/mainstay/telemetry"
)

// Without this nobody would notice if the event loops gave every session to a goroutine:
// all would work as before, at three times the price.
func TestAClientThatRestsHasNoGoroutine(t *testing.T) {
	const clients = 100
	h := run(t, config(database(fakeServer(t), one)), func(d *Deps) { d.Sink = telemetry.Discard })
	speak(t, h.addr, "ann", "", "", protocols[0].send).round(t)
	before := runtime.NumGoroutine()
	for range clients {
		for _, p := range protocols {
			speak(t, h.addr, "ann", "", p.prepare, p.send).round(t)
		}
	}
	await(t, "goroutines that came with them are gone", func() bool { return runtime.NumGoroutine() < before+clients/2 })
	if n := h.Stats().Clients; n != clients*len(protocols)+1 {
		t.Errorf("%d clients", n)
	}
}
