package claudetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// A batch has ended as soon as it was made: its calls are answered at once.
type batch struct {
	id      string
	created time.Time
	results []byte // JSON lines
	counts  map[string]int
}

// mostBatches is how many batches are remembered; then all are forgotten.
const mostBatches = 1000

// batches answers /v1/messages/batches and what is below it.
func (c *call) batches(f Fault) {
	switch {
	case c.is("POST", "messages", "batches"):
		c.newBatch(f)
	case c.is("GET", "messages", "batches"):
		c.listBatches(f)
	case len(c.path) < 4:
		c.wrong(405, "invalid_request_error", "Method Not Allowed")
	default:
		c.oneBatch(f)
	}
}

func (c *call) oneBatch(f Fault) {
	c.s.mu.Lock()
	b := c.s.batches[c.path[3]]
	c.s.mu.Unlock()
	switch {
	case b == nil:
		c.wrong(404, "not_found_error", "Batch not found")
	case c.is("GET", "messages", "batches", "*"):
		c.json(200, b.json(c.r.Host), f)
	case c.is("GET", "messages", "batches", "*", "results"):
		c.lines(b.results, f)
	case c.is("POST", "messages", "batches", "*", "cancel"):
		c.wrong(400, "invalid_request_error", "Batch "+b.id+" has already ended and cannot be canceled")
	case c.is("DELETE", "messages", "batches", "*"):
		c.s.mu.Lock()
		delete(c.s.batches, b.id)
		c.s.mu.Unlock()
		c.json(200, map[string]string{"id": b.id, "type": "message_batch_deleted"}, f)
	default:
		c.wrong(404, "not_found_error", "Not found")
	}
}

func (c *call) listBatches(f Fault) {
	c.s.mu.Lock()
	all := slices.Collect(maps.Values(c.s.batches))
	c.s.mu.Unlock()
	slices.SortFunc(all, func(a, b *batch) int {
		if d := b.created.Compare(a.created); d != 0 {
			return d
		}
		return strings.Compare(a.id, b.id)
	})
	list := []any{}
	for _, b := range all {
		list = append(list, b.json(c.r.Host))
	}
	page := map[string]any{"data": list, "has_more": false, "first_id": nil, "last_id": nil}
	if len(all) > 0 {
		page["first_id"], page["last_id"] = all[0].id, all[len(all)-1].id
	}
	c.json(200, page, f)
}

func (c *call) newBatch(f Fault) {
	var ask struct {
		Requests []struct {
			CustomID string          `json:"custom_id"`
			Params   json.RawMessage `json:"params"`
		} `json:"requests"`
	}
	if err := json.Unmarshal(c.body, &ask); err != nil {
		c.wrong(400, "invalid_request_error", fmt.Sprintf("The request body is not valid JSON: %v", err))
		return
	}
	if len(ask.Requests) == 0 {
		c.wrong(400, "invalid_request_error", "requests: at least one request is required")
		return
	}
	b := &batch{
		id: "msgbatch_" + token(rand.New(rand.NewPCG(c.s.opt.Seed, c.n)), 24), created: time.Now(),
		counts: map[string]int{"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
	}
	seen := map[string]bool{}
	for i, r := range ask.Requests {
		if r.CustomID == "" || seen[r.CustomID] {
			c.wrong(400, "invalid_request_error", fmt.Sprintf("requests.%d.custom_id: must be present and unique", i))
			return
		}
		seen[r.CustomID] = true
		b.add(r.CustomID, c.within(r.Params))
	}
	c.s.mu.Lock()
	if len(c.s.batches) >= mostBatches {
		clear(c.s.batches)
	}
	c.s.batches[b.id] = b
	c.s.mu.Unlock()
	c.json(200, b.json(c.r.Host), f)
}

// within answers one call of a batch and returns its result.
func (c *call) within(raw json.RawMessage) map[string]any {
	inner := *c
	inner.body = raw
	p, r := inner.message(false)
	if r != nil {
		return map[string]any{"type": "errored", "error": map[string]any{
			"type": "error", "error": map[string]string{"type": r.kind, "message": r.message},
		}}
	}
	m := inner.compose(p)
	m.usage.Tier = "batch"
	return map[string]any{"type": "succeeded", "message": m.json()}
}

// lines sends results, or the first half of them if f is Truncated.
func (c *call) lines(results []byte, f Fault) {
	h := c.w.Header()
	h.Set("Content-Type", "application/x-jsonl")
	if c.zips() {
		h.Set("Content-Encoding", "gzip")
		results = zipped(results)
	}
	if f == Truncated {
		c.truncate(200, results)
		return
	}
	_, _ = c.w.Write(results) // a client that has left has nobody to tell
}

func (b *batch) add(customID string, result map[string]any) {
	b.counts[result["type"].(string)]++
	line, err := json.Marshal(map[string]any{"custom_id": customID, "result": result})
	if err != nil {
		panic("claudetest: a result of ours is no JSON: " + err.Error())
	}
	b.results = append(append(b.results, line...), '\n')
}

func (b *batch) json(host string) map[string]any {
	at := b.created.UTC().Format(time.RFC3339Nano)
	return map[string]any{
		"id": b.id, "type": "message_batch", "processing_status": "ended", "request_counts": b.counts,
		"created_at": at, "ended_at": at, "expires_at": b.created.Add(24 * time.Hour).UTC().Format(time.RFC3339Nano),
		"archived_at": nil, "cancel_initiated_at": nil,
		"results_url": "http://" + host + "/v1/messages/batches/" + b.id + "/results",
	}
}
