package claudetest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/claude/claudetest"
)

func sdk(url string) anthropic.Client {
	return anthropic.NewClient(option.WithBaseURL(url), option.WithAPIKey("sk-test"), option.WithMaxRetries(0))
}

func ask(text string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model: "claude-sonnet-5", MaxTokens: 1024,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(text))},
	}
}

// post sends a message's body as a careful client would and returns the answer.
func post(t *testing.T, url, body string, edit func(*http.Request)) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("x-api-key", "sk-test")
	req.Header.Set("anthropic-version", "2023-06-01")
	req.Header.Set("Content-Type", "application/json")
	if edit != nil {
		edit(req)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

func TestTheOfficialClientReadsTheSameMessageWholeAndStreamed(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Seed: 7})
	client := sdk(fake.Start(t))
	p := ask("use a tool")
	p.Thinking = anthropic.ThinkingConfigParamOfEnabled(1000 + 24)
	p.MaxTokens = 4096
	p.Tools = []anthropic.ToolUnionParam{anthropic.ToolUnionParamOfTool(anthropic.ToolInputSchemaParam{
		Properties: map[string]any{"city": map[string]any{"type": "string"}}, Required: []string{"city"},
	}, "weather")}
	whole, err := client.Messages.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	stream, streamed := client.Messages.NewStreaming(t.Context(), p), anthropic.Message{}
	for stream.Next() {
		if err := streamed.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if stream.Err() != nil {
		t.Fatal(stream.Err())
	}
	var kinds []string
	for i, b := range whole.Content {
		kinds = append(kinds, b.Type)
		if s := streamed.Content[i]; s.Type != b.Type || s.Thinking != b.Thinking || s.Signature != b.Signature || string(s.Input) != string(b.Input) {
			t.Errorf("block %d: %s streamed, %s whole", i, s.RawJSON(), b.RawJSON())
		}
	}
	if d := cmp.Diff([]string{"thinking", "text", "tool_use"}, kinds); d != "" {
		t.Error(d)
	}
	if whole.StopReason != "tool_use" || streamed.StopReason != whole.StopReason {
		t.Errorf("stop reasons %q and %q", whole.StopReason, streamed.StopReason)
	}
	if c := fake.Counts(); c.Messages != 2 || c.Streams != 1 || c.OutputTokens == 0 {
		t.Errorf("%+v", c)
	}
}

func TestWrongRequestsAreRefusedInTheAPIsWords(t *testing.T) {
	url := claudetest.New(claudetest.Options{Keys: []string{"sk-test"}}).Start(t) + "/v1/messages"
	const good = `{"model":"claude-sonnet-5","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}`
	del := func(name string) func(*http.Request) { return func(r *http.Request) { r.Header.Del(name) } }
	now := func(r *http.Request) { r.Header.Set("anthropic-version", "2026-10-21") }
	for _, c := range []struct {
		body   string
		edit   func(*http.Request)
		status int
		kind   string
		says   string
	}{
		{good, del("x-api-key"), 401, "authentication_error", "x-api-key header is required"},
		{good, func(r *http.Request) { r.Header.Set("x-api-key", "sk-stolen") }, 401, "authentication_error", "invalid x-api-key"},
		{good, del("anthropic-version"), 400, "invalid_request_error", "anthropic-version"},
		{good, func(r *http.Request) { r.Header.Set("anthropic-version", "1999-01-01") }, 400, "invalid_request_error", "not a valid version"},
		{good, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 400, "invalid_request_error", "content-type"},
		{good, func(r *http.Request) { r.Method = "PUT" }, 405, "invalid_request_error", "Method"},
		{good, func(r *http.Request) { r.URL.Path = "/v1/nothing" }, 404, "not_found_error", "Not found"},
		{`{`, nil, 400, "invalid_request_error", "not valid JSON"},
		{`{"model":"claude-sonnet-5","messages":[]}`, nil, 400, "invalid_request_error", "max_tokens: Field required"},
		{`{"max_tokens":5}`, nil, 400, "invalid_request_error", "model: Field required"},
		{`{"model":"gpt-9","max_tokens":5}`, nil, 404, "not_found_error", "model: gpt-9"},
		{`{"model":"claude-x","max_tokens":0}`, nil, 400, "invalid_request_error", "max_tokens"},
		{`{"model":"claude-x","max_tokens":999999}`, nil, 400, "invalid_request_error", "maximum allowed"},
		{`{"model":"claude-x","max_tokens":5}`, nil, 400, "invalid_request_error", "messages: Field required"},
		{`{"model":"claude-x","max_tokens":5,"messages":[]}`, nil, 400, "invalid_request_error", "at least one"},
		{`{"model":"claude-x","max_tokens":5,"messages":[{"role":"robot","content":"x"}]}`, nil, 400, "invalid_request_error", "messages.0.role"},
		{`{"model":"claude-x","max_tokens":5,"messages":[{"role":"user","content":" "}]}`, nil, 400, "invalid_request_error", "non-empty"},
		{`{"model":"claude-x","max_tokens":5,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t"}]}]}`, nil, 400, "invalid_request_error", "tool_use_id"},
		{`{"model":"claude-opus-4-8","max_tokens":5,"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}`, nil, 400, "invalid_request_error", "prefill"},
		{`{"model":"claude-x","max_tokens":5,"frobnicate":1,"messages":[]}`, nil, 400, "invalid_request_error", "frobnicate: Extra inputs"},
		{`{"model":"claude-x","max_tokens":5,"temperature":2,"messages":[{"role":"user","content":"x"}]}`, nil, 400, "invalid_request_error", "temperature"},
		{`{"model":"claude-x","max_tokens":5,"temperature":1,"messages":[{"role":"user","content":"x"}]}`, now, 400, "invalid_request_error", "temperature"},
		{`{"model":"claude-x","max_tokens":5,"messages":[{"role":"user","content":"x"},{"role":"assistant","content":[{"type":"document"}]},{"role":"user","content":"x"}]}`, now, 400, "invalid_request_error", "document"},
		{`{"model":"claude-x","max_tokens":5,"messages":[{"role":"user","content":[{"type":"text","text":"x","citations":[{}]}]}]}`, now, 400, "invalid_request_error", "citations"},
		{strings.Repeat(" ", 33<<20), nil, 413, "request_too_large", "maximum size"},
	} {
		status, head, body := post(t, url, c.body, c.edit)
		var got struct {
			Type  string
			Error struct{ Type, Message string }
			ID    string `json:"request_id"`
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Errorf("%s: %v in %s", c.says, err, body)
			continue
		}
		if status != c.status || got.Error.Type != c.kind || !strings.Contains(got.Error.Message, c.says) || got.ID != head.Get("request-id") {
			t.Errorf("%s: %d %s", c.says, status, body)
		}
	}
	for _, model := range []string{"claude-sonnet-4-5-20250929", "claude-3-5-sonnet-20241022", "claude-opus-4-20250514"} {
		if status, _, body := post(t, url, `{"model":"`+model+`","max_tokens":5,"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}`, nil); status != 200 {
			t.Errorf("%s refused a prefill: %s", model, body)
		}
	}
}

