package edge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"time"

	"mainstay.dev/mainstay/edge/internal/overload"
	"mainstay.dev/mainstay/internal/setting"
)

// Config is the edge section.
type Config struct {
	Listen   string          `yaml:"listen" doc:"Address for plain HTTP/1.1 and HTTP/2 without TLS (h2c)."`
	TLS      TLS             `yaml:"tls" doc:"A second address, with TLS."`
	Drain    time.Duration   `yaml:"drain" doc:"How long requests in flight may take to finish when Mainstay stops."`
	Body     setting.Bytes   `yaml:"max_body" doc:"Largest request body; a larger one is answered 413. 0: no limit."`
	Header   setting.Bytes   `yaml:"max_header" doc:"Largest request line and header together; a larger one is answered 431."`
	Timeouts Timeouts        `yaml:"timeouts" doc:"Deadlines. None of them ends a stream that is alive."`
	Streams  Streams         `yaml:"streams" doc:"WebSockets and event streams. None is cut at a switch: they go on while the color stands by."`
	Slow     time.Duration   `yaml:"slow_start" doc:"How long a copy of the app that joins others of its color, or comes back after it was ejected, gets less than its share: from a tenth of it, growing evenly. 0s: all at once."`
	Hold     Hold            `yaml:"hold" doc:"Bounds for requests that wait while a deploy holds the traffic."`
	Overload overload.Config `yaml:"overload" doc:"When more requests come than the app can take: who goes first, who waits, who is shed."`
	Cache    Cache           `yaml:"cache" planned:"the HTTP cache" doc:"The HTTP cache."`
	CDN      CDN             `yaml:"cdn" planned:"the CDN link" doc:"The CDN in front."`
}

// TLS is the edge's address with TLS.
type TLS struct {
	Listen string `yaml:"listen" doc:"Address for HTTP/1.1 and HTTP/2 with TLS; none if empty."`
	Cert   string `yaml:"cert" doc:"PEM file with the certificate and its chain; read again on reload."`
	Key    string `yaml:"key" doc:"PEM file with the private key; read again on reload."`

	ClientCA string `yaml:"client_ca" doc:"PEM file with the authorities whose client certificates are taken; for certificate: in identity. A client without one is served too; one with another is not. Read again on reload."`

	ACME    string   `yaml:"acme" planned:"certificates from an ACME authority" doc:"Contact address for the authority."`
	Domains []string `yaml:"domains" planned:"certificates from an ACME authority" doc:"Names to get certificates for."`
}

// Timeouts are the edge's deadlines.
type Timeouts struct {
	Header   time.Duration `yaml:"header" doc:"For a client to send a whole request header."`
	Read     time.Duration `yaml:"read" doc:"Longest silence while a client sends a body."`
	Write    time.Duration `yaml:"write" doc:"Longest time a client may take to accept a piece of the answer."`
	Idle     time.Duration `yaml:"idle" doc:"How long an idle client connection is kept."`
	Dial     time.Duration `yaml:"dial" doc:"To connect to the app."`
	Response time.Duration `yaml:"response" doc:"From the whole request sent to the first byte of the app's answer; then 504. Also how long the app may take nothing of a request that is being sent."`
	Attempt  time.Duration `yaml:"attempt" doc:"How long a copy of the app may answer nothing at all, neither this request nor another, before a request that can be repeated is tried on another copy that is ready. Not for event streams and tunnels. 0s: never."`
	Stall    time.Duration `yaml:"stall" doc:"Longest silence of the app in the middle of an answer that is neither an event stream nor a tunnel."`
	Upstream time.Duration `yaml:"upstream_idle" doc:"How long an idle connection to the app is kept. Keep it below the app's own limit (Node closes after 5s), or a request may meet a closing connection."`
}

