package docker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/deploytest"
)

func TestOutputReachesTheLogFitToBeShown(t *testing.T) {
	d, j := need(t).driver(t, t.TempDir(), nil)
	in := begin(t, d, "blue-1", "junk")
	deploytest.Await(t, "the last line is logged", func() bool { return strings.Contains(j.String(), "line=serving") })
	log := j.String()
	if strings.ContainsAny(log, "\x00\x1b\x07") || !strings.Contains(log, "binaryred") || !strings.Contains(log, "target=blue-1") {
		t.Errorf("log %.300q", log)
	}
	if want := fmt.Sprintf("… (%d bytes more)", 100<<10-8<<10); !strings.Contains(log, want) {
		t.Errorf("the log has no %q", want)
	}
	if l := in.LastLines(); len(l) != 3 || l[2] != "serving" {
		t.Errorf("last lines %.100q", l)
	}
}

func TestNoLineIsLostBetweenTheStartAndTheEnd(t *testing.T) {
	d, j := need(t).driver(t, t.TempDir(), nil)
	in := begin(t, d, "blue-1", "write", "900")
	deploytest.Ask(t, in)
	if err := in.Stop(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	log := j.String()
	for i := range 900 {
		if n := strings.Count(log, fmt.Sprintf("line=\"line %d\"\n", i)); n != 1 {
			t.Fatalf("line %d is there %d times", i, n)
		}
	}
	if l := in.LastLines(); len(l) != 20 || l[19] != "bye" {
		t.Errorf("last lines %q", l)
	}
}

func TestAnAdoptedCopysOldOutputIsKnownButNotLoggedAgain(t *testing.T) {
	e, dir := need(t), t.TempDir()
	first, j := e.driver(t, dir, nil)
	in := begin(t, first, "blue-1", "write", "100")
	deploytest.Await(t, "the first life has read it", func() bool { return strings.Contains(j.String(), "serving") })
	second, j2 := e.driver(t, dir, nil)
	again, err := second.Adopt(t.Context(), deploy.Spec{ID: "blue-1", Color: "blue"}, in.Handle())
	if err != nil {
		t.Fatal(err)
	}
	if l := again.LastLines(); len(l) != 20 || l[19] != "serving" || l[0] != "line 81" {
		t.Errorf("last lines %q", l)
	}
	if err := again.Stop(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	deploytest.AwaitExit(t, in)
	if log := j2.String(); strings.Contains(log, "line 99") || strings.Contains(log, "serving") {
		t.Errorf("old lines were logged again: %s", log)
	}
	if e := again.Exit(); e != (deploy.Exit{}) { // the Engine knows, whoever asks
		t.Errorf("exit %+v", e)
	}
}
