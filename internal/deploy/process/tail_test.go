package process

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/deploy/deploytest"
	"mainstay.dev/mainstay/internal/deploy/internal/output"
)

func TestEveryLineOfTheAppIsLogged(t *testing.T) {
	d, log := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "write", "300")
	deploytest.Ask(t, in)
	if err := in.Stop(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), `msg=app color=blue target=blue-1 line="line `); n != 300 {
		t.Errorf("%d lines of 300", n)
	}
	if l := in.LastLines(); len(l) != output.LastLines || l[output.LastLines-1] != "bye" || l[output.LastLines-3] != "line 299" {
		t.Errorf("last lines %q", l)
	}
	if h := in.Handle(); filepath.Base(h.Log) != "blue-1.log" {
		t.Errorf("log %s", h.Log)
	}
}

func TestLongLinesAndBinaryJunkAreMadeFitToBeShown(t *testing.T) {
	d, _ := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "junk")
	deploytest.Ask(t, in)
	if err := in.Stop(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	want := []string{strings.Repeat("x", 500) + " …", "\ufffd\ufffdbinaryred", "serving", "bye"}
	if got := in.LastLines(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// fileTail is a tail of a file that the test writes.
func fileTail(t *testing.T, limit int64) (*tail, *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blue-1.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	tl, err := openTail(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tl.close(); f.Close() })
	return tl, f
}

func TestANoisyAppFillsNeitherTheDiskNorTheLog(t *testing.T) {
	const limit = 4 << 20
	tl, f := fileTail(t, limit)
	chunk := []byte(strings.Repeat(strings.Repeat("n", 99)+"\n", 5000)) // 500 KB
	logged, skipped, counted, biggest := 0, 0, 0, int64(0)
	tl.out.Say = func(_ string, _ slog.Level, n int) { logged++; skipped += n }
	tl.out.Count = func(slog.Level) { counted++ }
	for range 60 {
		if _, err := f.Write(chunk); err != nil {
			t.Fatal(err)
		}
		tl.read(tl.out.Add)
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		biggest = max(biggest, info.Size())
	}
	if biggest > limit+int64(len(chunk)) {
		t.Errorf("the file grew to %d", biggest)
	}
	if counted != 60*5000 || logged+skipped > counted {
		t.Errorf("%d logged + %d skipped, %d counted of %d", logged, skipped, counted, 60*5000)
	}
	if logged >= 60*5000 {
		t.Errorf("%d lines were logged", logged)
	}
}

func TestNoLineIsLostWhenAFileIsCutWhileTheAppWrites(t *testing.T) {
	tl, f := fileTail(t, 2<<20)
	if _, err := f.Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(tl.f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, 1<<20); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("the file system of %s cannot cut off the head of a file: %v", f.Name(), err)
		}
		t.Skipf("the file system of %s cannot cut off the head of a file: %v", f.Name(), err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	const lines = 100_000
	over := make(chan struct{})
	go func() {
		defer close(over)
		for i := range lines {
			fmt.Fprintf(f, "%099d\n", i)
		}
	}()
	next := 0
	say := func(b []byte, _ int) {
		l := string(b)
		n, err := strconv.Atoi(l)
		if err != nil || n != next {
			t.Errorf("line %q, want number %d", l, next)
			next = n
		}
		next++
	}
	for wrote := false; !wrote; {
		select {
		case <-over:
			wrote = true
		default:
		}
		tl.read(say)
	}
	if next != lines {
		t.Errorf("%d lines of %d", next, lines)
	}
	if info, err := f.Stat(); err != nil || info.Size() >= lines*100 {
		t.Errorf("the file was never cut: %v, %v", info, err)
	}
}

func TestAFileThatCannotBeCutIsEmptied(t *testing.T) {
	tl, f := fileTail(t, 100<<10) // too small to cut whole blocks
	for i := range 10_000 {
		fmt.Fprintf(f, "%099d\n", i)
		if i%100 == 99 {
			tl.read(func(b []byte, more int) { tl.out.Keep(b, more) })
		}
	}
	if info, err := f.Stat(); err != nil || info.Size() > 110<<10 {
		t.Errorf("%v, %v", info, err)
	}
	if l := tl.out.Last(); l[len(l)-1] != fmt.Sprintf("%099d", 9999) {
		t.Errorf("last line %q", l[len(l)-1])
	}
}

func TestTheTailGoesOnAfterTheFileWasEmptied(t *testing.T) {
	tl, f := fileTail(t, 1<<30)
	var got []string
	say := func(b []byte, _ int) { got = append(got, string(b)) }
	fmt.Fprintln(f, "one, which is long")
	tl.read(say)
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, "two")
	tl.read(say)
	fmt.Fprint(f, "thr")
	tl.read(say)
	fmt.Fprintln(f, "ee")
	tl.read(say)
	if !slices.Equal(got, []string{"one, which is long", "two", "three"}) {
		t.Errorf("got %q", got)
	}
}

func TestALineWithoutAnEndIsReadWhenTheAppHasEnded(t *testing.T) {
	tl, f := fileTail(t, 1<<30)
	fmt.Fprint(f, "panic: no newline")
	over := make(chan struct{})
	close(over)
	var got []string
	tl.out.Say = func(l string, _ slog.Level, _ int) { got = append(got, l) }
	tl.run(over)
	if !slices.Equal(got, []string{"panic: no newline"}) {
		t.Errorf("got %q", got)
	}
}

func TestAnAdoptedCopysOldOutputIsKnownButNotLoggedAgain(t *testing.T) {
	tl, f := fileTail(t, 1<<30)
	for i := range 5000 {
		fmt.Fprintln(f, "old", i)
	}
	tl.skip()
	if l := tl.out.Last(); len(l) != output.LastLines || l[output.LastLines-1] != "old 4999" {
		t.Errorf("last lines %q", l)
	}
	fmt.Fprintln(f, "new")
	var got []string
	tl.read(func(b []byte, more int) { got = append(got, fmt.Sprint(string(b), more)) })
	if !slices.Equal(got, []string{"new0"}) {
		t.Errorf("got %q", got)
	}
}

func TestOldOutputIsRemovedButNotWhatIsInUse(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for i := range 15 {
		p := filepath.Join(dir, fmt.Sprintf("blue-%d.log", i))
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1e9+i), 0)
		if err := os.Chtimes(p, at, at); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	if err := pruneLogs(dir, 3, map[string]bool{paths[0]: true}); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(left)
	want := append([]string{paths[0]}, paths[12:]...)
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("left %v", left)
	}
}
