package health_test

import (
	"context"
	"fmt"

	"mainstay.dev/mainstay/health"
)

func ExampleGate() {
	gate := health.NewGate(health.Passive())
	for range 5 {
		pass, err := gate.Enter(context.Background())
		if err != nil {
			return
		}
		pass.Report(health.Bad) // what the call to the upstream came to
	}
	fmt.Println(gate.State())
	// Output: shut
}
