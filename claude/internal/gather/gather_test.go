package gather

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// stream writes events as the API does; each is the data, which tells the name.
func stream(events ...string) string {
	var b strings.Builder
	for _, e := range events {
		var v struct{ Type string }
		_ = json.Unmarshal([]byte(e), &v)
		b.WriteString("event: " + v.Type + "\ndata: " + e + "\n\n")
	}
	return b.String()
}

const (
	begins = `{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":9,"cache_creation":{"ephemeral_5m_input_tokens":0},"output_tokens":1,"service_tier":"standard"},"future":[1]}}`
	ends   = `{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null,"container":{"id":"c"}},"usage":{"input_tokens":null,"output_tokens":42,"server_tool_use":{"web_search_requests":1}},"context_management":{"applied_edits":[]}}`
	stops  = `{"type":"message_stop"}`
	head   = `{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[`
	tail   = `],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":9,"cache_creation":{"ephemeral_5m_input_tokens":0},"output_tokens":42,"service_tier":"standard","server_tool_use":{"web_search_requests":1}},"future":[1],"container":{"id":"c"},"context_management":{"applied_edits":[]}}`
)

func opens(index, block string) string {
	return `{"type":"content_block_start","index":` + index + `,"content_block":` + block + `}`
}

func grows(index, delta string) string {
	return `{"type":"content_block_delta","index":` + index + `,"delta":` + delta + `}`
}

// blocks are content blocks: their events between message_start and message_delta,
// and how the API answers them.
var blocks = map[string]struct {
	events []string
	want   string
}{
	"nothing": {nil, ``},
	"text": {[]string{opens("0", `{"type":"text","text":""}`), `{"type":"ping"}`, grows("0", `{"type":"text_delta","text":"a\n\"b\ud83d"}`),
		grows("0", `{"type":"text_delta","text":"\ude00 é"}`)}, `{"type":"text","text":"a\n\"b\ud83d\ude00 é"}`},
	"citations": {[]string{opens("0", `{"citations":null,"type":"text","text":""}`), grows("0", `{"type":"citations_delta","citation":{"a":1}}`),
		grows("0", `{"type":"text_delta","text":"x"}`), grows("0", `{"type":"citations_delta","citation":{"b":2}}`)}, `{"citations":[{"a":1},{"b":2}],"type":"text","text":"x"}`},
	"thinking and a tool, interleaved": {[]string{opens("0", `{"type":"thinking","thinking":"","signature":""}`),
		opens("1", `{"type":"tool_use","id":"t","name":"n","input":{}}`), grows("1", `{"type":"input_json_delta","partial_json":""}`),
		grows("0", `{"type":"thinking_delta","thinking":"hm"}`), grows("1", `{"type":"input_json_delta","partial_json":"{\"a\": \"é"}`),
		grows("0", `{"type":"signature_delta","signature":"s=="}`), grows("1", `{"type":"input_json_delta","partial_json":"\\n\"}"}`)},
		`{"type":"thinking","thinking":"hm","signature":"s=="},{"type":"tool_use","id":"t","name":"n","input":{"a": "é\n"}}`},
	"a tool whose input was cut": {[]string{opens("0", `{"type":"tool_use","id":"t","name":"n","input":{}}`), grows("0", `{"type":"input_json_delta","partial_json":"{\"a\":"}`)},
		`{"type":"tool_use","id":"t","name":"n","input":{}}`},
	"a server's tool": {[]string{opens("0", `{"type":"server_tool_use","id":"s","name":"web_search","input":{}}`), grows("0", `{"type":"input_json_delta","partial_json":"{\"query\":\"q\"}"}`),
		opens("1", `{"type":"web_search_tool_result","tool_use_id":"s","content":[{"url":"u"}]}`)},
		`{"type":"server_tool_use","id":"s","name":"web_search","input":{"query":"q"}},{"type":"web_search_tool_result","tool_use_id":"s","content":[{"url":"u"}]}`},
	"compaction": {[]string{opens("0", `{"type":"compaction","content":null}`), grows("0", `{"type":"compaction_delta","content":"short","encrypted_content":"e"}`)},
		`{"type":"compaction","content":"short","encrypted_content":"e"}`},
	"of tomorrow": {[]string{opens("0", `{"type":"dream","of":{"x":1},"list":[]}`), `{"type":"tomorrow","index":7}`, grows("0", `{"type":"dream_delta","of":{"y":2},"list":[1],"n":1}`),
		grows("0", `{"type":"dream_delta","of":null,"list":[2,3],"n":2,"s":"a"}`)}, `{"type":"dream","of":{"y":2},"list":[1,2,3],"n":2,"s":"a"}`},
}

func TestAStreamBecomesTheMessageToTheByte(t *testing.T) {
	for name, c := range blocks {
		t.Run(name, func(t *testing.T) {
			text := stream(append(append([]string{begins}, c.events...), ends, stops)...)
			for size := range 60 {
				m := Message{}
				for p := []byte(text); len(p) > 0; {
					n := min(size*7+1, len(p))
					if _, err := m.Write(p[:n]); err != nil {
						t.Fatal(err)
					}
					p = p[n:]
				}
				if got, want := string(m.JSON()), head+c.want+tail; got != want || !m.Done() {
					t.Fatalf("got  %s\nwant %s", got, want)
				}
			}
		})
	}
}

