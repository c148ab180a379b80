package ratelimit

import "context"

// Virtual turns the clock of a Memory by hand.
type Virtual struct{ *Memory }

func (v Virtual) TakeAt(now int64, checks []Check, results []Result) (Decision, error) {
	return v.take(now, checks, results)
}

func (v Virtual) RefundAt(now int64, d Decision, checks []Check) error {
	return v.refund(now, d, checks)
}

func (v Virtual) ChargeAt(now int64, checks []Check) error { return v.overcharge(now, checks) }

func (v Virtual) ResetAt(_ int64, checks []Check) error { return v.Reset(context.Background(), checks) }

func (v Virtual) RestoreAt(now int64, checks []Check, debts []Debt) error {
	return v.restore(now, checks, debts)
}
