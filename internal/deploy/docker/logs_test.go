package docker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/client"
)

// frame is an entry as the Engine sends it.
func frame(stream byte, text string) []byte {
	head := []byte{stream, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[4:], uint32(len(text)))
	return append(head, text...)
}

func at(n int) string { return fmt.Sprintf("2026-01-02T03:04:05.%09dZ", n) }

func TestEntriesAreReadFromAStream(t *testing.T) {
	stream := slices.Concat(
		frame(1, at(1)+" one\n"), frame(2, at(2)+" two"), frame(1, ""),
		frame(1, at(3)+" "+strings.Repeat("x", 2*maxEntry)), frame(1, "no time\n"))
	var got []string
	each := func(e entry) { got = append(got, fmt.Sprintf("%d %s %.10q", e.stream, e.at, e.text)) }
	if err := readEntries(bytes.NewReader(stream), each); err != nil {
		t.Fatal(err)
	}
	want := []string{"0 " + at(1) + ` "one\n"`, "1 " + at(2) + ` "two"`, `0  ""`, "0 " + at(3) + ` "xxxxxxxxxx"`, `0  "no time\n"`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for _, cut := range []int{3, 12} {
		if err := readEntries(bytes.NewReader(stream[:cut]), each); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

func FuzzEntries(f *testing.F) {
	f.Add(frame(1, at(1)+" text\n"))
	f.Add([]byte{2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = readEntries(bytes.NewReader(b), func(e entry) {
			if len(e.text) > maxEntry || e.stream < 0 || e.stream > 1 || len(e.at) != 0 && len(e.at) != len(timeLayout) {
				t.Errorf("%+v", e)
			}
		})
	})
}

// fakeLogs is an Engine that only has logs: each call takes the next stream.
func fakeLogs(t *testing.T, streams ...[]byte) (cli *client.Client, asked *[]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	asked = new([]string)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		if !strings.HasSuffix(r.URL.Path, "/logs") {
			return
		}
		*asked = append(*asked, r.URL.Query().Get("since"))
		if len(streams) == 0 {
			http.Error(w, `{"message":"no such container"}`, http.StatusNotFound)
			return
		}
		next := streams[0]
		streams = streams[1:]
		_, _ = w.Write(next)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	if cli, err = client.New(client.WithHost("unix://" + path)); err != nil {
		t.Fatal(err)
	}
	return cli, asked
}

func TestEveryEntryIsReadOnceThoughTheStreamBreaks(t *testing.T) {
	cli, asked := fakeLogs(t,
		slices.Concat(frame(1, at(1)+" a\n"), frame(1, at(2)+" b\n"), frame(2, at(2)+" c\n"), frame(1, at(5)+" half a li"))[:130], // cut within the last
		slices.Concat(frame(1, at(2)+" b\n"), frame(2, at(2)+" c\n"), frame(1, at(2)+" d\n"), frame(1, at(3)+" e, ")),
		nil,
		slices.Concat(frame(1, at(3)+" e, "), frame(2, at(4)+" f\n"), frame(1, at(3)+" of two pieces\n"), frame(1, at(9)+" g")),
	)
	f := feed{engine: cli, id: strings.Repeat("a", 64)}
	var got []string
	f.out.Say = func(l string, _ slog.Level, _ int) { got = append(got, l) }
	for range 4 {
		_ = f.read(t.Context(), client.ContainerLogsOptions{}, f.out.Add)
	}
	over := make(chan struct{})
	close(over)
	f.follow(over) // the container is gone: what there is is flushed
	if want := []string{"a", "b", "c", "d", "f", "e, of two pieces", "g"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if len(*asked) < 4 || (*asked)[0] != "" || (*asked)[1] != "1767323045.000000002" || (*asked)[3] != "1767323045.000000003" {
		t.Errorf("asked for %q", *asked)
	}
}
