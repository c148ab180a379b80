package jsonlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/telemetry"
)

// A reader reads the log: what is written waits until it may go on.
type reader struct {
	t *testing.T

	mu     sync.Mutex
	every  func(lines []byte) (int, error) // is called for each write; nil: all is read at once
	text   bytes.Buffer
	writes int
}

func (r *reader) Write(lines []byte) (n int, err error) {
	if len(lines) == 0 || lines[len(lines)-1] != '\n' {
		r.t.Errorf("a write that is no whole lines: %q", lines[max(0, len(lines)-80):])
	}
	r.mu.Lock()
	every := r.every
	r.mu.Unlock()
	if n = len(lines); every != nil {
		n, err = every(lines)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes++
	r.text.Write(lines[:n])
	return n, err
}

// read returns the ids of the lines that were read, and "+n" where n are said to be missing.
func (r *reader) read() (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for text := range strings.Lines(r.text.String()) {
		var line struct {
			ID, Event string
			Lines     int
		}
		switch err := json.Unmarshal([]byte(text), &line); {
		case err != nil:
			ids = append(ids, "torn")
		case line.Event == "log_lines_dropped":
			ids = append(ids, fmt.Sprint("+", line.Lines))
		default:
			ids = append(ids, line.ID)
		}
	}
	return ids
}

// stalled is a reader that does not read until it is told.
func stalled(t *testing.T) (r *reader, read func()) {
	gate := make(chan struct{})
	return &reader{t: t, every: func(lines []byte) (int, error) { <-gate; return len(lines), nil }}, sync.OnceFunc(func() { close(gate) })
}

// logged gives a sink some exchanges, which are numbered.
func logged(s *Sink, from, to int) {
	x := request()
	for i := from; i < to; i++ {
		x.ID = fmt.Sprint(i)
		s.Record(x)
	}
}

func sinkOf(q *Queue) *Sink { return New(slog.New(asJSON(q)), All) }

func TestALineIsReadAtOnceAndThoseBehindItTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reader{t: t}
		q := NewQueue(r, asJSON)
		s := sinkOf(q)
		logged(s, 0, 1)
		synctest.Wait()
		if got := r.read(); len(got) != 1 {
			t.Errorf("read %v", got)
		}
		logged(s, 1, 50)
		s.Emit(telemetry.Event{Part: "app", Name: "reloaded"})
		time.Sleep(2 * pause)
		if got := r.read(); len(got) != 51 || r.writes > 3 {
			t.Errorf("read %v in %d writes", got, r.writes)
		}
		if err := q.Close(); err != nil || q.Dropped() != 0 {
			t.Errorf("%v, %d dropped", err, q.Dropped())
		}
	})
}

func TestWhoLogsDoesNotWaitForWhoReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 20_000 // twice as much as fits
		r, read := stalled(t)
		q := NewQueue(r, asJSON)
		s := sinkOf(q)
		logged(s, 0, many) // whoever waits here waits for ever
		s.Emit(telemetry.Event{Part: "app", Name: "reloaded", Level: slog.LevelError})
		lost := int(q.Dropped())
		if lost < many/4 || lost > many*3/4 {
			t.Errorf("%d of %d dropped", lost, many)
		}
		read()
		time.Sleep(pause)
		logged(s, many, many+3)
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		kept := many + 1 - lost
		var want []string
		for i := range kept {
			want = append(want, fmt.Sprint(i))
		}
		want = append(want, fmt.Sprint("+", lost), fmt.Sprint(many), fmt.Sprint(many+1), fmt.Sprint(many+2))
		if diff := cmp.Diff(want, r.read()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if int(q.Dropped()) != lost || r.writes > 2*maxWaiting/chunkSize {
			t.Errorf("%d dropped, %d before; %d writes", q.Dropped(), lost, r.writes)
		}
		if held, spare := q.held, len(q.spare); held != 0 || spare > spares {
			t.Errorf("%d bytes are held, %d chunks kept", held, spare)
		}
	})
}

// However slow it is: what is read is in order, and each gap is as long as it says.
func TestEveryGapSaysHowMuchIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random, slowness := rand.New(rand.NewPCG(1, 2)), rand.New(rand.NewPCG(3, 4))
		r := &reader{t: t, every: func(lines []byte) (int, error) {
			time.Sleep(time.Duration(slowness.IntN(40)) * time.Millisecond)
			return len(lines), nil
		}}
		q := NewQueue(r, asJSON)
		s := sinkOf(q)
		n := 0
		for range 40 {
			next := n + random.IntN(1500)
			logged(s, n, next)
			n = next
			time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
		}
		time.Sleep(time.Minute)
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		at, gaps := 0, 0
		for _, id := range r.read() {
			var missing int
			if _, err := fmt.Sscanf(id, "+%d", &missing); strings.HasPrefix(id, "+") && err == nil {
				at += missing
				gaps++
			} else if id == fmt.Sprint(at) {
				at++
			} else {
				t.Fatalf("%q, want %d", id, at)
			}
		}
		if at != n || gaps < 2 {
			t.Errorf("%d lines were read or told, of %d; %d gaps", at, n, gaps)
		}
	})
}

