package mend

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// whole is a stream with a thought, a text and a tool.
const whole = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"usage\":{\"input_tokens\":10,\"cache_read_input_tokens\":2}}}\n\n" +
	"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}}\n\n" +
	"event: ping\ndata: {\"type\":\"ping\"}\n\n" +
	"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"hm\"}}\n\n" +
	"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"signature_delta\",\"signature\":\"sig\"}}\n\n" +
	"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n" +
	"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n" +
	"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello \"}}\n\n" +
	"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"text_delta\",\"text\":\"wörld\"}}\n\n" +
	"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}\n\n" +
	"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":2,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"n\",\"input\":{}}}\n\n" +
	"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":2,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"a\\\":1}\"}}\n\n" +
	"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":2}\n\n" +
	"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":9}}\n\n" +
	"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"

const request = `{"model":"claude-sonnet-4-5","max_tokens":100,"stream":true,"messages":[{"role":"user","content":"hi"}]}`

// given feeds stream in pieces of n bytes and returns what passes.
func given(m *Message, stream string, n int) (string, State) {
	var out strings.Builder
	state := Going
	for at := 0; at < len(stream) && state == Going; at += n {
		p := []byte(stream[at:min(at+n, len(stream))])
		state = m.Feed(p)
		clear(p)
		buf := make([]byte, 7)
		for k := m.Take(buf); k > 0; k = m.Take(buf) {
			out.Write(buf[:k])
		}
	}
	return out.String(), state
}

func TestAHealthyStreamPassesToTheByteHoweverItComes(t *testing.T) {
	for _, hold := range []bool{false, true} {
		for n := 1; n < 400; n += 7 {
			m := Message{Whole: hold}
			got, state := given(&m, whole, n)
			if !hold { // a ping may pass what is held
				const ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n"
				got = strings.Replace(strings.Replace(got, ping, "", 1), "\"signature\":\"\"}}\n\n", "\"signature\":\"\"}}\n\n"+ping, 1)
			}
			if got != whole || state != Done {
				t.Fatalf("by %d: %d\n%s", n, state, got)
			}
		}
	}
}

func TestWhereverAStreamIsCutTheClientHasAPartThatCanBeContinued(t *testing.T) {
	for at := range len(whole) {
		var m Message
		got, _ := given(&m, whole[:at], 50)
		const ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n"
		if !strings.HasPrefix(strings.Replace(whole, ping, "", 1), strings.Replace(got, ping, "", 1)) {
			t.Fatalf("%q is no beginning", got)
		}
		if m.Mend() {
			if rest, _ := given(&m, "\n", 1); !strings.HasSuffix(got+rest, "message_stop\"}\n\n") {
				t.Fatalf("%q", got+rest)
			}
			continue
		}
		blocks, _ := contents([]byte(got))
		if len(blocks) > 0 && (blocks[len(blocks)-1].kind != "text" || len(blocks) > 2) {
			t.Fatalf("the client has %v", blocks)
		}
		body := m.Continue([]byte(request), false)
		if !json.Valid(body) || (len(blocks) == 0) != (string(body) == request) {
			t.Fatalf("%s", body)
		}
	}
}

func TestAContinuationIsAskedForByTheModelsRule(t *testing.T) {
	begun, _, _ := strings.Cut(whole, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}")
	for model, prefill := range map[string]bool{
		"claude-3-5-sonnet-20241022": true, "claude-sonnet-4-20250514": true, "claude-sonnet-4-5": true, "claude-haiku-4-5-20251001": true,
		"claude-opus-4-6": false, "claude-opus-4-8": false, "claude-sonnet-5": false, "claude-fable-5": false, "gpt": false, "": false,
	} {
		var m Message
		given(&m, begun, 50)
		m.Mend()
		var body struct {
			Max      int `json:"max_tokens"`
			Messages []struct {
				Role    string
				Content json.RawMessage
			}
		}
		if err := json.Unmarshal(m.Continue([]byte(strings.Replace(request, "claude-sonnet-4-5", model, 1)), false), &body); err != nil {
			t.Fatal(err)
		}
		n := len(body.Messages)
		if (n == 2) != prefill || (n == 3) == prefill || body.Max >= 100 || body.Messages[1].Role != "assistant" {
			t.Errorf("%s: %+v", model, body)
		}
		want := `[{"type":"thinking","thinking":"hm","signature":"sig"},{"type":"text","text":"Hello wörld"}]`
		if d := cmp.Diff(want, string(body.Messages[1].Content)); d != "" {
			t.Error(d)
		}
	}
	var m Message
	given(&m, begun, 50)
	m.Mend()
	if body := m.Continue([]byte(request), true); !strings.Contains(string(body), "interrupted") {
		t.Errorf("a refused prefill was made again: %s", body)
	}
}

