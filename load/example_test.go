package load_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"time"

	"mainstay.dev/mainstay/load"
)

func ExampleRun() {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "hello")
	}))
	defer srv.Close()

	report, err := load.Run(context.Background(), load.Plan{
		Base:     srv.URL,
		Rate:     200,
		Duration: 100 * time.Millisecond,
		Seed:     1,
		Mix: []load.Kind{{
			Name: "hello", Weight: 1,
			Make: func(ctx context.Context, base string, _ *rand.Rand) (*http.Request, error) {
				return http.NewRequestWithContext(ctx, http.MethodGet, base+"/hello", nil)
			},
			Judge: func(a load.Answer) (load.Verdict, string) {
				if string(a.Body) != "hello" {
					return load.WrongBody, "not_hello"
				}
				return load.ByStatus(a)
			},
		}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	s := report.Tally.Summary(nil)
	fmt.Println(s.Requests, "requests,", s.Failed, "failed,", s.Saturated, "not sent")
	// Output: 20 requests, 0 failed, 0 not sent
}
