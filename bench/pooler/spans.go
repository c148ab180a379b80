package main

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// late is how long the exporter may take over what a slice gave it, which counts too: it
// waits for a second until a batch is full.
const late = 2 * time.Second

// spans measures what it costs that every tenth query, or each, belongs to a sampled
// trace and becomes a span at a collector, which is this process and is not counted. All
// subjects carry the same queries; one Mainstay exports nothing.
func (b *bench) spans(ctx context.Context) error {
	var c collectorOfSpans
	server := httptest.NewServer(&c)
	defer server.Close()
	silent, err := b.mainstay(service{auth: "trust"})
	if err != nil {
		return err
	}
	silent.name = "Mainstay, no spans"
	all, end, err := b.start(service{auth: "trust", export: server.URL}, silent)
	if err != nil {
		return err
	}
	var cells []pairedCell
	for _, some := range []struct {
		what string
		part float64
	}{{"one in ten sampled", .1}, {"all sampled", 1}} {
		c := plain("simple", 50)
		c.name += ", " + some.what
		c.plan.Traced, c.plan.Sampled, c.plan.Rest = true, some.part, late
		cells = append(cells, c)
	}
	err = b.paired(ctx, all, cells, costs)
	end() // all that is left is exported
	if err != nil {
		return err
	}
	fmt.Printf("%d spans came to the collector.\n\n", c.spans.Load())
	return nil
}

// A collectorOfSpans counts what is exported to it.
type collectorOfSpans struct{ spans atomic.Int64 }

func (c *collectorOfSpans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, err := count(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.spans.Add(n)
}

func count(r *http.Request) (n int64, err error) {
	text := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		if text, err = gzip.NewReader(r.Body); err != nil {
			return 0, err
		}
	}
	body, err := io.ReadAll(text)
	if err != nil {
		return 0, err
	}
	return countSpans(body, 1, 2, 2)
}

// countSpans counts what lies at the end of a path of fields: resource_spans,
// scope_spans, spans. It reads nothing of a span, lest the collector take the time of
// what is measured.
func countSpans(message []byte, path ...protowire.Number) (n int64, err error) {
	for len(message) > 0 {
		field, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return n, protowire.ParseError(size)
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(field, kind, message); size < 0 {
			return n, protowire.ParseError(size)
		}
		if field == path[0] && kind == protowire.BytesType {
			more := int64(1)
			if len(path) > 1 {
				inner, _ := protowire.ConsumeBytes(message)
				if more, err = countSpans(inner, path[1:]...); err != nil {
					return n, err
				}
			}
			n += more
		}
		message = message[size:]
	}
	return n, nil
}
