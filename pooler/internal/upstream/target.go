// Package upstream knows how to reach the PostgreSQL server behind a database of
// the pooler: it reads the connection URL as libpq does, opens connections with
// TLS and authentication, and delivers cancel requests.
//
// Only the pooler imports it. Nothing here keeps a goroutine.
package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// SSLMode says what part TLS plays, with libpq's words
// (https://www.postgresql.org/docs/current/libpq-ssl.html).
type SSLMode string

const (
	Disable    SSLMode = "disable"     // never
	Allow      SSLMode = "allow"       // only if the server refuses without
	Prefer     SSLMode = "prefer"      // unless the server refuses it
	Require    SSLMode = "require"     // always; the certificate is looked at only if sslrootcert is given
	VerifyCA   SSLMode = "verify-ca"   // always, signed by an authority in sslrootcert
	VerifyFull SSLMode = "verify-full" // as verify-ca, and issued for the host
)

// A Target is one PostgreSQL server and how to log in to it. It is immutable.
type Target struct {
	Network, Address string // for a dialer: "tcp" host:port, or "unix" and the socket's path
	Host             string // as in the URL; the name that a certificate must bear
	User             string
	Database         string
	SSL              SSLMode
	ConnectTimeout   time.Duration  // 0: none was given
	Settings         []pgwire.Param // run-time settings for the startup packet, sorted by name

	password string
	roots    *x509.CertPool // nil: the machine's
	client   []tls.Certificate
}

// String names the server for people, without the password.
func (t *Target) String() string {
	return t.User + "@" + t.Address + "/" + t.Database
}

// With returns the target with one more run-time setting, which what the URL says
// goes before.
func (t *Target) With(name, value string) *Target {
	if slices.ContainsFunc(t.Settings, func(p pgwire.Param) bool { return p.Name == name }) {
		return t
	}
	c := *t
	c.Settings = append(slices.Clone(t.Settings), pgwire.Param{Name: name, Value: value})
	return &c
}

// foreign are parameters that ORMs and hosting platforms put in a URL for
// themselves. They mean nothing to PostgreSQL, which would refuse them.
var foreign = []string{
	"schema", "pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size",
	"sslaccept", "sslidentity", "sslpassword", "single_use_connections", "supa", "workaround", "uselibpqcompat",
	"pool_max_conns", "pool_min_conns", "pool_max_conn_lifetime", "pool_max_conn_idle_time", "pool_health_check_period",
	"default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity",
}

// harmless are libpq's parameters that the pooler does without.
var harmless = []string{
	"target_session_attrs", "channel_binding", "gssencmode", "krbsrvname", "keepalives", "keepalives_idle",
	"keepalives_interval", "keepalives_count", "tcp_user_timeout", "fallback_application_name", "passfile",
	"sslcompression", "sslsni", "ssl_min_protocol_version", "ssl_max_protocol_version", "load_balance_hosts",
	"sslnegotiation", "require_auth", "min_protocol_version", "max_protocol_version",
}

// Parse reads a postgres:// or postgresql:// URL. It reads the certificate files
// that the URL names, and nothing else: no environment, no password file. An error
// never holds the password.
func Parse(raw string) (*Target, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("not a URL; write postgres://user:password@host:5432/database (special characters in the password as %XX)")
	}
	if u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New("must begin with postgres:// or postgresql://")
	}
	// To libpq a plus sign is itself, not a space.
	query, err := url.ParseQuery(strings.ReplaceAll(u.RawQuery, "+", "%2B"))
	if err != nil {
		return nil, errors.New("malformed parameters after the question mark")
	}
	t := &Target{User: u.User.Username(), Database: strings.TrimPrefix(u.Path, "/"), SSL: Prefer}
	t.password, _ = u.User.Password()
	host, port := u.Hostname(), u.Port()
	if strings.Contains(u.Host, ",") {
		return nil, errors.New("several hosts in one URL are not supported; name one")
	}
	p := parameters{t: t, host: host, port: port}
	for _, name := range sortedKeys(query) {
		if err := p.set(name, query.Get(name)); err != nil {
			return nil, err
		}
	}
	return t, p.finish()
}