func TestTheSameSeedMakesTheSameFaults(t *testing.T) {
	run := func(seed uint64) (got []int) {
		url := claudetest.New(claudetest.Options{
			Seed: seed, FaultRate: 0.3, Faults: []claudetest.Fault{claudetest.Overloaded, claudetest.Internal, claudetest.RateLimited},
		}).Start(t)
		for range 100 {
			status, _, _ := post(t, url+"/v1/messages", `{"model":"claude-x","max_tokens":5,"messages":[{"role":"user","content":"x"}]}`, nil)
			got = append(got, status)
		}
		return got
	}
	one, again, another := run(1), run(1), run(2)
	if d := cmp.Diff(one, again); d != "" {
		t.Error(d)
	}
	if cmp.Equal(one, another) {
		t.Error("two seeds made the same faults")
	}
	if n := len(slices.DeleteFunc(one, func(s int) bool { return s == 200 })); n < 15 || n > 45 {
		t.Errorf("%d of 100 failed at a rate of 0.3", n)
	}
}

func TestEachFaultLooksToTheClientAsItShould(t *testing.T) {
	fake := claudetest.New(claudetest.Options{})
	client := sdk(fake.Start(t))
	status := map[claudetest.Fault]int{
		claudetest.Overloaded: 529, claudetest.RateLimited: 429, claudetest.Internal: 500, claudetest.BadGateway: 502,
		claudetest.GatewayTimeout: 504, claudetest.Conflict: 409, claudetest.RequestTimeout: 408,
	}
	for _, f := range append(claudetest.HTTPFaults(), claudetest.StreamFaults()...) {
		if f == claudetest.Stall {
			continue
		}
		fake.Next(f)
		var err error
		ended := false
		if slices.Contains(claudetest.StreamFaults(), f) {
			stream := client.Messages.NewStreaming(t.Context(), ask("x"))
			for stream.Next() {
				ended = stream.Current().Type == "message_stop"
			}
			err = stream.Err()
		} else {
			_, err = client.Messages.New(t.Context(), ask("x"))
		}
		api, isAPI := errors.AsType[*anthropic.Error](err)
		switch want := status[f]; {
		case ended:
			t.Errorf("%s: the message came whole", f)
		case f == claudetest.EndEarly && err != nil, f != claudetest.EndEarly && err == nil:
			t.Errorf("%s: %v", f, err)
		case want != 0 && (!isAPI || api.StatusCode != want):
			t.Errorf("%s: %v", f, err)
		}
		if n := fake.Counts().Faults[f]; n != 1 {
			t.Errorf("%s was counted %d times", f, n)
		}
	}
}

