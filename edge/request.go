package edge

import (
	"net/netip"

	"mainstay.dev/mainstay/telemetry"
)

// A Request is all that the steps know of a request. They read it and nothing
// else, so that the same steps serve every lane: net/http's today, one of our own
// for HTTP/1.1 later. Only serve.go's adapter and forward.go know the lane.
//
// Its strings are valid until the request is recorded.
type Request struct {
	Method string
	Host   string
	Path   string
	Proto  string
	Secure bool  // it came over TLS
	Length int64 // of the body; -1: not told, 0: none

	Peer    netip.Addr // the other end of the connection
	Trusted bool       // Peer is a trusted proxy
	Client  netip.Addr // who is asking
	ID      string

	// Header returns a field's values joined by commas, or "".
	Header func(name string) string
	// HeaderSize is the size of the request line and all fields.
	HeaderSize int

	x *telemetry.Exchange
}
