package batch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/telemetry"
)

// line is a result of the API's, with a text of n bytes.
func line(id string, n int) string {
	return fmt.Sprintf(`{"custom_id":%q,"result":{"type":"succeeded","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[{"type":"text","text":"{\"usage\":{\"input_tokens\":9}} \\ %s"},{"type":"tool_use","input":{"usage":{"input_tokens":7},"model":"x","custom_id":"y"}}],"stop_reason":"end_turn","usage":{"input_tokens":10,"cache_read_input_tokens":4,"cache_creation_input_tokens":3,"cache_creation":{"ephemeral_1h_input_tokens":1},"output_tokens":5,"service_tier":"batch","server_tool_use":{"web_search_requests":2}}}}}`, id, strings.Repeat("long ", n/5))
}

const (
	errored = `{"custom_id":"bad","result":{"type":"errored","error":{"type":"error","error":{"type":"invalid_request_error","message":"no"}}}}`
	expired = `{"result": {"type" : "expired"} , "custom_id" : "late"}`
)

var used = price.Usage{Model: "claude-sonnet-4-5", Input: 10, CacheRead: 4, CacheWrite: 3, CacheHour: 1, Output: 5, Batch: true, Searches: 2}

// read gives what is found in text, however it comes.
func read(t *testing.T, r io.Reader) (found []string, unread int) {
	t.Helper()
	l := Lines{Found: func(res Result) {
		u, ok := Used(res)
		found = append(found, fmt.Sprintf("%s %v %+v", res.ID, ok, u))
	}}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		l.Feed(buf[:n])
		if err != nil {
			l.End()
			return found, l.Unread
		}
	}
}

func TestResultsAreReadHoweverTheyComeAndHoweverLongTheirLinesAre(t *testing.T) {
	text := line("a", 10) + "\n" + errored + "\r\n\n" + line("b", 3_000_000) + "\n" + expired + "\n" + line(`c"\`, 100)
	want := []string{fmt.Sprintf(`"a" true %+v`, used), `"bad" false {}`, fmt.Sprintf(`"b" true %+v`, used), `"late" false {}`, fmt.Sprintf(`"c\"\\" true %+v`, used)}
	for i := range want {
		want[i] = strings.Replace(want[i], "{}", fmt.Sprintf("%+v", price.Usage{}), 1)
	}
	for name, r := range map[string]io.Reader{
		"at once": strings.NewReader(text), "halves": iotest.HalfReader(strings.NewReader(text)), "bytes": iotest.OneByteReader(strings.NewReader(text)),
	} {
		if found, unread := read(t, r); strings.Join(found, "\n") != strings.Join(want, "\n") || unread != 0 {
			t.Errorf("%s: %d unread\n%s", name, unread, strings.Join(found, "\n"))
		}
	}
}

func TestLinesThatCanNotBeReadAreCountedAndDoNoHarmToOthers(t *testing.T) {
	bad := []string{
		`null`, `"a"`, `5`, `[]`, `{"custom_id":"x"}`, `{"custom_id":"x","result":{"type":"succeeded"`, `}`, `{"custom_id":"x`,
		`{"custom_id":"` + strings.Repeat("x", mostValue) + `","result":{"type":"succeeded"}}`, `{}`, `{"result":{"type":"succeeded"}}`,
	}
	var text strings.Builder
	for i, b := range bad {
		fmt.Fprintf(&text, "%s\n%s\n", b, line(fmt.Sprint(i), 20))
	}
	if found, unread := read(t, strings.NewReader(text.String())); len(found) != len(bad) || unread != len(bad) {
		t.Errorf("%d found, %d unread: %q", len(found), unread, found)
	}
}

func TestAHundredMegabytesOfResultsTakeTheMemoryOfOne(t *testing.T) {
	l := Lines{Found: func(Result) {}}
	piece := []byte(line("a", 100_000) + "\n")
	l.Feed(piece)
	if n := testing.AllocsPerRun(1000, func() { l.Feed(piece) }); n > 0 {
		t.Errorf("%v allocations a line", n)
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte(line("a", 10)+"\n"+errored+"\n"), uint64(1))
	f.Add([]byte(expired+"\n"+line("b", 0)), uint64(2))
	f.Add([]byte(`{"custom_id":"\"","result":{"message":{"usage":{"a":[{"b":1}]}},"type":""}}`), uint64(3))
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		dice := rand.New(rand.NewPCG(seed, 1))
		var got []string
		l := Lines{Found: func(r Result) { got = append(got, fmt.Sprintf("%s|%s|%s|%s", r.ID, r.Kind, r.Model, r.Usage)) }}
		for rest := text; len(rest) > 0; {
			n := 1 + dice.IntN(len(rest))
			l.Feed(rest[:n])
			rest = rest[n:]
		}
		l.End()
		at := 0
		for raw := range bytes.SplitSeq(text, []byte{'\n'}) {
			var v struct {
				ID     json.RawMessage `json:"custom_id"`
				Result struct {
					Kind    json.RawMessage `json:"type"`
					Message struct {
						Model json.RawMessage `json:"model"`
						Usage json.RawMessage `json:"usage"`
					} `json:"message"`
				} `json:"result"`
			}
			// What encoding/json takes for a result is found; names that it takes for the same are none of the API's.
			if len(raw) > mostValue || json.Unmarshal(raw, &v) != nil || len(v.ID) == 0 || len(v.Result.Kind) == 0 || bytes.ContainsAny(raw, `\ABCDEFGHIJKLMNOPQRSTUVWXYZ`) || !plain(raw) {
				continue
			}
			want := fmt.Sprintf("%s|%s|%s|%s", squeeze(v.ID), squeeze(v.Result.Kind), squeeze(v.Result.Message.Model), squeeze(v.Result.Message.Usage))
			for at < len(got) && got[at] != want {
				at++
			}
			if at == len(got) {
				t.Fatalf("%s: want %s among %q", raw, want, got)
			}
			at++
		}
	})
}

