package claude

import (
	"crypto/tls"
	"crypto/x509"
)

// Trust makes the plane trust an upstream's test certificate.
func Trust(s *Server, c *x509.Certificate) {
	pool := x509.NewCertPool()
	pool.AddCert(c)
	s.wire.TLSClientConfig = &tls.Config{RootCAs: pool}
}

// Flights is how many calls others may attach to.
func (s *Server) Flights() int { return s.board.Len() }
