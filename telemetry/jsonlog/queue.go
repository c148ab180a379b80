package jsonlog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

const (
	maxWaiting = 4 << 20          // bytes that may wait for whoever reads the log
	chunkSize  = 64 << 10         // bytes that are written at once, unless one line is longer; what a pipe holds
	spares     = 4                // chunks that are kept while nothing waits
	pause      = time.Millisecond // between two writes while less than a chunk waits
	closeLimit = 2 * time.Second  // for what is left when the queue is closed
)

// A Queue is a writer that lets nobody who logs wait for whoever reads the log: a pipe that
// is not read, a slow disk or a terminal that is stopped. Lines wait in at most 4 MiB of
// memory, and one goroutine writes them, in order, several at once where several wait, always
// whole. A line that finds the queue full is dropped, and so are those behind it until there
// is room again; then one line at level WARN says in their place how many there were, whatever
// level the log has. Lines of which a write failed are told in the same way, before the next.
//
// It may be used from many goroutines at once. What waits is lost if the process dies without
// [Queue.Close]: in ordinary operation the lines of the last millisecond.
type Queue struct {
	to      io.Writer
	dropped atomic.Int64
	wake    chan struct{}
	ended   chan struct{}

	// The goroutine's own.
	form   slog.Handler // writes to note
	note   bytes.Buffer
	failed int64 // lines that could not be written and are not told yet
	why    error // of the last of them
	torn   bool  // what was written last has no end of line

	mu     sync.Mutex
	chunks [][]byte // oldest first; lines are added to the last one
	spare  [][]byte
	held   int   // bytes of chunks, the one that is being written included
	lost   int64 // lines that were dropped and are not told yet
	wakeAt int   // chunks to wake the goroutine for; 0: it is at work
	closed bool
	gone   bool // the goroutine writes no more
}

// NewQueue returns one that writes to to. form makes the handler of the line that tells how
// many were dropped: it must be the one that the other lines have. to is used by one goroutine
// at a time, which ends after [Queue.Close].
func NewQueue(to io.Writer, form func(io.Writer) slog.Handler) *Queue {
	q := &Queue{to: to, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	q.form = form(&q.note)
	go q.run()
	return q
}

// Write takes one whole line, or several, of which it keeps a copy. It never waits for what is
// behind the queue and never fails: what does not fit is dropped and counted. A line longer
// than the bound is taken if nothing else waits.
func (q *Queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	ok := !q.gone && q.lost == 0 && q.put(line)
	if !ok {
		q.dropped.Add(1)
		q.lost++
	}
	wake := q.wakeAt > 0 && len(q.chunks) >= q.wakeAt
	if wake {
		q.wakeAt = 0
	}
	q.mu.Unlock()
	if wake {
		q.rouse()
	}
	return len(line), nil
}

// rouse ends a rest of the goroutine.
func (q *Queue) rouse() {
	select {
	case q.wake <- struct{}{}:
	default: // it is told
	}
}

// put copies a line behind the others; false: there is no room. The caller holds the lock.
func (q *Queue) put(line []byte) bool {
	last := len(q.chunks) - 1
	if last < 0 || len(q.chunks[last])+len(line) > cap(q.chunks[last]) {
		size := max(chunkSize, len(line))
		if q.held > 0 && q.held+size > maxWaiting {
			return false
		}
		q.held += size
		q.chunks = append(q.chunks, q.chunk(size))
		last++
	}
	q.chunks[last] = append(q.chunks[last], line...)
	return true
}

// chunk is an empty one with room for size bytes. The caller holds the lock.
func (q *Queue) chunk(size int) (c []byte) {
	if n := len(q.spare); n > 0 && size == chunkSize {
		c, q.spare = q.spare[n-1], q.spare[:n-1]
		return c
	}
	return make([]byte, 0, size)
}

// Dropped is how many lines were lost since the start, because there was no room for them or
// because they could not be written.
func (q *Queue) Dropped() int64 { return q.dropped.Load() }

// Levels tells what became of the lines.
func (q *Queue) Levels() []telemetry.Level {
	return []telemetry.Level{{Name: "mainstay_log_dropped_total", Counter: true, Value: float64(q.Dropped()),
		Help: "Lines of Mainstay's log that were lost: who reads it did not keep up and 4 MiB waited, or they could not be written."}}
}

// Close waits until what is in the queue has been written, for at most two seconds: nobody may
// keep the process from its end. Its error says that there was not enough time. Lines that come
// after it are dropped. It may be called several times.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.rouse()
	timer := time.NewTimer(closeLimit)
	defer timer.Stop()
	select {
	case <-q.ended:
		return nil
	case <-timer.C:
		return fmt.Errorf("the end of the log was not read within %s", closeLimit)
	}
}

