package edge

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
)

// server builds the http.Server of one listener. Its own WriteTimeout and
// ReadTimeout stay off, since they would end streams; lane.go sets deadlines that
// move with progress instead.
func (s *Server) server(base context.Context, secure bool) *http.Server {
	c := s.policy.Load().cfg
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	if secure {
		protocols.SetHTTP2(true)
	} else {
		protocols.SetUnencryptedHTTP2(true)
	}
	srv := &http.Server{
		Handler:   s,
		Protocols: protocols,
		// OPTIONS * is the app's to answer, as every request is.
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return base },
		ReadHeaderTimeout:            c.Timeouts.Header,
		IdleTimeout:                  c.Timeouts.Idle,
		// net/http answers beyond this on its own, without our code and id; twice
		// the limit leaves admit to answer what is only somewhat too large.
		MaxHeaderBytes: 2 * int(c.Header),
		// A failed handshake or a client that speaks no HTTP is the clients' noise.
		ErrorLog: slog.NewLogLogger(s.deps.Log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			SendPingTimeout:      c.Timeouts.Idle / 2,
			WriteByteTimeout:     c.Timeouts.Write,
		},
	}
	if secure {
		srv.TLSConfig = &tls.Config{
			MinVersion: tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return s.policy.Load().cert, nil // a reload brings a new one
			},
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return s.policy.Load().mutual, nil // nil: this one stands
			},
		}
	}
	return srv
}