// plain reports whether no name comes twice, of which encoding/json makes a mixture.
func plain(raw []byte) bool {
	for _, name := range []string{`"custom_id"`, `"result"`, `"type"`, `"message"`, `"model"`, `"usage"`} {
		if bytes.Count(raw, []byte(name)) > 1 {
			return false
		}
	}
	return true
}

// squeeze takes the space out of a value, which is not kept.
func squeeze(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return b.String()
}

// fetch reads results and returns whose were booked.
func fetch(r *Register, id string, text string, whole bool) (booked []string) {
	f := r.Fetch(id, Owner{User: "who fetches"}, func(o Owner, res Result) { booked = append(booked, o.User+" "+string(res.ID)) })
	f.Feed([]byte(text))
	f.End(whole)
	f.End(true)
	return booked
}

func open(t *testing.T, dir string) *Register {
	t.Helper()
	r, err := Open(dir, func(what string, err error) { t.Errorf("%s: %v", what, err) })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEachResultIsBookedOnceHoweverOftenItIsFetchedAndOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := open(t, dir)
		r.Made("b1", Owner{User: "ann", Workspace: "w"})
		text := line("1", 10) + "\n" + line("2", 10) + "\n" + line("3", 10) + "\n"
		cut := text[:len(text)-40]
		if got := fetch(r, "b1", cut, false); strings.Join(got, ",") != `ann "1",ann "2"` {
			t.Errorf("cut: %q", got)
		}
		if got := fetch(r, "b1", cut, false); got != nil {
			t.Errorf("cut again: %q", got)
		}
		time.Sleep(2 * saveAfter) // it is saved by itself: nobody closes after a kill
		r = open(t, dir)
		if got := fetch(r, "b1", line("3", 10)+"\n"+text, true); strings.Join(got, ",") != `ann "3"` { // in another order
			t.Errorf("whole: %q", got)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		r = open(t, dir)
		if got := fetch(r, "b1", text, true); got != nil || r.partly != 0 {
			t.Errorf("again: %q, %d", got, r.partly)
		}
		if got := fetch(r, "b2", text, true); len(got) != 3 || got[0] != `who fetches "1"` {
			t.Errorf("of nobody: %q", got)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
			t.Errorf("%v %v", files, err)
		}
	})
}

