package retry_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mainstay.dev/mainstay/retry"
)

func ExampleDo() {
	busy := errors.New("busy")
	p := retry.Policy{Max: 3, Base: time.Millisecond, Jitter: 0.25}
	judge := func(err error) (bool, time.Duration) { return errors.Is(err, busy), 0 }
	tries := 0
	answer, err := retry.Do(context.Background(), p, judge, func(context.Context) (int, error) {
		if tries++; tries < 3 {
			return 0, busy
		}
		return 42, nil
	})
	fmt.Println(answer, err, tries)
	// Output: 42 <nil> 3
}
