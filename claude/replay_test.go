package claude_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

func keeping(which string) func(*claude.Config) {
	return func(c *claude.Config) { patient(c); c.Keep.Requests = which }
}

// withID gives a call the id under which it is found again.
func withID(id string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("X-Request-Id", id) }
}

func TestACallIsSentAgainAsItWas(t *testing.T) {
	st, fake := over(t, claudetest.Options{Keep: 4}, keeping("all"))
	for i, body := range []string{hello, helloS} {
		id := []string{"call-a", "call-b"}[i]
		want := st.send("POST", "/v1/messages?beta=true&x=secret", body, func(r *http.Request) {
			withID(id)(r)
			r.Header.Set("Anthropic-Beta", "one,two")
			r.Header.Set("Cookie", "a=b")
		})
		waitFor(t, func() bool { _, err := st.Kept(id); return err == nil })
		k, err := st.Kept(id)
		if err != nil || k.Bytes != len(body) || k.Removed != 0 || !k.OwnKey || k.Model != "claude-sonnet-5" || k.Path != "/v1/messages?beta=true" {
			t.Errorf("%+v %v", k, err)
		}
		done, err := st.Replay(t.Context(), id, "sk-of-the-replay")
		if err != nil || done.Status != 200 || done.Code != claude.OK || done.Of != id || done.ID == id || done.Attempts != 1 || done.Dollars <= 0 || done.Took <= 0 {
			t.Errorf("%+v %v", done, err)
		}
		if word := "colleague"; !strings.Contains(want.body, word) || !strings.Contains(done.Body, word) {
			t.Errorf("%s\n%s", done.Body, want.body)
		}
		sent := fake.Requests()
		first, again := sent[2*i], sent[2*i+1]
		if h := again.Header; string(again.Body) != string(first.Body) || h.Get("Anthropic-Beta") != "one,two" || h.Get("Anthropic-Version") != "2023-06-01" || h.Get("X-Api-Key") != "sk-of-the-replay" || h.Get("Cookie") != "" || again.URI != "/v1/messages?beta=true" {
			t.Errorf("%+v\n%+v", first, again)
		}
		if x := st.book.last(t, 2*i+2); x.GenAI.ReplayOf != id || x.ID != done.ID || x.Code != "ok" {
			t.Errorf("%+v", x)
		}
	}
	if strings.Contains(st.logs.String(), "hello") || strings.Contains(st.logs.String(), key) {
		t.Error("a prompt or a key stands in the log")
	}
}

func TestACallThatFailsIsKeptIfOnlyThoseAre(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Keep: 1})
	inBubble(t, fake, keeping("failed"), func(t *testing.T, st *stage) {
		st.send("POST", "/v1/messages", hello, withID("good"))
		fake.SetFaults(1, claudetest.Overloaded)
		st.send("POST", "/v1/messages", hello, func(r *http.Request) { withID("bad")(r); r.Header.Set("Mainstay-Deadline", "2s") })
		st.book.last(t, 2)
		if _, err := st.Kept("good"); !errors.Is(err, claude.ErrNotKept) {
			t.Error(err)
		}
		if done, err := st.Replay(t.Context(), "bad", "k"); err != nil || done.Code == claude.OK || done.Status < 400 || !strings.Contains(done.Body, "overloaded_error") {
			t.Errorf("%+v %v", done, err)
		}
		fake.SetFaults(0)
		if done, err := st.Replay(t.Context(), "bad", "k"); err != nil || done.Code != claude.OK {
			t.Errorf("%+v %v", done, err)
		}
	})
}

