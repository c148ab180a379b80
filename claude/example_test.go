package claude_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// opened is a fake of the API that an example calls.
func opened(opt claudetest.Options) *claudetest.Server {
	fake := claudetest.New(opt)
	if err := fake.Open("127.0.0.1:0"); err != nil {
		panic(err)
	}
	return fake
}

func ExampleTransport() {
	fake := opened(claudetest.Options{RetryAfter: "0.01"})
	defer fake.Close()

	client := anthropic.NewClient(
		option.WithBaseURL(fake.URL()), option.WithAPIKey("any"),
		option.WithHTTPClient(&http.Client{Transport: &claude.Transport{}}),
	)
	fake.Next(claudetest.RateLimited)
	m, err := client.Messages.New(context.Background(), ask("hello"))
	fmt.Println(m.StopReason, err, fake.Counts().Requests)
	// Output: end_turn <nil> 2
}

// A stream that breaks in the middle goes on, and its reader never knows.
func ExampleTransport_streams() {
	fake := opened(claudetest.Options{Reply: func([]byte) string { return "a sentence that takes a few events to be told" }})
	defer fake.Close()
	client := anthropic.NewClient(
		option.WithBaseURL(fake.URL()), option.WithAPIKey("any"),
		option.WithHTTPClient(&http.Client{Transport: &claude.Transport{}}),
	)

	fake.Next(claudetest.Cut)
	stream, said := client.Messages.NewStreaming(context.Background(), ask("hello")), anthropic.Message{}
	for stream.Next() {
		if err := said.Accumulate(stream.Current()); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println(said.StopReason, stream.Err(), fake.Counts().Requests)
	// Output: end_turn <nil> 2
}

// Keys of its own, a second way, and a ceiling for what a day may cost.
func ExampleNewTransport() {
	first, second := opened(claudetest.Options{Keys: []string{"key-of-the-first"}}), opened(claudetest.Options{Keys: []string{"key-of-the-second"}})
	defer second.Close()

	var cfg claude.Config
	cfg.SetDefaults()
	cfg.Upstream = first.URL()
	cfg.Keys = []claude.KeyConfig{{Name: "main", Key: "key-of-the-first"}}
	cfg.Routes = []claude.RouteConfig{{Name: "backup", Upstream: second.URL(), Keys: []claude.KeyConfig{{Name: "main", Key: claude.Secret("key-of-the-second")}}}}
	cfg.Spend.Daily = 20
	cfg.Retry.Hold = time.Second
	engine, err := claude.NewTransport(cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	client := anthropic.NewClient(option.WithBaseURL(first.URL()), option.WithAPIKey("unused"), option.WithHTTPClient(&http.Client{Transport: engine}))

	ask := func() {
		var res *http.Response
		m, err := client.Messages.New(context.Background(), ask("hello"), option.WithResponseInto(&res))
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(m.StopReason, "by", res.Header.Get("Mainstay-Claude-Route"))
	}
	ask()
	first.Close()
	ask()
	fmt.Println(engine.Stats().SpentToday > 0, engine.Stats().SpentToday < 20)
	// Output:
	// end_turn by claude
	// end_turn by backup
	// true true
}

func ExampleDo() {
	fake := opened(claudetest.Options{RetryAfter: "0.01"})
	defer fake.Close()
	client := anthropic.NewClient(option.WithBaseURL(fake.URL()), option.WithAPIKey("any"))
	engine := &claude.Transport{}

	fake.Next(claudetest.RateLimited)
	m, err := claude.Do(context.Background(), engine, func(ctx context.Context, via *http.Client) (*anthropic.Message, error) {
		return client.Messages.New(ctx, ask("hello"), option.WithHTTPClient(via))
	})
	fmt.Println(m.StopReason, err, fake.Counts().Requests)
	// Output: end_turn <nil> 2
}

// An answer that the work finds wanting is had anew.
func ExampleDo_judge() {
	replies := []string{"well, certainly: 42", "42"}
	fake := opened(claudetest.Options{Reply: func([]byte) string {
		r := replies[0]
		replies = replies[1:]
		return r
	}})
	defer fake.Close()
	client := anthropic.NewClient(option.WithBaseURL(fake.URL()), option.WithAPIKey("any"))

	unfit := errors.New("not a number")
	engine := &claude.Transport{Judge: func(err error) (again bool, after time.Duration) { return errors.Is(err, unfit), 0 }}
	n, err := claude.Do(context.Background(), engine, func(ctx context.Context, via *http.Client) (n int, err error) {
		m, err := client.Messages.New(ctx, ask("six times seven?"), option.WithHTTPClient(via))
		if err != nil {
			return 0, err
		}
		if _, err = fmt.Sscan(m.Content[0].Text, &n); err != nil {
			return 0, fmt.Errorf("%w: %w", unfit, err)
		}
		return n, nil
	})
	fmt.Println(n, err)
	// Output: 42 <nil>
}

// Work that does not go through the engine's client is judged by its errors alone.
func ExampleDo_elsewhere() {
	fake := opened(claudetest.Options{RetryAfter: "0.01"})
	defer fake.Close()
	client := anthropic.NewClient(option.WithBaseURL(fake.URL()), option.WithAPIKey("any"), option.WithMaxRetries(0))

	engine := &claude.Transport{Judge: func(err error) (bool, time.Duration) {
		if e, ok := errors.AsType[*anthropic.Error](err); ok {
			return claude.JudgeResponse(e.Response)
		}
		return claude.JudgeError(err)
	}}
	fake.Next(claudetest.RateLimited)
	m, err := claude.Do(context.Background(), engine, func(ctx context.Context, _ *http.Client) (*anthropic.Message, error) {
		return client.Messages.New(ctx, ask("hello"))
	})
	fmt.Println(m.StopReason, err, fake.Counts().Requests)
	// Output: end_turn <nil> 2
}
