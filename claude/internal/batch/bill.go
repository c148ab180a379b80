package batch

import (
	"mainstay.dev/mainstay/claude/internal/observe"
	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/telemetry"
)

// Used tells what the message of a result has used. False: it was not answered, and costs
// nothing.
func Used(res Result) (u price.Usage, ok bool) {
	if peek.Text(res.Kind) != "succeeded" {
		return u, false
	}
	var told telemetry.GenAI
	var o observe.Observer
	o.Tell(res.Usage, &told)
	return price.Usage{
		Model: peek.Text(res.Model), Input: told.InputTokens, CacheRead: told.CacheReadTokens, CacheWrite: told.CacheWriteTokens, CacheHour: o.Hour,
		Output: told.OutputTokens, Batch: true, Fast: o.Fast, Searches: o.Searches,
	}, true
}

// several is the model of an exchange that pays for several.
const several = "several"

// Count adds what a result has used and cost to the exchange by which it was fetched.
func Count(g *telemetry.GenAI, u price.Usage, nano int64, known bool) {
	s := share(g, u.Model)
	s.InputTokens += u.Input
	s.CacheReadTokens += u.CacheRead
	s.CacheWriteTokens += u.CacheWrite
	s.OutputTokens += u.Output
	s.CostNanoUSD += nano
	if !known {
		s.Unpriced++
	}
	g.InputTokens += u.Input
	g.CacheReadTokens += u.CacheRead
	g.CacheWriteTokens += u.CacheWrite
	g.OutputTokens += u.Output
	g.CostNanoUSD += nano
	g.Unpriced = g.Unpriced || !known
	if g.Model = g.Shares[0].Model; len(g.Shares) > 1 {
		g.Model = several
	}
}

func share(g *telemetry.GenAI, model string) *telemetry.Share {
	for i := range g.Shares {
		if g.Shares[i].Model == model || i == telemetry.MaxShares-1 {
			return &g.Shares[i]
		}
	}
	if len(g.Shares) == telemetry.MaxShares-1 {
		model = several // and all further ones with it
	}
	g.Shares = append(g.Shares, telemetry.Share{Model: model})
	return &g.Shares[len(g.Shares)-1]
}