func (q *Queue) run() {
	defer close(q.ended)
	timer := time.NewTimer(pause)
	for {
		chunk, over := q.take()
		if over {
			return
		}
		if chunk == nil {
			<-q.wake
			continue
		}
		q.write(chunk)
		if q.release(chunk) {
			continue
		}
		// To be woken for each line costs those who log more than the line itself, and a write
		// for each more than that; the lines that come meanwhile share both.
		timer.Reset(pause)
		select {
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// take gives out the oldest chunk, for release. Without one the goroutine has to wait, or its
// work is over.
func (q *Queue) take() (chunk []byte, over bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.chunks) > 0 {
		q.wakeAt = 0
		chunk = q.chunks[0]
		q.chunks = slices.Delete(q.chunks, 0, 1)
		return chunk, false
	}
	if len(q.spare) > spares { // the burst is over
		q.spare = slices.Delete(q.spare, spares, len(q.spare))
	}
	q.wakeAt, q.gone = 1, q.closed
	return nil, q.gone
}

// release makes room for others where a chunk was, and tells in it what was dropped for want
// of it. It reports whether the next chunk is to be written at once: it is whole.
func (q *Queue) release(chunk []byte) (hurry bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held -= cap(chunk)
	if cap(chunk) == chunkSize {
		q.spare = append(q.spare, chunk[:0])
	}
	// Nothing was put behind the gap, so this is its place.
	if q.lost > 0 && q.put(q.gap(q.lost, "Who reads the log did not keep up, and its queue was full: lines were dropped.")) {
		q.lost = 0
	}
	if q.closed || len(q.chunks) > 1 {
		return true
	}
	q.wakeAt = 2
	return false
}

// write writes a chunk, and before it what the writes that failed before it have cost.
func (q *Queue) write(chunk []byte) {
	var err error
	if q.failed > 0 {
		line := q.gap(q.failed, "Lines of the log could not be written.", slog.Any("err", q.why))
		if q.torn {
			line = slices.Insert(line, 0, '\n')
		}
		if _, err = q.send(line); err == nil {
			q.failed = 0
		}
	}
	rest := chunk
	if err == nil {
		rest, err = q.send(chunk)
	}
	if err != nil {
		lost := int64(bytes.Count(rest, []byte{'\n'}))
		q.failed += lost
		q.dropped.Add(lost)
		q.why = err
	}
}

// send writes whole lines and returns what it could not write of them.
func (q *Queue) send(lines []byte) (rest []byte, err error) {
	n, err := q.to.Write(lines)
	if n > 0 {
		q.torn = lines[n-1] != '\n'
	}
	return lines[n:], err
}

// gap is the line of an event that tells how many lines are missing here.
func (q *Queue) gap(n int64, text string, attrs ...slog.Attr) []byte {
	q.note.Reset()
	e := telemetry.Event{Part: "telemetry", Name: "log_lines_dropped", Level: slog.LevelWarn, Text: text,
		Attrs: append([]slog.Attr{slog.Int64("lines", n), slog.Int64("dropped_total", q.Dropped())}, attrs...)}
	_ = q.form.Handle(context.Background(), record(&e)) // into memory
	return q.note.Bytes()
}