func TestQueuedLinesOfManyGoroutinesDoNotMix(t *testing.T) {
	r := &reader{t: t}
	q := NewQueue(r, asJSON)
	s := sinkOf(q)
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() { logged(s, 1000*g, 1000*g+500) })
	}
	all.Wait()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	next := [4]int{0, 1000, 2000, 3000}
	for _, id := range r.read() {
		n, err := strconv.Atoi(id)
		if err != nil || n != next[n/1000] {
			t.Fatalf("%s, want one of %v", id, next)
		}
		next[n/1000]++
	}
	if want := [4]int{500, 1500, 2500, 3500}; next != want {
		t.Errorf("read up to %v, want %v", next, want)
	}
}

func TestTheLineOfAGapIsLikeTheOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		form func(io.Writer) slog.Handler
		want string
	}{
		"json": {asJSON, `,"level":"WARN","msg":"event","part":"telemetry","event":"log_lines_dropped","text":"Who reads the log did not keep up, and its queue was full: lines were dropped.","lines":2,"dropped_total":2}`},
		"text": {func(w io.Writer) slog.Handler {
			return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelError}) // it is told all the same
		}, ` level=WARN msg=event part=telemetry event=log_lines_dropped text="Who reads the log did not keep up, and its queue was full: lines were dropped." lines=2 dropped_total=2`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, read := stalled(t)
				q := NewQueue(r, tc.form)
				long := append(bytes.Repeat([]byte{'x'}, 2*maxWaiting), '\n') // nothing else waits, so it fits
				for _, line := range [][]byte{long, []byte("lost\n"), []byte("lost too\n")} {
					if n, err := q.Write(line); n != len(line) || err != nil {
						t.Errorf("%d, %v", n, err)
					}
				}
				read()
				if err := q.Close(); err != nil {
					t.Error(err)
				}
				if got := strings.TrimPrefix(r.text.String(), string(long)); !strings.HasSuffix(got, tc.want+"\n") || strings.Count(got, "\n") != 1 {
					t.Errorf("got  %s\nwant … %s", got, tc.want)
				}
			})
		})
	}
}

func TestTheEndWaitsForWhatIsLeftButNotForAReaderThatStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reader{t: t, every: func(lines []byte) (int, error) { time.Sleep(closeLimit / 8); return len(lines), nil }}
		q := NewQueue(r, asJSON)
		logged(sinkOf(q), 0, 5)
		for range 2 { // the second has nothing to do
			if err := q.Close(); err != nil || len(r.read()) != 5 {
				t.Errorf("%v; read %v", err, r.read())
			}
		}
		logged(sinkOf(q), 5, 7)
		if synctest.Wait(); q.Dropped() != 2 || len(r.read()) != 5 {
			t.Errorf("behind the end: %d dropped, read %v", q.Dropped(), r.read())
		}

		r, read := stalled(t)
		q = NewQueue(r, asJSON)
		logged(sinkOf(q), 0, 5)
		if err := q.Close(); err == nil {
			t.Error("a reader that stalls is no error")
		}
		read()
		if synctest.Wait(); len(r.read()) != 5 {
			t.Errorf("read %v", r.read())
		}
	})
}

func TestLinesThatCannotBeWrittenAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reader{t: t}
		q := NewQueue(r, asJSON)
		s := sinkOf(q)
		step := func(from, to int, every func(lines []byte) (int, error)) {
			r.mu.Lock()
			r.every = every
			r.mu.Unlock()
			logged(s, from, to)
			time.Sleep(2 * pause)
		}
		full := errors.New("no space left on device")
		step(0, 2, nil)
		step(2, 3, func(lines []byte) (int, error) { return len(lines) / 2, full })
		step(3, 7, func([]byte) (int, error) { return 0, full })
		step(7, 9, nil)
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		want := []string{"0", "1", "torn", "+5", "7", "8"}
		if diff := cmp.Diff(want, r.read()); diff != "" || q.Dropped() != 5 {
			t.Errorf("%d dropped (-want +got):\n%s", q.Dropped(), diff)
		}
		if !strings.Contains(r.text.String(), `"err":"no space left on device"`) {
			t.Errorf("it is not told why:\n%s", r.text.String())
		}
	})
}
