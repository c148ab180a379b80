// Package head reads, in one pass, what the header of a call tells the Claude plane.
// Only that may import it.
package head

import (
	"net/http"
	"strings"

	"mainstay.dev/mainstay/identity"
)

// The headers that are between the caller and the plane, and go no further.
const (
	Deadline  = "Mainstay-Deadline"  // by when the answer must begin: "30s", "1m30s", or a number of seconds
	Recovery  = "Mainstay-Recovery"  // off: the stream passes as it comes
	Priority  = "Mainstay-Priority"  // low or normal lowers the call's priority in the line for the rate limits
	Aggregate = "Mainstay-Aggregate" // off: the answer is not gathered from a stream
)

// A Head is what a header says. Of those that may come once only, it is the first.
type Head struct {
	Key, Authorization, Version, Beta, Type []string // what shapes an answer, and in whose name
	ID, Traceparent, Tracestate             string
	Identity                                string // sealed
	Deadline, Recovery, Priority, Aggregate string
	Timeout, RetryCount                     string // of an SDK

	Size    int  // of names and values together, in bytes
	Own     bool // it has headers that go no further
	Hops    bool // it has such as are between two neighbours
	Expects bool // the client waits to be told to send its body
	Named   bool // the client says what it is
	Coded   bool // it says what encodings it takes
}

// Read reads h, and changes nothing.
func Read(h http.Header) Head {
	var d Head
	for name, values := range h {
		first := first(values)
		for _, v := range values {
			d.Size += len(name) + len(v)
		}
		switch name {
		case "X-Api-Key":
			d.Key = values
		case "Authorization":
			d.Authorization = values
		case "Anthropic-Version":
			d.Version = values
		case "Anthropic-Beta":
			d.Beta = values
		case "Content-Type":
			d.Type = values
		case "X-Request-Id":
			d.ID = first
		case "Traceparent":
			d.Traceparent = first
		case "Tracestate":
			d.Tracestate = first
		case "X-Stainless-Timeout":
			d.Timeout = first
		case "X-Stainless-Retry-Count":
			d.RetryCount = first
		case identity.Header:
			d.Identity, d.Own = first, true
		case Deadline:
			d.Deadline, d.Own = first, true
		case Recovery:
			d.Recovery, d.Own = first, true
		case Priority:
			d.Priority, d.Own = first, true
		case Aggregate:
			d.Aggregate, d.Own = first, true
		case "Expect":
			d.Expects = true
		case "User-Agent":
			d.Named = true
		case "Accept-Encoding":
			d.Coded = true
		case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
			"Transfer-Encoding", "Upgrade":
			d.Hops = true
		}
	}
	return d
}

// Secret is the key by which is called; empty: there is none.
func (d *Head) Secret() string {
	if key := first(d.Key); key != "" {
		return key
	}
	whole := first(d.Authorization)
	scheme, token, _ := strings.Cut(whole, " ")
	if strings.EqualFold(scheme, "bearer") {
		return token
	}
	return whole
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// Strip takes off h what goes no further. d must have been read of it.
func (d *Head) Strip(h http.Header) {
	if d.Own {
		delete(h, Deadline)
		delete(h, Recovery)
		delete(h, Priority)
		delete(h, Aggregate)
	}
}
