package docker

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy/internal/output"
)

// A feed carries what a container writes from the Engine into a journal: every
// entry once, also when the Engine was restarted meanwhile.
type feed struct {
	engine *client.Client
	id     string
	out    output.Journal
	lines  [2]output.Splitter // standard output and standard error

	last string // time of the newest entry that was read, as the Engine writes it
	same int    // how many entries of that very time were read
}

// maxEntry bounds what is read of an entry; the Engine cuts them at 16 KiB.
const maxEntry = 64 << 10

// recall reads the last lines of what an earlier life has logged, for Last. What
// was written while nobody read is known to the Engine alone.
func (f *feed) recall(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_ = f.read(ctx, client.ContainerLogsOptions{Tail: strconv.Itoa(output.LastLines)}, func(b []byte, more int) { f.out.Keep(b, more) }) // an error comes again in follow
}

// follow reads until over is closed and all that was written by then is read, or
// until the Engine no longer says.
func (f *feed) follow(over <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
			before := f.last
			_ = f.read(ctx, client.ContainerLogsOptions{Follow: true}, f.out.Add) // the end, or an Engine that is restarted
			if f.last != before {
				pause = 100 * time.Millisecond
			}
			select {
			case <-over:
				return
			case <-time.After(pause):
			}
		}
	}()
	<-over
	select { // the stream ends by itself, as a rule at once
	case <-read:
	case <-time.After(2 * time.Second):
		cancel()
		<-read
	}
	rest, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_ = f.read(rest, client.ContainerLogsOptions{}, f.out.Add) // a container that is gone has no more to say
	for i := range f.lines {
		f.lines[i].Flush(f.out.Add)
	}
}

// read reads entries on from the newest that was read, until the stream ends.
func (f *feed) read(ctx context.Context, o client.ContainerLogsOptions, add func([]byte, int)) error {
	o.ShowStdout, o.ShowStderr, o.Timestamps, o.Since = true, true, true, f.last
	stream, err := f.engine.ContainerLogs(ctx, f.id, o)
	if err != nil {
		return err
	}
	defer stream.Close()
	from, known := f.last, f.same
	return readEntries(stream, func(e entry) {
		switch { // the Engine gives again what has the time asked for
		case from == "" || e.at > from:
		case e.at < from:
			return
		case known > 0:
			known--
			return
		}
		switch {
		case e.at > f.last:
			f.last, f.same = e.at, 1
		case e.at == f.last:
			f.same++
		}
		f.lines[e.stream].Take(e.text, add)
	})
}

// An entry is a line that a container wrote, or a piece of a long one: only the
// last piece ends with a newline.
type entry struct {
	stream int    // 0: standard output, 1: standard error
	at     string // RFC 3339 with nine digits, in UTC: text order is time order
	text   []byte // valid until the next entry
}

// readEntries reads a log stream of the Engine: frames of a type byte, three zero
// bytes, a size of four bytes and that many bytes, which begin with a time and a
// space. See "Stream format" at ContainerAttach in the Engine API.
func readEntries(r io.Reader, each func(entry)) error {
	var head [8]byte
	buf := make([]byte, 0, 4<<10)
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) { // between two entries; within one it is ErrUnexpectedEOF
				return nil
			}
			return err
		}
		size := int64(binary.BigEndian.Uint32(head[4:]))
		keep := int(min(size, maxEntry))
		if cap(buf) < keep {
			buf = make([]byte, keep)
		}
		buf = buf[:keep]
		if _, err := io.ReadFull(r, buf); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, r, size-int64(keep)); err != nil {
			return err
		}
		e := entry{text: buf}
		if head[0] == 2 {
			e.stream = 1
		}
		e.at, e.text = cutTime(buf)
		each(e)
	}
}

// timeLayout is how the Engine writes the time of an entry.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// cutTime takes the time off an entry. An entry without one is all text.
func cutTime(b []byte) (at string, text []byte) {
	const n = len(timeLayout)
	if len(b) <= n || b[n] != ' ' {
		return "", b
	}
	if _, err := time.Parse(timeLayout, string(b[:n])); err != nil {
		return "", b
	}
	return string(b[:n]), b[n+1:]
}
