package claude_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// The end of a stream comes a moment after its last event; a connection that is not
// read up to there is lost.
func TestAMessageThatHasEndedLeavesItsConnectionForTheNextCall(t *testing.T) {
	for name, edit := range map[string]func(*claude.Config){
		"compatible": nil, "deadline": patient, "not gathered": func(c *claude.Config) { patient(c); c.Recovery.Aggregate = false },
	} {
		t.Run(name, func(t *testing.T) {
			var ended atomic.Int64
			fake := claudetest.New(claudetest.Options{})
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fake.ServeHTTP(w, r)
				_ = http.NewResponseController(w).Flush()
				time.Sleep(20 * time.Millisecond)
				if r.Context().Err() == nil {
					ended.Add(1)
				}
			})
			inBubble(t, h, edit, func(t *testing.T, st *stage) {
				for range 5 {
					for _, body := range []string{hello, helloS} {
						if r := st.post(body); r.status != 200 || r.err != nil {
							t.Fatalf("%d %v", r.status, r.err)
						}
					}
				}
				if n := ended.Load(); n != 10 {
					t.Errorf("of 10 answers the plane broke off %d", 10-n)
				}
			})
		})
	}
}

// An upstream that says all of a message and then does not end the stream holds up
// nobody for long.
func TestAStreamThatDoesNotEndAfterItsLastEventIsAWholeAnswer(t *testing.T) {
	fake := claudetest.New(claudetest.Options{})
	left := make(chan struct{}, 2)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fake.ServeHTTP(w, r)
		_, _ = io.WriteString(w, ": and more\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		left <- struct{}{}
	})
	inBubble(t, h, patient, func(t *testing.T, st *stage) {
		for i, body := range []string{helloS, hello} {
			began := time.Now()
			r := st.post(body)
			<-left
			if took := time.Since(began); r.err != nil || r.status != 200 || took > time.Second || !strings.Contains(r.body, "end_turn") {
				t.Errorf("%d %v after %v: %s", r.status, r.err, took, r.body)
			}
			if x := st.book.last(t, i+1); x.Code != "ok" || x.Tries != 1 {
				t.Errorf("%s after %d tries", x.Code, x.Tries)
			}
		}
	})
}