func TestAFallbackNamesTheModelThatServed(t *testing.T) {
	m := Message{}
	_, err := m.Write([]byte(stream(begins, opens("0", `{"type":"fallback","from":{"model":"m"},"to":{"model":"m2"}}`), ends, stops)))
	if err != nil || !strings.Contains(string(m.JSON()), `"model":"m2","content"`) {
		t.Errorf("%v %s", err, m.JSON())
	}
}

func TestAnErrorEventIsTheAnswer(t *testing.T) {
	m := Message{}
	const e = `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"r"}`
	_, err := m.Write([]byte(stream(begins, e, stops)))
	if data, kind := m.Failure(); err != nil || string(data) != e || kind != "overloaded_error" || m.Done() {
		t.Errorf("%v %s %s", err, data, kind)
	}
}

func TestWhatIsNoMessageIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no beginning":    stream(opens("0", `{"type":"text"}`)),
		"no message":      stream(`{"type":"message_start"}`),
		"a gap":           stream(begins, opens("1", `{"type":"text"}`)),
		"a delta of none": stream(begins, grows("0", `{"type":"text_delta","text":"x"}`)),
		"no index":        stream(begins, `{"type":"content_block_start"}`),
	} {
		m := Message{}
		if _, err := m.Write([]byte(text)); !errors.Is(err, errShape) {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := Message{Limit: 1000}
	_, _ = long.Write([]byte(stream(begins, opens("0", `{"type":"text","text":""}`))))
	var err error
	for range 100 {
		_, err = long.Write([]byte(stream(grows("0", `{"type":"text_delta","text":"more and more"}`))))
	}
	if !errors.Is(err, ErrTooLong) || len(long.JSON()) > 2000 {
		t.Errorf("%v, %d bytes", err, len(long.JSON()))
	}
	one := Message{Limit: 1000}
	if _, err := one.Write([]byte(stream(begins, opens("0", `{"type":"text","text":"`+strings.Repeat("x", 2000)+`"}`)))); !errors.Is(err, ErrTooLong) {
		t.Errorf("%v", err)
	}
}

func TestARequestAsksForAStreamByTheLeastEdit(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":1}`:                        `{"a":1,"stream":true}`,
		" {\"a\" : [1, 2 ] \n} \n":       " {\"a\" : [1, 2 ],\"stream\":true \n} \n",
		`{"stream":false,"a":1}`:         `{"stream":true,"a":1}`,
		`{"a":1,"stream" : null }`:       `{"a":1,"stream" : true }`,
		`{"a":{"stream":true}}`:          `{"a":{"stream":true},"stream":true}`,
		`{"stream":true}`:                "",
		`{"stream":1}`:                   "",
		`{"stream":false,"stream":true}`: "",
		`{"stre\u0061m":true,"a":1}`:     "",
		`{}`:                             "",
		`{"a":1`:                         "",
		`{"a":1}{"b":2}`:                 "",
		`[1]`:                            "",
		``:                               "",
	} {
		for _, spare := range []int{0, 64} {
			room := append(make([]byte, 0, len(in)+spare), in...)
			got, ok := Streaming(room)
			if ok != (want != "") || ok && string(got) != want || !ok && string(got) != in {
				t.Errorf("%s: %s, %v", in, got, ok)
			}
			if ok && spare > 0 && &got[0] != &room[0] {
				t.Errorf("%s was copied", in)
			}
		}
	}
}

// FuzzGather feeds any bytes, whole and in pieces: nothing breaks, and both come to
// the same.
func FuzzGather(f *testing.F) {
	for _, c := range blocks {
		f.Add([]byte(stream(append(append([]string{begins}, c.events...), ends, stops)...)), uint8(3))
	}
	f.Add([]byte("event: message_start\ndata: {\"message\":{\"usage\":1}}\n\nevent: message_delta\ndata: {\"usage\":{\"a\":\"\"}}\n\n"), uint8(1))
	f.Fuzz(func(t *testing.T, text []byte, size uint8) {
		whole, parts := Message{Limit: 1 << 16}, Message{Limit: 1 << 16}
		_, err := whole.Write(bytes.Clone(text))
		var errParts error
		for p := bytes.Clone(text); len(p) > 0; {
			n := min(int(size)+1, len(p))
			piece := bytes.Clone(p[:n])
			_, errParts = parts.Write(piece)
			clear(piece) // nothing of it may be used later
			p = p[n:]
		}
		if len(text) < 1<<15 && (!errors.Is(errParts, err) || !bytes.Equal(whole.JSON(), parts.JSON())) {
			t.Errorf("%v %s\n%v %s", err, whole.JSON(), errParts, parts.JSON())
		}
		if edited, ok := Streaming(bytes.Clone(text)); ok && json.Valid(text) {
			var v map[string]any
			if err := json.Unmarshal(edited, &v); err != nil || v["stream"] != true {
				t.Errorf("%s became %s", text, edited)
			}
		}
	})
}
