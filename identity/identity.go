package identity

import (
	"context"
	"crypto/x509"
	"net/netip"
)

// A Request is what may tell who sent it. It is read during Resolve only.
type Request struct {
	Peer netip.Addr // the other end of the connection
	// Header returns a field's values joined by commas, or "".
	Header func(name string) string
	// Certificate is the client's, which the listener has verified; nil: none.
	Certificate *x509.Certificate
}

// Who is whoever sent a request, as far as somebody vouches for it: a field that
// only the sender itself claims is empty.
type Who struct {
	Address netip.Addr // the client's, behind the proxies that are trusted
	Trusted bool       // the peer is one of them
	// Rewrites tells that the peer itself writes the headers that change the host
	// or the path of a request.
	Rewrites bool

	User      string
	Workspace string
	Tier      string
	Key       string // the name of the API key that was shown; never the key

	By      Source // what vouches for the user
	Refused Reason // why a credential that was shown is not believed; empty: none was, or it is
	// Unfit tells that the request is to be refused for it, by identity.on_refusal.
	Unfit bool
	// Vouched are the headers in which only a trusted proxy may tell who asks: the app
	// must not be told them by anybody else.
	Vouched []string
	// Shown are the user and the workspace as they may stand in a record.
	Shown Names
}

// Names are a user and a workspace.
type Names struct{ User, Workspace string }

// A Source is what vouches for a caller.
type Source string

// The sources. ByAddress: nothing but the connection does.
const (
	ByAddress     Source = "address"
	ByToken       Source = "token"
	ByKey         Source = "key"
	ByHeader      Source = "header" // of a trusted proxy
	ByCookie      Source = "cookie" // that the app has signed
	ByCertificate Source = "certificate"
	BySeal        Source = "seal" // of the edge, through the app
)

// A Reason says why a credential is not believed. The set is closed; Reasons lists
// it.
type Reason string

// A Resolver says who sent a request. It never fails: a caller for whom nothing
// vouches is an address. It may wait for keys, but not beyond ctx and a limit of
// its own. It is safe for concurrent use.
type Resolver interface {
	Resolve(ctx context.Context, r *Request) Who
	// Seal returns the value of [Header] that tells the app of w, or "" if there is
	// nothing to tell. step is the rung of the ladder of degradation on which the
	// caller stands, if any.
	Seal(w *Who, step string) string
}

// An Opener reads what a [Resolver] has sealed and the app has forwarded. It is
// safe for concurrent use.
type Opener interface {
	// Open returns whom text names, and the step. Text that is not believed names
	// nobody.
	Open(text string) (w Who, step string)
}

var (
	_ Resolver = (*Desk)(nil)
	_ Opener   = (*Desk)(nil)
	_ Resolver = (*Proxies)(nil)
)

// Resolve knows the address only, for a program that asks for no more.
func (p *Proxies) Resolve(_ context.Context, r *Request) Who {
	return Who{Address: p.Client(r.Peer, r.Header), Trusted: p.Trusted(r.Peer), Rewrites: p.Rewrites(r.Peer), By: ByAddress}
}

// Seal tells nothing.
func (p *Proxies) Seal(*Who, string) string { return "" }
