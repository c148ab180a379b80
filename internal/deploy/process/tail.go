package process

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/deploy/internal/output"
)

const pollEvery = 100 * time.Millisecond

// A tail reads what a copy writes into its file, line by line, and keeps the file
// from growing without end.
type tail struct {
	f   *os.File
	off int64 // read up to here
	max int64 // size that the file may have

	buf   []byte
	lines output.Splitter
	out   output.Journal
}

func openTail(path string, limit int64) (*tail, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // created: somebody may have removed it
	if err != nil {
		return nil, err
	}
	return &tail{f: f, max: limit}, nil
}

func (t *tail) close() { _ = t.f.Close() }

// skip moves to the end of a file that an earlier life has read, keeping its last
// lines for LastLines. What was written while nobody read stays in the file alone.
func (t *tail) skip() {
	info, err := t.f.Stat()
	if err != nil {
		return
	}
	const enough = output.LastLines * 200
	t.off = max(0, info.Size()-enough)
	partial := t.off > 0
	t.read(func(line []byte, more int) {
		if !partial { // else it began in the middle
			t.out.Keep(line, more)
		}
		partial = false
	})
}

// run reads until over is closed and all that was written by then is read; then it
// closes the file.
func (t *tail) run(over <-chan struct{}) {
	defer t.close()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-over:
			t.read(t.out.Add)
			t.lines.Flush(t.out.Add)
			return
		case <-tick.C:
			t.read(t.out.Add)
		}
	}
}

// read gives add all the lines that there are now. It stops at the size the file had when it began,
// so that a copy that writes faster than we read cannot keep it forever.
func (t *tail) read(add func(line []byte, more int)) {
	info, err := t.f.Stat()
	if err != nil {
		return
	}
	size := info.Size()
	if size < t.off {
		t.off = 0 // somebody truncated the file
	}
	if t.off < size && t.buf == nil {
		t.buf = make([]byte, 64<<10)
	}
	for t.off < size {
		n, err := t.f.ReadAt(t.buf[:min(int64(len(t.buf)), size-t.off)], t.off)
		t.off += int64(n)
		t.lines.Take(t.buf[:n], add)
		if n == 0 || err != nil {
			break
		}
	}
	if t.off >= t.max {
		t.shed(size)
	}
}

// shed drops what is old of the file: all but the newest quarter of max. The copy
// appends, so it never notices. Where the file system can cut off the head of a
// file (ext4, XFS) nothing is lost. Elsewhere the file is emptied, and what the
// copy writes in that very moment may be.
func (t *tail) shed(size int64) {
	const block = 1 << 20 // file systems cut whole blocks of theirs, which are smaller
	if cut := (t.off - t.max/4) &^ (block - 1); cut > 0 && cut < size {
		if unix.Fallocate(int(t.f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, cut) == nil {
			t.off -= cut
			return
		}
	}
	if t.f.Truncate(0) == nil {
		t.off = 0
	}
}