func sortedKeys(query url.Values) []string {
	names := make([]string, 0, len(query))
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// parameters gathers what the URL's query says until all of it is known.
type parameters struct {
	t                *Target
	host, port       string
	root, cert, ckey string
}

func (p *parameters) set(name, value string) error {
	switch name {
	case "host":
		p.host = value
	case "port":
		p.port = value
	case "user":
		p.t.User = value
	case "password":
		p.t.password = value
	case "dbname":
		p.t.Database = value
	case "sslmode":
		return p.setMode(value)
	case "sslrootcert":
		p.root = value
	case "sslcert":
		p.cert = value
	case "sslkey":
		p.ckey = value
	case "connect_timeout":
		seconds, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return fmt.Errorf("connect_timeout %q is not a number of seconds", value)
		}
		p.t.ConnectTimeout = time.Duration(seconds) * time.Second
	default:
		if slices.Contains(foreign, name) || slices.Contains(harmless, name) {
			return nil
		}
		if strings.ContainsRune(name+value, 0) || name == "" || name == "replication" || name == "database" {
			return fmt.Errorf("parameter %q cannot be used here", name)
		}
		p.t.Settings = append(p.t.Settings, pgwire.Param{Name: name, Value: value})
	}
	return nil
}

func (p *parameters) setMode(value string) error {
	switch mode := SSLMode(value); mode {
	case Disable, Allow, Prefer, Require, VerifyCA, VerifyFull:
		p.t.SSL = mode
	case "no-verify": // node-postgres' word
		p.t.SSL = Require
	default:
		return fmt.Errorf("sslmode %q is none of disable, allow, prefer, require, verify-ca, verify-full", value)
	}
	return nil
}

func (p *parameters) finish() error {
	t := p.t
	if p.host == "" {
		p.host = "localhost"
	}
	if p.port == "" {
		p.port = "5432"
	}
	if n, err := strconv.ParseUint(p.port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q is not a number from 1 to 65535", p.port)
	}
	if strings.Contains(p.host, ",") {
		return errors.New("several hosts in one URL are not supported; name one")
	}
	if t.User == "" {
		return errors.New("names no user; write postgres://user:password@host:5432/database")
	}
	if t.Database == "" {
		t.Database = t.User
	}
	if strings.ContainsRune(t.User+t.Database+t.password+p.host, 0) {
		return errors.New("holds a null byte")
	}
	t.Network, t.Address, t.Host = "tcp", net.JoinHostPort(p.host, p.port), p.host
	if strings.HasPrefix(p.host, "/") {
		t.Network, t.Address = "unix", filepath.Join(p.host, ".s.PGSQL."+p.port)
		t.SSL = Disable
	}
	return p.certificates()
}

func (p *parameters) certificates() error {
	t := p.t
	if p.root != "" && p.root != "system" {
		pem, err := os.ReadFile(p.root)
		if err != nil {
			return fmt.Errorf("read sslrootcert: %w", err)
		}
		t.roots = x509.NewCertPool()
		if !t.roots.AppendCertsFromPEM(pem) {
			return fmt.Errorf("sslrootcert %s holds no certificate", p.root)
		}
		if t.SSL == Require { // as libpq does, for old times' sake
			t.SSL = VerifyCA
		}
	}
	if p.root == "system" {
		t.SSL = VerifyFull
	}
	if p.cert == "" && p.ckey == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(p.cert, p.ckey)
	if err != nil {
		return fmt.Errorf("read sslcert and sslkey: %w", err)
	}
	t.client = []tls.Certificate{pair}
	return nil
}

// tlsConfig is what the target's SSLMode asks of a handshake.
func (t *Target) tlsConfig() *tls.Config {
	cfg := &tls.Config{
		ServerName: t.Host, RootCAs: t.roots, Certificates: t.client, MinVersion: tls.VersionTLS12,
	}
	switch t.SSL {
	case VerifyFull:
	case VerifyCA:
		// The chain is checked by hand: crypto/tls would check the name with it.
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = t.verifyChain
	default:
		cfg.InsecureSkipVerify = true
	}
	return cfg
}

func (t *Target) verifyChain(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server sent no certificate")
	}
	opts := x509.VerifyOptions{Roots: t.roots, Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(opts)
	return err
}