func TestTheSeamDropsWhatIsSaidTwice(t *testing.T) {
	for _, c := range []struct{ said, again, want string }{
		{"The quick brown fox jumps", " over", "The quick brown fox jumps over"},
		{"The quick brown fox jumps", "brown fox jumps over", "The quick brown fox jumps over"},
		{"The quick brown fox jumps ", " over", "The quick brown fox jumps over"},
		{"ha ha", "ha ha ha", "ha haha ha ha"}, // too short to tell
		{"a€€€€€€", "€€€€€€b", "a€€€€€€b"},
	} {
		s := newSeam([]block{{kind: "text", text: c.said}}, true, false)
		if got := c.said + c.again[s.repeated(c.again):]; got != c.want {
			t.Errorf("%q + %q: %q", c.said, c.again, got)
		}
	}
	s := newSeam([]block{{kind: "text", text: "one \n"}}, true, true)
	if n := s.repeated(" \ntwo"); n != 2 {
		t.Errorf("after a prefill %d bytes are dropped", n)
	}
}

func FuzzAStreamThatBreaksAndGoesOn(f *testing.F) {
	for at := 0; at < len(whole); at += 97 {
		f.Add([]byte(whole), at, 10)
	}
	f.Add([]byte("event: error\r\ndata: {}\r\n\r\n"), 3, 1)
	f.Add([]byte("event: content_block_delta\ndata: {\"index\":9}\n\nevent: message_delta\ndata: 1\n\n"), 30, 3)
	f.Fuzz(func(t *testing.T, stream []byte, at, n int) {
		at, n = min(max(at, 0), len(stream)), min(max(n, 1), 1000)
		var m Message
		first, state := given(&m, string(stream[:at]), n)
		if state != Going || m.Mend() {
			return
		}
		if body := m.Continue([]byte(request), false); !json.Valid(body) && json.Valid(bytes.TrimSpace([]byte(first))) {
			t.Errorf("%s", body)
		}
		second, _ := given(&m, string(stream), n)
		log := []byte(first + second)
		starts := bytes.Count(log, []byte("event: message_start\n"))
		if json.Valid(stream) && starts > 1 {
			t.Errorf("%d beginnings: %s", starts, strconv.Quote(string(log)))
		}
	})
}

// Whoever watches what the client is given hears of each event once, in that order.
func TestWhatIsShownIsWhatIsGiven(t *testing.T) {
	for _, hold := range []bool{false, true} {
		for n := 1; n < 400; n += 13 {
			var shown strings.Builder
			m := Message{Whole: hold}
			m.Shown = func(name, data []byte) { shown.Write(compose(nil, string(name), data)) }
			got, _ := given(&m, whole, n)
			const ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n"
			if want := strings.Replace(got, ping, "", 1); strings.Replace(shown.String(), ping, "", 1) != want {
				t.Fatalf("whole %v, by %d: shown\n%s\nof\n%s", hold, n, shown.String(), want)
			}
		}
	}
	var shown []string
	m := Message{}
	cutAt := strings.Index(whole, "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":2")
	_, _ = given(&m, whole[:cutAt], 1000)
	m.Shown = func(name, _ []byte) { shown = append(shown, string(name)) }
	m.Mend()
	if m.Continue([]byte(request), false) == nil {
		t.Fatal("can't be continued")
	}
	rest, state := given(&m, whole[:strings.Index(whole, "event: content_block_start")]+whole[cutAt:], 50)
	if state != Done || strings.Count(rest, "event: ") != len(shown) || shown[len(shown)-1] != "message_stop" {
		t.Errorf("state %d, shown %q of\n%s", state, shown, rest)
	}
}

// The short way to an event's parts comes to what the long one does.
func TestAnUsualEventIsReadLikeAnyOther(t *testing.T) {
	for _, p := range []string{
		"event: a\ndata: {}\n\nrest", "event: a\r\ndata: {}\r\n\r\n", "event: a\ndata: {}\r\n\n", "event: \ndata: \n\n", "event:a\ndata:{}\n\n",
		"event: a\ndata: 1\ndata: 2\n\n", "event: a\ndata: 1\nid: 7\n\n", "event: a\ndata: {}\n", "event: a\n", "event: ", "\n", ": hm\n\n", "event: a\r\ndata: {}\n\n",
	} {
		short, n := usual([]byte(p))
		if n == 0 {
			continue
		}
		long, m := cut(append([]byte(": \n"), p...)) // a comment keeps it from the short way
		if m -= 3; n != m || string(short.name) != string(long.name) || string(short.data) != string(long.data) || string(short.raw) != string(long.raw[3:]) {
			t.Errorf("%q: %d %q %q, but %d %q %q", p, n, short.name, short.data, m, long.name, long.data)
		}
	}
	if _, n := usual([]byte("event: a\ndata: {}\n\n")); n != 19 {
		t.Errorf("the short way is not taken: %d", n)
	}
}

// A delta of a text passes without a thought of memory.
func TestADeltaTakesNoMemory(t *testing.T) {
	m := Message{}
	defer m.Release()
	m.Feed([]byte(whole[:strings.Index(whole, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}")]))
	m.Took()
	told := 0
	m.Shown = func(_, _ []byte) { told++ }
	p := []byte("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"text_delta\",\"text\":\"more\"}}\n\n")
	if n := testing.AllocsPerRun(20, func() { m.Feed(p); m.Took() }); n > 0 || told != 21 {
		t.Errorf("%v allocations, %d events shown", n, told)
	}
}
