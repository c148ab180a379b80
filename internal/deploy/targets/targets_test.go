package targets

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/deploytest"
	"mainstay.dev/mainstay/internal/deploy/process"
)

func TestMain(m *testing.M) {
	deploytest.RunIfApp()
	os.Exit(m.Run())
}

// host is somebody else, who runs a copy wherever the driver is to use one.
type host struct {
	*Driver
	t   *testing.T
	run *process.Driver
}

func (h host) Start(ctx context.Context, s deploy.Spec) (deploy.Instance, error) {
	in, err := h.run.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	h.t.Cleanup(func() { _ = in.Stop(context.Background(), 0) })
	s.Targets, s.Command = []string{in.Handle().Address}, nil
	return h.Driver.Start(ctx, s)
}

func TestTheDriverKeepsTheContractOfCopiesThatSomebodyElseRuns(t *testing.T) {
	deploytest.LentContract(t, func(t *testing.T) deploy.Driver {
		run, err := process.New(process.Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return host{New(), t, run}
	})
}

func TestAnAddressIsOneCopysAtATime(t *testing.T) {
	d := New()
	first, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1", Targets: []string{"10.0.0.5:3008", "10.0.0.6:3008"}})
	if err != nil {
		t.Fatal(err)
	}
	if h := first.Handle(); h.Address != "10.0.0.5:3008" || len(h.Also) != 1 || h.Also[0] != "10.0.0.6:3008" {
		t.Errorf("handle %+v", h)
	}
	_, err = d.Start(t.Context(), deploy.Spec{ID: "green-2", Targets: []string{"10.0.0.7:3008", "10.0.0.6:3008"}})
	if err == nil || !strings.Contains(err.Error(), "10.0.0.6:3008 belongs to blue-1") || !strings.Contains(err.Error(), "--targets") {
		t.Errorf("got %v", err)
	}
	if _, err := d.Start(t.Context(), deploy.Spec{ID: "green-3", Targets: []string{"10.0.0.7:3008"}}); err != nil {
		t.Errorf("a refused start kept an address: %v", err)
	}
	if err := first.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(t.Context(), deploy.Spec{ID: "blue-4", Targets: []string{"10.0.0.6:3008"}}); err != nil {
		t.Errorf("after the stop: %v", err)
	}
	if _, err := d.Start(t.Context(), deploy.Spec{ID: "blue-5"}); err == nil {
		t.Error("a copy without an address was taken up")
	}
}