func TestAFaultThatDoesNotFitIsUsedUpWithoutEffect(t *testing.T) {
	fake := claudetest.New(claudetest.Options{})
	client := sdk(fake.Start(t))
	fake.Next(claudetest.Cut, claudetest.None, claudetest.Internal)
	for i, fails := range []bool{false, false, true, false} {
		if _, err := client.Messages.New(t.Context(), ask("x")); (err != nil) != fails {
			t.Errorf("request %d: %v", i, err)
		}
	}
}

func TestCountsModelsAndBatches(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Gzip: true})
	client := sdk(fake.Start(t))
	n, err := client.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{Model: "claude-sonnet-5", Messages: ask("hello").Messages})
	if err != nil || n.InputTokens == 0 {
		t.Errorf("%+v, %v", n, err)
	}
	page, err := client.Models.List(t.Context(), anthropic.ModelListParams{})
	if err != nil || len(page.Data) != 3 {
		t.Fatalf("%+v, %v", page, err)
	}
	if m, err := client.Models.Get(t.Context(), page.Data[0].ID, anthropic.ModelGetParams{}); err != nil || m.ID != page.Data[0].ID {
		t.Errorf("%+v, %v", m, err)
	}
	b, err := client.Messages.Batches.New(t.Context(), anthropic.MessageBatchNewParams{Requests: []anthropic.MessageBatchNewParamsRequest{{
		CustomID: "one", Params: anthropic.MessageBatchNewParamsRequestParams{Model: "claude-sonnet-5", MaxTokens: 9, Messages: ask("hi").Messages},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	results := client.Messages.Batches.ResultsStreaming(t.Context(), b.ID, anthropic.MessageBatchResultsParams{})
	for results.Next() {
		if r := results.Current(); r.CustomID != "one" || r.Result.Type != "succeeded" || r.Result.Message.Model == "" || r.Result.Message.Usage.ServiceTier != "batch" {
			t.Errorf("%s", r.RawJSON())
		}
	}
	if results.Err() != nil {
		t.Error(results.Err())
	}
	fake.Next(claudetest.Truncated)
	cut := client.Messages.Batches.ResultsStreaming(t.Context(), b.ID, anthropic.MessageBatchResultsParams{}, option.WithMaxRetries(0))
	for cut.Next() {
	}
	if cut.Err() == nil {
		t.Error("results that were cut came as if they were whole")
	}
}

func TestAPromptIsWrittenToTheCacheOnceAndReadAfterwards(t *testing.T) {
	client := sdk(claudetest.New(claudetest.Options{}).Start(t))
	p := ask("and now?")
	p.System = []anthropic.TextBlockParam{{Text: strings.Repeat("long ", 500), CacheControl: anthropic.NewCacheControlEphemeralParam()}}
	first, err := client.Messages.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	second, err := client.Messages.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if first.Usage.CacheCreationInputTokens == 0 || second.Usage.CacheReadInputTokens != first.Usage.CacheCreationInputTokens {
		t.Errorf("first %s, second %s", first.Usage.RawJSON(), second.Usage.RawJSON())
	}
}

func TestAServerComesBackAtTheSameAddress(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Keep: 1})
	if err := fake.Open("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	url := fake.URL()
	client := sdk(url)
	if _, err := client.Messages.New(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	fake.Next(claudetest.Hang)
	hung := make(chan error, 1)
	go func() {
		_, err := client.Messages.New(context.WithoutCancel(t.Context()), ask("x"))
		hung <- err
	}()
	for fake.Counts().Faults[claudetest.Hang] == 0 {
		if len(hung) > 0 {
			t.Fatal("a call that must hang has ended")
		}
	}
	fake.Close()
	if err := <-hung; err == nil {
		t.Error("a call outlived the server")
	}
	if _, err := client.Messages.New(t.Context(), ask("x")); err == nil {
		t.Error("a closed server answered")
	}
	if err := fake.Open(strings.TrimPrefix(url, "http://")); err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	if _, err := client.Messages.New(t.Context(), ask("x")); err != nil {
		t.Error(err)
	}
	if r := fake.Requests(); len(r) != 1 || r[0].N != 3 || r[0].URI != "/v1/messages" {
		t.Errorf("%+v", r)
	}
}

func ExampleNew() {
	fake := claudetest.New(claudetest.Options{Seed: 1})
	if err := fake.Open("127.0.0.1:0"); err != nil {
		fmt.Println(err)
		return
	}
	defer fake.Close()
	client := anthropic.NewClient(option.WithBaseURL(fake.URL()), option.WithAPIKey("any"), option.WithMaxRetries(0))
	fake.Next(claudetest.Overloaded)
	_, err := client.Messages.New(context.Background(), ask("hello"))
	failure, _ := errors.AsType[*anthropic.Error](err)
	fmt.Println(failure.StatusCode, failure.Type())
	m, err := client.Messages.New(context.Background(), ask("hello"))
	fmt.Println(m.StopReason, err)
	// Output:
	// 529 overloaded_error
	// end_turn <nil>
}