func TestWhyACallCanNotBeSentAgainIsSaid(t *testing.T) {
	st, _ := over(t, claudetest.Options{}, keeping("none"))
	st.send("POST", "/v1/messages", hello, withID("a"))
	if _, err := st.Replay(t.Context(), "a", "k"); !errors.Is(err, claude.ErrNoneKept) {
		t.Error(err)
	}
	if st.Stats().ReplayBytes != 0 {
		t.Error("something is kept")
	}
	st, fake := over(t, claudetest.Options{}, keeping("all"))
	st.send("POST", "/v1/messages", "{", withID("broken"))
	st.send("GET", "/v1/models", "", withID("no message"))
	st.send("POST", "/v1/messages", helloS, withID("a"))
	st.book.last(t, 3)
	for _, id := range []string{"broken", "no message", "never"} {
		if _, err := st.Replay(t.Context(), id, "k"); !errors.Is(err, claude.ErrNotKept) {
			t.Errorf("%s: %v", id, err)
		}
	}
	n := fake.Counts().Requests
	if _, err := st.Replay(t.Context(), "a", ""); !errors.Is(err, claude.ErrNoKey) || fake.Counts().Requests != n {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if done, err := st.Replay(gone, "a", "k"); err != nil || done.Code != claude.ClientGone && done.Code != claude.OK { // it may be kept for an SDK's retry
		t.Errorf("%+v %v", done, err)
	}
	var off claude.Config
	off.SetDefaults()
	off.Upstream = fake.URL()
	commit, err := st.Prepare(off)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	if _, err := st.Kept("a"); !errors.Is(err, claude.ErrNoneKept) {
		t.Errorf("after keeping was turned off: %v", err)
	}
}

func TestAReplayUsesConfiguredKeys(t *testing.T) {
	st, fake := over(t, claudetest.Options{Keep: 1}, func(c *claude.Config) { keeping("all")(c); twoKeys(c) })
	st.send("POST", "/v1/messages", hello, withID("a"))
	waitFor(t, func() bool { k, err := st.Kept("a"); return err == nil && !k.OwnKey })
	if done, err := st.Replay(t.Context(), "a", ""); err != nil || done.Code != claude.OK || fake.Requests()[0].Header.Get("X-Api-Key") == "" {
		t.Errorf("%+v %v", done, err)
	}
}

func TestAnAnswerThatBreaksOffIsAFailedReplay(t *testing.T) {
	fake := claudetest.New(claudetest.Options{})
	inBubble(t, fake, func(c *claude.Config) { c.Keep.Requests = "all" }, func(t *testing.T, st *stage) {
		st.send("POST", "/v1/messages", helloS, withID("a"))
		st.book.last(t, 1)
		fake.Next(claudetest.Cut)
		if done, err := st.Replay(t.Context(), "a", "k"); err != nil || done.Code != claude.UpstreamCut || done.Status != 200 {
			t.Errorf("%+v %v", done, err)
		}
	})
}

// What is kept has no secrets, and is in the log only if that is asked for.
func TestWhatIsKeptIsRedacted(t *testing.T) {
	st, _ := over(t, claudetest.Options{}, func(c *claude.Config) {
		keeping("all")(c)
		c.Keep.Log, c.Keep.Redact = true, []string{"/plan [0-9]+/", "metadata.user_id"}
	})
	body := strings.Replace(hello, "hello", "tell of plan 9 with sk-ant-api03-0123456789abcdefghijkl", 1)
	body = strings.Replace(body, `"messages"`, `"metadata":{"user_id":"ann"},"messages"`, 1)
	st.send("POST", "/v1/messages", body, withID("a"))
	waitFor(t, func() bool { return strings.Contains(st.logs.String(), "claude request kept") })
	k, err := st.Kept("a")
	if err != nil || k.Removed != 3 {
		t.Errorf("%+v %v", k, err)
	}
	log := st.logs.String()
	for _, secret := range []string{"plan 9", "0123456789abcdefghijkl", "ann\\\""} {
		if strings.Contains(log, secret) {
			t.Errorf("%s stands in the log:\n%s", secret, log)
		}
	}
	if !strings.Contains(log, "tell of [redacted] with [redacted]") {
		t.Error(log)
	}
}