// Streams says how what has no end of its own is carried and ended.
type Streams struct {
	WebSocket string        `yaml:"websocket" doc:"When the copy of the app that a WebSocket leads to is taken down, or Mainstay stops. close: it gets a close frame with status 1001, upon which clients connect anew. ride: it goes on until it ends, or until app.drain is over (edge.drain when Mainstay stops); then it gets the close frame."`
	SSE       string        `yaml:"sse" doc:"Likewise for event streams, which are ended between two events, never within one. hand_over: a stream whose client can go on where it was, since events have ids, is ended right after its next event, or at a random moment of over if none comes; others go on. close: every stream is ended at a random moment of over. ride: all go on. What goes on is ended when app.drain (edge.drain) is over. A stream that answers another method than GET is always left to end by itself."`
	Over      time.Duration `yaml:"over" doc:"The time over which the ends are spread, so that not all clients come back at once."`
	Heartbeat time.Duration `yaml:"heartbeat" doc:"The silence of an event stream after which its client gets a comment, so that nobody on the way takes it for dead. Only between two events; not in a stream with a Content-Encoding, or with Cache-Control: no-transform. 0s: never."`
}

// The words of Streams.
const (
	streamClose    = "close"
	streamRide     = "ride"
	streamHandOver = "hand_over"
)

// Hold bounds the requests that wait for a target.
type Hold struct {
	For      time.Duration `yaml:"for" doc:"Longest wait; then 503."`
	Requests int           `yaml:"requests" doc:"How many may wait at once; one more is answered 503."`
}

// Cache is the schema of the HTTP cache to come.
type Cache struct {
	Size         setting.Bytes `yaml:"size" doc:"Memory for stored answers."`
	StaleIfError time.Duration `yaml:"stale_if_error" doc:"How long a stored answer may serve when the app fails."`
}

// CDN is the schema of the CDN link to come.
type CDN struct {
	Provider string         `yaml:"provider" doc:"cloudflare."`
	Zone     string         `yaml:"zone" doc:"The zone's id."`
	Token    setting.Secret `yaml:"token" doc:"An API token that may purge."`
}

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() {
	*c = Config{
		Listen: ":8080",
		Drain:  30 * time.Second,
		Body:   100e6,
		Header: 64e3,
		Timeouts: Timeouts{
			Header: 10 * time.Second, Read: 30 * time.Second, Write: 30 * time.Second, Idle: 2 * time.Minute,
			Dial: 5 * time.Second, Response: 2 * time.Minute, Attempt: 10 * time.Second, Stall: 5 * time.Minute, Upstream: 4 * time.Second,
		},
		Streams: Streams{WebSocket: streamClose, SSE: streamHandOver, Over: 20 * time.Second, Heartbeat: 15 * time.Second},
		Slow:    10 * time.Second,
		Hold:    Hold{For: 30 * time.Second, Requests: 1000},
	}
	c.Overload.SetDefaults()
}

// Validate reports every mistake that can be seen without touching anything.
func (c *Config) Validate(ps *setting.Problems) {
	if c.Listen == "" && c.TLS.Listen == "" {
		ps.Add("listen", "must not be empty when tls.listen is too", "try :8080")
	}
	for _, d := range []struct {
		key string
		val time.Duration
		try string
	}{
		{"drain", c.Drain, "30s"}, {"timeouts.header", c.Timeouts.Header, "10s"}, {"timeouts.read", c.Timeouts.Read, "30s"},
		{"timeouts.write", c.Timeouts.Write, "30s"}, {"timeouts.idle", c.Timeouts.Idle, "2m"}, {"timeouts.dial", c.Timeouts.Dial, "5s"},
		{"timeouts.response", c.Timeouts.Response, "2m"}, {"timeouts.stall", c.Timeouts.Stall, "5m"},
		{"timeouts.upstream_idle", c.Timeouts.Upstream, "4s"}, {"hold.for", c.Hold.For, "30s"},
	} {
		if d.val <= 0 {
			ps.Add(d.key, "must be positive", "try "+d.try)
		}
	}
	if c.Timeouts.Attempt < 0 {
		ps.Add("timeouts.attempt", "must not be negative", "try 10s, or 0s for never")
	}
	if w := c.Streams.WebSocket; w != streamClose && w != streamRide {
		ps.Add("streams.websocket", "must be close or ride", "try close")
	}
	if w := c.Streams.SSE; w != streamHandOver && w != streamClose && w != streamRide {
		ps.Add("streams.sse", "must be hand_over, close or ride", "try hand_over")
	}
	if c.Slow < 0 {
		ps.Add("slow_start", "must not be negative", "try 10s, or 0s for none")
	}
	if c.Streams.Over < 0 {
		ps.Add("streams.over", "must not be negative", "try 20s")
	}
	if h := c.Streams.Heartbeat; h < 0 || h > 0 && h < time.Second {
		ps.Add("streams.heartbeat", "must be at least 1s", "try 15s, or 0s for never")
	}
	if c.Body < 0 {
		ps.Add("max_body", "must not be negative", "try 100MB, or 0 for no limit")
	}
	if c.Header < 4e3 || c.Header > 1e6 {
		ps.Add("max_header", "must be between 4KB and 1MB", "try 64KB")
	}
	if c.Hold.Requests < 0 {
		ps.Add("hold.requests", "must not be negative", "try 1000")
	}
	if c.TLS.Listen == "" && (c.TLS.Cert != "" || c.TLS.Key != "") {
		ps.Add("tls.listen", "is missing though a certificate is given", "try :8443")
	}
	if c.TLS.ClientCA != "" && c.TLS.Listen == "" {
		ps.Add("tls.client_ca", "needs tls.listen", "try :8443")
	}
	if c.TLS.Listen != "" && c.TLS.ACME == "" && (c.TLS.Cert == "" || c.TLS.Key == "") {
		ps.Add("tls", "needs cert and key", "give the two PEM files")
	}
}

