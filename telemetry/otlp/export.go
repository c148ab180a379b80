package otlp

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	patience     = 30 * time.Second       // how long one batch is tried again
	maxReply     = 64 << 10               // bytes of a collector's reply that are read
	firstBackoff = 500 * time.Millisecond // before a second try; half as much again before each further one
	maxBackoff   = 10 * time.Second
)

// An exporter posts batches to a collector (https://opentelemetry.io/docs/specs/otlp/#otlphttp).
// It is for one goroutine.
type exporter struct {
	to      string // URL
	headers http.Header
	timeout time.Duration // of one try
	client  http.Client
	frame   frame
	zip     *gzip.Writer // nil: bodies are sent as they are
	payload *payload
	edge    []byte // what stands before or behind the spans, while it is written
}

func newExporter(cfg Config, env environment, res Resource, network http.RoundTripper) exporter {
	to, _, _ := tracesURL(cfg.Endpoint) // which has been validated
	e := exporter{
		to: to, headers: http.Header{}, timeout: cfg.Timeout, client: http.Client{Transport: network},
		frame: res.frame(), payload: &payload{},
	}
	e.headers.Set("User-Agent", "mainstay/"+cmp.Or(res.Version, "unknown"))
	if len(cfg.Headers) == 0 {
		for name, value := range env.headers {
			e.headers.Set(name, value)
		}
	}
	for name, value := range cfg.Headers {
		e.headers.Set(name, value.Reveal())
	}
	e.headers.Set("Content-Type", typeProtobuf)
	if cmp.Or(cfg.Compression, env.compression, fitting(to)) == gzipped {
		e.headers.Set("Content-Encoding", "gzip")
		e.zip, _ = gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // a level that there is
	}
	return e
}

// fitting is the compression for a collector there: it takes more time than the span
// itself, and saves nothing on the way to this machine.
func fitting(to string) string {
	u, err := url.Parse(to)
	if err != nil {
		return gzipped
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Hostname() == "localhost" || err == nil && ip.IsLoopback() {
		return plain
	}
	return gzipped
}

// export sends b, and again while the collector says that it could take it later or does
// not answer, for as long as patience lasts. rejected is how many of its spans the
// collector, which has taken the rest, did not; err is then nil, and why says what it said.
func (e *exporter) export(ctx context.Context, b batch) (rejected int64, why string, err error) {
	if err := e.fill(b); err != nil {
		return 0, "", err
	}
	begin, backoff := time.Now(), firstBackoff
	for {
		var failure *refusal
		rejected, why, err = e.try(ctx)
		if err == nil || ctx.Err() != nil || !errors.As(err, &failure) || !failure.passing {
			return rejected, why, err
		}
		wait := max(failure.after, jitter(backoff))
		if spent := time.Since(begin); spent > patience || spent+failure.after > patience {
			return 0, "", fmt.Errorf("given up after %s: %w", spent.Round(time.Second), err)
		}
		if !sleep(ctx, wait) {
			return 0, "", err
		}
		backoff = min(backoff*3/2, maxBackoff)
	}
}

// jitter is d, half as much or half as much again, or what is between.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// fill makes the payload of b.
func (e *exporter) fill(b batch) error {
	if !e.payload.free() {
		e.payload = &payload{}
	}
	body := &e.payload.text
	body.Reset()
	var to io.Writer = body
	if e.zip != nil {
		e.zip.Reset(body)
		to = e.zip
	}
	e.edge = e.frame.open(e.edge[:0], len(b.spans))
	_, err1 := to.Write(e.edge)
	_, err2 := to.Write(b.spans)
	e.edge = e.frame.close(e.edge[:0])
	_, err3 := to.Write(e.edge)
	if e.zip != nil {
		err3 = errors.Join(err3, e.zip.Close())
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("encode a batch: %w", err)
	}
	return nil
}

// try sends the payload once.
func (e *exporter) try(ctx context.Context) (rejected int64, why string, err error) {
	within, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(within, http.MethodPost, e.to, e.payload.reader())
	if err != nil {
		return 0, "", err
	}
	request.ContentLength = int64(e.payload.text.Len())
	request.GetBody = func() (io.ReadCloser, error) { return e.payload.reader(), nil }
	request.Header = e.headers
	answer, err := e.client.Do(request)
	if err != nil { // a collector that restarts refuses for a moment
		return 0, "", &refusal{err: err, passing: ctx.Err() == nil}
	}
	defer func() { _ = answer.Body.Close() }() // all that matters has been read
	said, err := io.ReadAll(io.LimitReader(answer.Body, maxReply))
	if err != nil {
		return 0, "", &refusal{err: fmt.Errorf("read the reply of %s: %w", e.to, err), passing: ctx.Err() == nil}
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return 0, "", refused(e.to, answer, said)
	}
	rejected, why = partial(answer.Header.Get("Content-Type"), said)
	return rejected, why, nil
}

// A refusal is why a try came to nothing.
type refusal struct {
	err     error
	passing bool          // another try may do better
	after   time.Duration // for which the collector asks to wait
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// refused is what an answer other than 2xx means, by the specification's list of codes.
func refused(to string, answer *http.Response, said []byte) *refusal {
	r := &refusal{err: fmt.Errorf("%s answered %s%s", to, answer.Status, reason(answer.Header.Get("Content-Type"), said))}
	switch answer.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		r.passing, r.after = true, retryAfter(answer.Header.Get("Retry-After"))
	}
	return r
}

// retryAfter reads the header's two forms; 0 if it is neither.
func retryAfter(v string) time.Duration {
	if seconds, err := strconv.ParseInt(v, 10, 64); err == nil {
		const most = int64(24 * time.Hour / time.Second) // far beyond patience
		return time.Duration(min(max(0, seconds), most)) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// A payload is the body of a request. The transport may go on reading after it has
// answered, so the buffer is used again only if every reader has come to its end.
type payload struct {
	text         bytes.Buffer
	begun, ended atomic.Int64
}

func (p *payload) free() bool { return p.begun.Load() == p.ended.Load() }

func (p *payload) reader() io.ReadCloser {
	if p.text.Len() == 0 {
		return http.NoBody
	}
	p.begun.Add(1)
	return &reader{of: p, rest: p.text.Bytes()}
}

type reader struct {
	of   *payload
	rest []byte
}

func (r *reader) Read(to []byte) (n int, err error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n = copy(to, r.rest)
	if r.rest = r.rest[n:]; len(r.rest) == 0 {
		r.of.ended.Add(1)
	}
	return n, nil
}

func (r *reader) Close() error { return nil }
