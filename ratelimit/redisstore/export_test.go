package redisstore

import (
	"context"

	"mainstay.dev/mainstay/ratelimit"
)

// Virtual turns the clock of a Store by hand. It belongs to one goroutine.
type Virtual struct{ *Store }

func (v Virtual) at(now int64) *Store {
	s := *v.Store
	s.now = func() int64 { return now }
	return &s
}

func (v Virtual) TakeAt(now int64, checks []ratelimit.Check, results []ratelimit.Result) (ratelimit.Decision, error) {
	return v.at(now).Take(context.Background(), checks, results)
}

func (v Virtual) RefundAt(now int64, d ratelimit.Decision, checks []ratelimit.Check) error {
	return v.at(now).Refund(context.Background(), d, checks)
}

func (v Virtual) ChargeAt(now int64, checks []ratelimit.Check) error {
	return v.at(now).Charge(context.Background(), checks)
}

func (v Virtual) ResetAt(now int64, checks []ratelimit.Check) error {
	return v.at(now).Reset(context.Background(), checks)
}

func (v Virtual) RestoreAt(now int64, checks []ratelimit.Check, debts []ratelimit.Debt) error {
	return v.at(now).Restore(context.Background(), checks, debts)
}