func TestTwoWhoFetchAtOnceBookEachResultOnce(t *testing.T) {
	r := open(t, "")
	var booked []string
	book := func(_ Owner, res Result) { booked = append(booked, string(res.ID)) }
	a, b := r.Fetch("x", Owner{}, book), r.Fetch("x", Owner{}, book)
	for i := range 10 {
		a.Feed([]byte(line(fmt.Sprint(i), 1) + "\n"))
		b.Feed([]byte(line(fmt.Sprint(9-i), 1) + "\n"))
	}
	a.End(true)
	b.Feed([]byte(line("late", 1) + "\n"))
	b.End(false)
	if len(booked) != 10 || r.partly != 0 {
		t.Errorf("%q, %d", booked, r.partly)
	}
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		r, err := Open("", func(string, error) { told++ })
		if err != nil {
			t.Fatal(err)
		}
		r.room = 10_000
		for i := range mostBatches + 500 {
			if i%1000 == 0 {
				time.Sleep(time.Second)
			}
			r.Made(fmt.Sprint("b", i), Owner{User: "u"})
		}
		if n := len(r.of); n > mostBatches || n < mostBatches/2 || r.of["b0"] != nil || r.of[fmt.Sprint("b", mostBatches+499)] == nil {
			t.Errorf("%d batches", n)
		}
		for i := range 3 { // three batches, each fetched in part, are more than is told apart
			f := r.Fetch(fmt.Sprint("p", i), Owner{}, func(Owner, Result) {})
			for n := range r.room/2 - 10 {
				f.first(fmt.Append(nil, n))
			}
			f.End(false)
			time.Sleep(time.Second)
		}
		if r.partly > r.room || told != 1 || !r.of["p0"].done || r.of["p1"].done || r.of["p2"].done {
			t.Errorf("%d results, told %d times", r.partly, told)
		}
		if got := fetch(r, "p0", line("never seen", 1)+"\n", true); got != nil {
			t.Errorf("%q may have been booked before", got)
		}
		fetch(r, "empty", "", false)
		if r.of["empty"] != nil {
			t.Error("of what nothing is known nothing is kept")
		}
	})
}

func TestARegisterThatCanNotBeReadOrWrittenIsTold(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"{", `[{"id":""}]`, `[{"id":"a","booked_results":"AAA="}]`} {
		if err := os.WriteFile(filepath.Join(dir, "claude-batches.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, nil); err == nil || !strings.Contains(err.Error(), "claude-batches.json") {
			t.Errorf("%s: %v", text, err)
		}
	}
	r := open(t, filepath.Join(dir, "missing"))
	r.Made("a", Owner{})
	if err := r.Close(); err == nil {
		t.Error("nobody is told")
	}
	var none *Register
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}

func TestPointLeadsHereAndChangesNothingElse(t *testing.T) {
	const here = "http://127.0.0.1:8700/@blue"
	for in, want := range map[string]string{
		`{"id":"b","results_url":"https://api.anthropic.com/v1/messages/batches/b/results","type":"message_batch"}`:                                                                `{"id":"b","results_url":"` + here + `/v1/messages/batches/b/results","type":"message_batch"}`,
		`{"data":[{"results_url" : "https://gw.example/anthropic/v1/messages/batches/b/results"},{"results_url":null},{"results_url":"https://x/v1/messages/batches/c/results"}]}`: `{"data":[{"results_url" : "` + here + `/v1/messages/batches/b/results"},{"results_url":null},{"results_url":"` + here + `/v1/messages/batches/c/results"}]}`,
		`{"results_url":null}`:                                              `{"results_url":null}`,
		`{"results_url":"https://elsewhere.example/b.jsonl"}`:               `{"results_url":"https://elsewhere.example/b.jsonl"}`,
		`{"a":"results_url","b":"https://x/v1/messages/batches/c/results"}`: `{"a":"results_url","b":"https://x/v1/messages/batches/c/results"}`,
		`{"results_url"`: `{"results_url"`,
		`{"results_url":"https://x/v1/messages/batches/c`: `{"results_url":"https://x/v1/messages/batches/c`,
		``: ``,
	} {
		if got := string(Point([]byte(in), here)); got != want {
			t.Errorf("%s\n%s", in, got)
		}
	}
}

func TestAFetchTellsWhatEachModelHasCost(t *testing.T) {
	var g telemetry.GenAI
	for i := range 40 {
		Count(&g, price.Usage{Model: fmt.Sprint("m", i%20), Input: 1, CacheRead: 2, CacheWrite: 3, Output: 4}, 5, i%20 != 7)
	}
	if g.Model != "several" || g.InputTokens != 40 || g.CacheReadTokens != 80 || g.CacheWriteTokens != 120 || g.OutputTokens != 160 || g.CostNanoUSD != 200 || !g.Unpriced || len(g.Shares) != telemetry.MaxShares {
		t.Errorf("%+v", g)
	}
	var sum telemetry.Share
	for _, s := range g.Shares {
		sum.CostNanoUSD += s.CostNanoUSD
		sum.Unpriced += s.Unpriced
	}
	if last := g.Shares[len(g.Shares)-1]; sum.CostNanoUSD != 200 || sum.Unpriced != 2 || last.Model != "several" || last.CostNanoUSD != 50 || g.Shares[3].Model != "m3" {
		t.Errorf("%+v", g.Shares)
	}
}
