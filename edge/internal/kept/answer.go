package kept

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/cache"
	"mainstay.dev/mainstay/edge/internal/rfc9111"
)

// An Answer is one that the app gave, as it may be given again. It is immutable once it
// is kept.
type Answer struct {
	Term   rfc9111.Term
	Color  string
	Origin uint64    // of what gave it; a store's Request says which count
	Asked  time.Time // when its request left

	status int
	header http.Header // without what is of one caller or one moment
	body   []byte
	names  []string // the request headers on which it depends,
	values []string // and what they were
	weight int64
}

func (a *Answer) matches(header func(string) string) bool {
	for i, name := range a.names {
		if header(name) != a.values[i] {
			return false
		}
	}
	return true
}

// keyed are headers on which answers of widespread frameworks depend, some of which have
// forgotten to say so: those of Next.js.
var keyed = [...]string{"Rsc", "Next-Router-State-Tree", "Next-Router-Prefetch", "Next-Router-Segment-Prefetch", "Next-Url", "X-Nextjs-Data", "X-Middleware-Prefetch"}

// Copy prepares to keep resp as the answer of r, which depends on the request headers
// vary. It does so by the header as it is now; nil: the answer is too large.
func (s *Store) Copy(resp *http.Response, r *Request, a *Answer, vary []string, t cache.Ticket) *Copy {
	if resp.ContentLength > s.largest || len(resp.Trailer) > 0 {
		return nil
	}
	a.status = resp.StatusCode
	a.header = lasting(resp.Header)
	a.weight = costs + weigh(a.header)
	for _, name := range slices.Concat(vary, keyed[:]) {
		value := strings.Clone(r.Header(name))
		a.names, a.values = append(a.names, name), append(a.values, value)
		a.weight += int64(len(value))
	}
	if a.weight > maxHeader {
		return nil
	}
	return &Copy{s: s, r: r, answer: a, ticket: t, told: resp.ContentLength}
}

// Renew keeps the answer that r would be given anew, if it is what the app has confirmed
// by a 304 with the header h: the same ETag, of the same origin (RFC 9111, 4.3.4). a
// tells the new term.
func (s *Store) Renew(r *Request, h http.Header, a *Answer, t cache.Ticket) {
	tag := h.Get("Etag")
	old := s.Find(r, time.Now(), func(o *Answer) bool {
		return tag != "" && o.header.Get("Etag") == tag && o.Origin == a.Origin && (len(h["Vary"]) == 0 || slices.Equal(h["Vary"], o.header["Vary"]))
	})
	if old == nil {
		return
	}
	a.status, a.body, a.names, a.values = old.status, old.body, old.names, old.values
	a.header = maps.Clone(old.header)
	for name, values := range lasting(h) {
		if !strings.HasPrefix(name, "Content-") {
			a.header[name] = values
		}
	}
	if a.weight = old.weight - weigh(old.header) + weigh(a.header); weigh(a.header) <= maxHeader {
		s.put(r, a, t)
	}
}

// lasting is what of a header may be given to others later.
func lasting(h http.Header) http.Header {
	out := make(http.Header, len(h))
	for name, values := range h {
		switch {
		case name == "Cache-Control", name == "Expires", name == "Pragma", name == "Age", name == "Surrogate-Control", strings.HasSuffix(name, "Cdn-Cache-Control"), // it gets its own
			name == "X-Request-Id", name == "Retry-After", name == "Content-Length", strings.HasPrefix(name, "Ratelimit"), strings.HasPrefix(name, "X-Ratelimit"), strings.HasPrefix(name, "Mainstay-"):
			continue
		}
		out[name] = slices.Clone(values)
	}
	if len(out["Date"]) == 0 { // RFC 9110, 6.6.1
		out["Date"] = []string{time.Now().UTC().Format(http.TimeFormat)}
	}
	return out
}

func weigh(h http.Header) (n int64) {
	for name, values := range h {
		for _, v := range values {
			n += int64(len(name) + len(v))
		}
	}
	return n
}

// Give is the answer as it is given at a moment: whole, or 304 to a client that has it.
// detail says why in Cache-Status (RFC 9211); stale- is put before it if it is. Nobody
// further on is to keep it. The header is the caller's.
func (a *Answer) Give(header func(string) string, detail string, now time.Time) (status int, h http.Header, body []byte) {
	status, h, body = a.status, maps.Clone(a.header), a.body
	if status == http.StatusOK && rfc9111.NotModified(header, h) {
		status, body = http.StatusNotModified, nil
		for _, name := range []string{"Content-Type", "Content-Encoding", "Content-Language"} {
			delete(h, name)
		}
	} else if status != http.StatusNoContent {
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	left := a.Term.Left(now)
	if left <= 0 {
		detail = "stale-" + detail
	}
	h["Cache-Status"] = append(slices.Clip(h["Cache-Status"]), "Mainstay; hit; ttl="+strconv.FormatInt(int64(left/time.Second), 10)+"; detail="+detail)
	h["Age"] = []string{strconv.FormatInt(int64(a.Term.Age(now)/time.Second), 10)}
	h["Cache-Control"] = []string{"no-store"}
	return status, h, body
}

// Copy is an answer's body that is copied while it is read. It belongs to one goroutine.
type Copy struct {
	io.ReadCloser
	s      *Store
	r      *Request
	answer *Answer // nil: it is kept, or given up
	ticket cache.Ticket
	told   int64 // the length; -1: not told
	taken  int64 // of what may be copied at once
}

// Of has body copied, and the answer kept when its end has come. The request that it is
// kept for is used until the body is closed.
func (c *Copy) Of(body io.ReadCloser) io.ReadCloser {
	c.ReadCloser = body
	return c
}

// Read reads the body itself.
func (c *Copy) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	a := c.answer
	switch {
	case a == nil:
	case err != nil && err != io.EOF || !c.take(n):
		c.giveUp()
	default:
		a.body = append(a.body, p[:n]...)
		if err != io.EOF {
			break
		}
		if c.told < 0 || c.told == int64(len(a.body)) {
			if cap(a.body) > len(a.body)+len(a.body)/4 {
				a.body = slices.Clone(a.body)
			}
			a.weight += int64(cap(a.body))
			c.s.put(c.r, a, c.ticket)
		}
		c.giveUp()
	}
	return n, err
}

// take makes room for n more bytes; false: there is none.
func (c *Copy) take(n int) bool {
	body := c.answer.body
	need := int64(len(body) + n)
	switch {
	case need > c.s.largest:
		return false
	case need <= int64(cap(body)):
		return true
	}
	room := max(need, c.told)
	if c.told < 0 {
		room = max(need, min(max(2*int64(cap(body)), 4096), c.s.largest))
	}
	if c.s.copying.Add(room-c.taken) > c.s.most {
		c.s.copying.Add(c.taken - room)
		return false
	}
	c.taken = room
	c.answer.body = append(make([]byte, 0, room), body...)
	return true
}

func (c *Copy) giveUp() {
	c.answer = nil
	c.s.copying.Add(-c.taken)
	c.taken = 0
}

// Close gives up what has not come to its end.
func (c *Copy) Close() error {
	if c.answer != nil {
		c.giveUp()
	}
	return c.ReadCloser.Close()
}
