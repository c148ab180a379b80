package claude_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// told is a stream as a strict client reads it.
type told struct {
	id, stop string
	blocks   []string // kind: content
	output   int
}

// read follows a stream's events and returns what is wrong with it.
func read(stream string) (m told, err error) {
	open, ended := -1, false
	for e := range strings.SplitSeq(strings.TrimSuffix(stream, "\n\n"), "\n\n") {
		_, data, ok := strings.Cut(e, "data: ")
		var v struct {
			Type    string
			Index   int
			Message struct{ ID string }
			Block   struct{ Type string } `json:"content_block"`
			Delta   struct {
				Text, Thinking, Signature string
				Stop                      string `json:"stop_reason"`
				JSON                      string `json:"partial_json"`
			}
			Usage struct {
				Output int `json:"output_tokens"`
			}
		}
		if err := json.Unmarshal([]byte(data), &v); err != nil || !ok {
			return m, fmt.Errorf("%q: %w", e, err)
		}
		switch v.Type {
		case "ping":
		case "message_start":
			if m.id != "" {
				return m, fmt.Errorf("a second message_start")
			}
			m.id = v.Message.ID
		case "content_block_start":
			if open >= 0 || v.Index != len(m.blocks) {
				return m, fmt.Errorf("block %d begins after %d blocks, %d is open", v.Index, len(m.blocks), open)
			}
			open = v.Index
			m.blocks = append(m.blocks, v.Block.Type+":")
		case "content_block_delta":
			if v.Index != open {
				return m, fmt.Errorf("a delta of %d, %d is open", v.Index, open)
			}
			m.blocks[open] += v.Delta.Text + v.Delta.Thinking + v.Delta.Signature + v.Delta.JSON
		case "content_block_stop":
			if v.Index != open {
				return m, fmt.Errorf("%d ends, %d is open", v.Index, open)
			}
			open = -1
		case "message_delta":
			m.stop, m.output = v.Delta.Stop, v.Usage.Output
		case "message_stop":
			ended = true
		default:
			return m, fmt.Errorf("%s", data)
		}
	}
	if !ended || open >= 0 || m.stop == "" {
		return m, fmt.Errorf("it does not end")
	}
	return m, nil
}

// asks are requests that are answered by text, by thinking and text, and by tools.
func asks(model string) map[string]string {
	body := func(more, text string) string {
		return `{"model":"` + model + `","max_tokens":4096,"stream":true,` + more + `"messages":[{"role":"user","content":"` + text + `"}]}`
	}
	tools := `"tools":[{"name":"weather","input_schema":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}],`
	return map[string]string{
		"text":     body("", "hello"),
		"thinking": body(`"thinking":{"type":"enabled","budget_tokens":1024},`, "hello"),
		"tools":    body(tools, "use a tool"),
		"all":      body(tools+`"thinking":{"type":"enabled","budget_tokens":1024},`, "use a tool"),
		"format":   body(`"output_config":{"format":{"type":"json_schema"}},`, "hello"),
	}
}

func TestEveryFaultOfAStreamIsMadeWhole(t *testing.T) {
	for _, model := range []string{"claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "claude-opus-4-6", "claude-sonnet-5"} {
		for kind, body := range asks(model) {
			for _, fault := range claudetest.StreamFaults() {
				for _, n := range []int{1, 3} {
					t.Run(fmt.Sprint(model, " ", kind, " ", fault, n), func(t *testing.T) {
						mended(t, body, fault, n)
					})
				}
			}
		}
	}
}

// mended compares what a client sees of a stream that breaks n times with what it
// sees of one that does not.
func mended(t *testing.T, body string, fault claudetest.Fault, n int) {
	beta := func(r *http.Request) { r.Header.Set("Anthropic-Beta", "any") }
	fake := claudetest.New(claudetest.Options{Keep: 10, Repeat: 40})
	inBubble(t, fake, patient, func(t *testing.T, st *stage) {
		want, err := read(st.send("POST", "/v1/messages", body, beta).body)
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			fake.Next(fault)
		}
		r := st.send("POST", "/v1/messages", body, beta)
		got, err := read(r.body)
		if err != nil || r.err != nil {
			t.Fatalf("%v, %v:\n%s\n%s", err, r.err, r.body, fake.Requests()[len(fake.Requests())-1].Body)
		}
		if fmt.Sprint(got.blocks) != fmt.Sprint(want.blocks) || got.stop != want.stop || got.output < want.output/2 {
			t.Errorf("got  %q %s %d\nwant %q %s %d", got.blocks, got.stop, got.output, want.blocks, want.stop, want.output)
		}
		x := st.book.last(t, 2)
		if x.Code != "ok" || x.Tries != n+1 || r.head.Get("Mainstay-Code") != "" {
			t.Errorf("%s after %d tries: %v", x.Code, x.Tries, x.Err)
		}
		if s := st.Stats(); s.Failed != 0 || strings.Contains(r.body, "mainstay-resumed") != (s.Resumed > 0) {
			t.Errorf("%+v", s)
		}
	})
}

