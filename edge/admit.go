package edge

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"strings"

	"mainstay.dev/mainstay/identity"
)

// maxID bounds a request id that comes with a request.
const maxID = 128

// identify says who is asking.
func (s *Server) identify(ctx context.Context, r *Request) {
	r.Who = s.deps.Identity.Resolve(ctx, &identity.Request{Peer: r.Peer, Header: r.Header, Certificate: r.cert})
	r.Trusted, r.Client = r.Who.Trusted, r.Who.Address
	r.x.User, r.x.Workspace, r.x.Tier = r.Who.User, r.Who.Workspace, r.Who.Tier
}

// admit says whether the request may enter; a code other than OK is the reason
// why not.
func (p *policy) admit(r *Request) Code {
	r.ID = r.Header("X-Request-Id")
	if !validID(r.ID) {
		r.ID = newID()
	}
	x := r.x
	x.ID = r.ID
	x.Caller = r.Client.String()
	x.Trace.Continue(r.Header("Traceparent"), r.Header("Tracestate"))
	switch {
	case r.HeaderSize > int(p.cfg.Header):
		return HeaderTooBig
	case r.Host == "" || r.Method == "CONNECT" || !validPath(r.Path) || !printable(r.Header("Upgrade")):
		return BadRequest
	case p.cfg.Body > 0 && r.Length > int64(p.cfg.Body):
		return TooLarge
	}
	return OK
}

// validPath reports whether path is one (empty: the root of an absolute URL) or
// the * of OPTIONS.
func validPath(path string) bool { return path == "" || path[0] == '/' || path == "*" }

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}

// validID keeps ids that are safe in a header, a log line and a URL.
func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if c != '-' && c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

func newID() string {
	var b [32]byte
	var raw [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		raw[i], raw[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	hex.Encode(b[:], raw[:])
	return string(b[:])
}
