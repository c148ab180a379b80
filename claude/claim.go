package claude

import (
	"log/slog"
	"time"

	"mainstay.dev/mainstay/retry"
	"mainstay.dev/mainstay/telemetry"
)

// claim takes the upstream for one more attempt, after the wait that its backoff
// asks for. False means that the call ended during the wait.
func (c *call) claim(wait time.Duration) bool {
	if wait > 0 {
		c.engine.counts.waiting.Add(1)
		before := time.Now()
		_ = retry.Sleep(c.ctx, wait) // ended tells what ended it
		wait = time.Since(before)
		c.x.Waited += wait
		c.engine.counts.waiting.Add(-1)
	}
	if _, ended := c.ended(); ended {
		return false
	}
	c.try, c.trying = telemetry.Attempt{Start: time.Now(), Waited: wait, Target: c.out.URL.Host}, true
	c.engine.counts.attempts.Add(1)
	return true
}

// tried notes the end of the attempt under way.
func (c *call) tried(cause Cause) {
	if !c.trying {
		return
	}
	c.trying = false
	c.try.Took, c.try.Cause = time.Since(c.try.Start), string(cause)
	c.x.Try(c.try)
}

// retrying tells of an attempt that failed and will be followed by another.
func (c *call) retrying(v verdict, wait time.Duration) {
	c.engine.counts.retries.Add(1)
	attrs := append(make([]slog.Attr, 0, 10),
		slog.String("id", c.x.ID), slog.String("route", c.x.Route), slog.String("color", c.x.Color),
		slog.Int("attempt", c.x.Tries), slog.String("cause", string(v.cause)), slog.Int("status", c.try.Status),
		slog.Int64("wait_ms", wait.Milliseconds()), slog.String("target", c.try.Target))
	if c.x.GenAI.UpstreamID != "" {
		attrs = append(attrs, slog.String("upstream_id", c.x.GenAI.UpstreamID))
	}
	if v.err != nil {
		attrs = append(attrs, slog.Any("err", v.err))
	}
	c.engine.log.LogAttrs(c.ctx, slog.LevelWarn, "claude call failed, trying again", attrs...)
}