func TestAHealthyStreamPassesToTheByte(t *testing.T) {
	for _, body := range asks("claude-sonnet-5") {
		fake := claudetest.New(claudetest.Options{})
		inBubble(t, fake, patient, func(t *testing.T, st *stage) {
			off := st.send("POST", "/v1/messages", body, func(r *http.Request) {
				r.Header.Set("Anthropic-Beta", "any")
				r.Header.Set("Mainstay-Recovery", "off")
			})
			on := st.send("POST", "/v1/messages", body, func(r *http.Request) { r.Header.Set("Anthropic-Beta", "any") })
			a, _ := read(off.body)
			b, err := read(on.body)
			ping := "event: ping\ndata: {\"type\":\"ping\"}\n\n" // may pass a thought that is held
			if !strings.Contains(body, "thinking") {
				ping = "-"
			}
			same := strings.ReplaceAll(strings.ReplaceAll(off.body, a.id, b.id), ping, "") == strings.ReplaceAll(on.body, ping, "")
			if err != nil || !same {
				t.Errorf("%v\n%s\n%s", err, off.body, on.body)
			}
		})
	}
}

func TestRecoveryCanBeTurnedOffForOneCallAndForOneKey(t *testing.T) {
	for _, byKey := range []bool{false, true} {
		fake := claudetest.New(claudetest.Options{})
		inBubble(t, fake, func(c *claude.Config) {
			patient(c)
			if byKey {
				c.Recovery.Except = []string{"key:34170d7d9116"}
			}
		}, func(t *testing.T, st *stage) {
			fake.Next(claudetest.ErrorMiddle)
			r := st.send("POST", "/v1/messages", helloS, func(r *http.Request) {
				if !byKey {
					r.Header.Set("Mainstay-Recovery", "off")
				}
			})
			if !strings.HasSuffix(r.body, "\n\n") || strings.Count(r.body, "event: error") != 1 {
				t.Errorf("%s", r.body)
			}
		})
	}
}

func TestAStreamThatCannotBeMadeWholeEndsInOneError(t *testing.T) {
	for _, fault := range []claudetest.Fault{claudetest.ErrorFirst, claudetest.ErrorMiddle, claudetest.CutBetween, claudetest.Stall} {
		fake := claudetest.New(claudetest.Options{})
		fake.SetFaults(1, fault)
		inBubble(t, fake, patient, func(t *testing.T, st *stage) {
			begun := time.Now()
			r := st.post(helloS)
			if took := time.Since(begun); took > 15*time.Minute {
				t.Errorf("it took %v", took)
			}
			events := strings.Split(strings.TrimSuffix(r.body, "\n\n"), "\n\n")
			last := strings.TrimPrefix(events[len(events)-1], "event: error\ndata: ")
			parseError(t, last)
			if strings.Count(r.body, `"type":"error"`) != 1 || strings.Contains(r.body, "message_stop") {
				t.Errorf("%s: %s", fault, r.body)
			}
		})
	}
}

func TestTheOfficialGoClientSeesNoFaultOfAStream(t *testing.T) {
	st, fake := over(t, claudetest.Options{Repeat: 20}, func(c *claude.Config) {
		patient(c)
		c.Recovery.Stall = 200 * time.Millisecond
	})
	c := client(st.url)
	for _, model := range []anthropic.Model{"claude-sonnet-5", "claude-haiku-4-5"} {
		for i, f := range claudetest.StreamFaults() {
			fake.Next(f)
			p := ask("call " + strconv.Itoa(i))
			p.Model = model
			s, m := c.Messages.NewStreaming(t.Context(), p), anthropic.Message{}
			for s.Next() {
				if err := m.Accumulate(s.Current()); err != nil {
					t.Fatal(err)
				}
			}
			whole, err := c.Messages.New(t.Context(), p)
			if err != nil || s.Err() != nil || m.Content[0].Text != whole.Content[0].Text || m.StopReason != whole.StopReason {
				t.Errorf("%s %s: %v %v: %s", model, f, err, s.Err(), m.RawJSON())
			}
		}
	}
}

func TestTheOfficialTypeScriptClientSeesNoFaultOfAStream(t *testing.T) {
	st, fake := over(t, claudetest.Options{Repeat: 20, Gzip: true}, func(c *claude.Config) {
		patient(c)
		c.Recovery.Stall = 200 * time.Millisecond
	})
	fake.Next(claudetest.StreamFaults()[:3]...)
	var kinds []string
	var script []claudetest.Fault
	for range 2 {
		for _, f := range claudetest.StreamFaults() {
			script, kinds = append(script, f, claudetest.None), append(kinds, "stream")
		}
	}
	fake.Next(script...)
	var got []struct {
		OK      bool
		Message string
	}
	typescript(t, st.url, &got, append([]string{"each"}, kinds...)...)
	for i, r := range got {
		if !r.OK {
			t.Errorf("%d: %s", i, r.Message)
		}
	}
	if len(got) != len(kinds) {
		t.Errorf("%d results", len(got))
	}
}