// policy is a compiled Config. It is immutable; a reload swaps the pointer to it.
type policy struct {
	cfg      Config
	overload *overload.Policy
	cert     *tls.Certificate // nil without TLS
	mutual   *tls.Config      // with client certificates; nil: none are asked for
}

// Compile checks cfg, reads the certificate and returns what the edge obeys. It
// starts nothing; `mainstay check`, New and Prepare all use it.
func Compile(cfg Config) (*policy, error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	p := &policy{cfg: cfg}
	var err error
	p.overload, err = overload.Compile(cfg.Overload)
	ps.Below("overload", setting.Of(err))
	if cfg.TLS.Listen != "" && cfg.TLS.Cert != "" && cfg.TLS.Key != "" {
		p.cert = certificate(cfg.TLS, &ps)
		p.mutual = mutual(cfg.TLS.ClientCA, p.cert, &ps)
	}
	return p, ps.Err()
}

// maxPEM bounds a certificate or key file.
const maxPEM = 1 << 20

// certificate reads the pair, naming the file that is at fault.
func certificate(cfg TLS, ps *setting.Problems) *tls.Certificate {
	cert, err := readPEM(cfg.Cert)
	if err != nil {
		ps.Add("tls.cert", "cannot be read: "+reason(err), "give a PEM file that Mainstay may read")
	}
	key, err2 := readPEM(cfg.Key)
	if err2 != nil {
		ps.Add("tls.key", "cannot be read: "+reason(err2), "give a PEM file that Mainstay may read")
	}
	if err != nil || err2 != nil {
		return nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		ps.Add("tls", "the pair of "+cfg.Cert+" and "+cfg.Key+" cannot be used: "+reason(err), "give a certificate and the key that belongs to it")
		return nil
	}
	return &pair
}

// mutual is the handshake that takes client certificates. It is made once, or no
// client could resume its session.
func mutual(path string, cert *tls.Certificate, ps *setting.Problems) *tls.Config {
	if path == "" || cert == nil {
		return nil
	}
	b, err := readPEM(path)
	if err != nil {
		ps.Add("tls.client_ca", "cannot be read: "+reason(err), "give a PEM file that Mainstay may read")
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		ps.Add("tls.client_ca", "holds no certificate", "give the PEM file of the authority")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{*cert},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool,
	}
}

// readPEM reads a regular file: a device or a pipe might never end.
func readPEM(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New(path + ": not a regular file")
	case info.Size() > maxPEM:
		return nil, errors.New(path + ": larger than 1 MiB")
	}
	return os.ReadFile(path)
}

// reason shortens an error to its cause where the path is already said.
func reason(err error) string {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Path + ": " + pe.Err.Error()
	}
	return err.Error()
}
