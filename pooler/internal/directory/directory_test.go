package directory

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/pooler/internal/upstream"
)

func TestAUserListIsReadAsPgBouncerReadsIt(t *testing.T) {
	users, err := parseList("; comment\n\"ann\" \"pen\"\"cil\"\n\n# more\n\"b c\"\t\"md5abc\" \"ignored\"\n")
	if err != nil || len(users) != 2 || users["ann"] != `pen"cil` || users["b c"] != "md5abc" {
		t.Errorf("%v, %v", users, err)
	}
	for _, text := range []string{"ann pencil", `"ann"`, `"ann" "x`, `"" "x"`, `"ann" ""`} {
		if _, err := parseList("\n" + text); err == nil || !strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), "pencil") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestValidUntilIsReadAsPostgreSQLWritesIt(t *testing.T) {
	for text, want := range map[string]time.Time{
		"": {}, "infinity": {}, "2026-01-02 03:04:05+00": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"9999-12-31 23:59:59+00": time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "20261-01-02 03:04:05+00": {}, "294276-12-31 23:59:59.999999+00": {},
		"2026-01-02 03:04:05.123456+00": time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC),
	} {
		if got, err := validUntil(text); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got, err := validUntil("-infinity"); err != nil || got.After(time.Now()) {
		t.Error(got, err)
	}
	if _, err := validUntil("soon"); err == nil {
		t.Error("soon is no time")
	}
}

// A halting connection's writes wait until they are told to go on: neither a deadline nor a
// Close ends that.
type halting struct {
	net.Conn
	told chan struct{}
}

func (c *halting) Write([]byte) (int, error) {
	<-c.told
	return 0, net.ErrClosed
}

func halt(told chan struct{}) *upstream.Conn {
	conn, _ := net.Pipe()
	c := &halting{conn, told}
	return &upstream.Conn{Conn: c, Raw: c}
}

func TestNobodyWaitsForAServerThatIsHungUpOn(t *testing.T) {
	for name, end := range map[string]func(l *lines, told chan struct{}){
		"closed":       func(l *lines, _ chan struct{}) { l.close(true) },
		"renewed":      func(l *lines, _ chan struct{}) { l.close(false) },
		"not needed":   func(*lines, chan struct{}) { time.Sleep(2 * time.Minute) },
		"one too many": func(l *lines, told chan struct{}) { l.keep("a", halt(told)) },
	} {
		synctest.Test(t, func(t *testing.T) {
			told := make(chan struct{})
			l := &lines{idle: time.Minute}
			l.keep("a", halt(told))
			ended := make(chan struct{})
			go func() { end(l, told); close(ended) }()
			if name == "not needed" {
				<-ended
			}
			if synctest.Wait(); !l.mu.TryLock() {
				t.Errorf("%s: the lock is held while a server takes nothing", name)
				close(told)
				return
			}
			l.mu.Unlock()
			if c := l.take("a"); (c != nil) != (name == "one too many") {
				t.Errorf("%s: kept %v", name, c)
			}
			closed := make(chan struct{})
			go func() { l.close(true); close(closed) }()
			synctest.Wait()
			select {
			case <-closed:
				if name != "one too many" { // which was never kept
					t.Errorf("%s: what is being closed is not waited for", name)
				}
			default:
			}
			close(told)
			<-closed
		})
	}
}

func FuzzColumns(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x00\x00\x01a"))
	f.Add([]byte("\x00\x02\xff\xff\xff\xff\x7f\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if row, err := columns(body); err == nil && len(strings.Join(row, "")) > len(body) {
			t.Fatal("more came out than went in")
		}
	})
}
