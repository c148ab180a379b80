// Package upstream knows how to reach the PostgreSQL server behind a database of
// the pooler: it reads the connection URL as libpq does, opens connections with
// TLS and authentication, and delivers cancel requests.
//
// Only the pooler imports it. Nothing here keeps a goroutine.
package upstream

import (
	"bytes"
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

	"mainstay.dev/mainstay/pooler/internal/credential"
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

// A Target is a PostgreSQL server, or several of which one is to be used, and how to
// log in to it. It is immutable.
type Target struct {
	Hosts          []Host // tried in this order, or a random one
	User           string
	Database       string
	SSL            SSLMode
	Direct         bool           // TLS from the first byte on (sslnegotiation=direct)
	Shuffle        bool           // load_balance_hosts=random
	Wants          string         // target_session_attrs, "" for any
	Binding        string         // channel_binding: prefer, require or disable
	Methods        []string       // require_auth: what the server may ask for; nil: anything
	ConnectTimeout time.Duration  // for each host; 0: none was given
	Settings       []pgwire.Param // run-time settings for the startup packet, sorted by name

	password string
	keys     credential.Keys // in the password's place, if there are any
	roots    *x509.CertPool  // nil: the machine's
	client   []tls.Certificate

	oldest, newest uint16 // versions of TLS; 0: Go's own
}

// A Host is one address of a target.
type Host struct {
	Network, Address string // for a dialer: "tcp" host:port, or "unix" and the socket's path
	Name             string // as in the URL; the name that a certificate must bear
}

// local reports whether what is said to the host stays on this machine.
func (h Host) local() bool {
	ip := net.ParseIP(h.Name)
	return h.Network == "unix" || h.Name == "localhost" || ip != nil && ip.IsLoopback()
}

// String names the servers for people, without the password.
func (t *Target) String() string {
	names := make([]string, len(t.Hosts))
	for i, h := range t.Hosts {
		names[i] = h.Address
	}
	return t.User + "@" + strings.Join(names, ",") + "/" + t.Database
}

// As returns the target with another login: a client's own user and what its login
// revealed.
func (t *Target) As(user string, keys credential.Keys) *Target {
	c := *t
	c.User, c.password, c.keys = user, keys.Password, keys
	return &c
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

// Choosing returns the target with these run-time settings, which go before those that it has.
func (t *Target) Choosing(settings []pgwire.Param) *Target {
	c := *t
	c.Settings = slices.DeleteFunc(slices.Clone(t.Settings), func(p pgwire.Param) bool {
		return slices.ContainsFunc(settings, func(o pgwire.Param) bool { return o.Name == p.Name })
	})
	c.Settings = append(c.Settings, settings...)
	return &c
}

// Only returns the target with these run-time settings (name=value) and no others.
func (t *Target) Only(settings ...string) *Target {
	c := *t
	c.Settings = nil
	for _, one := range settings {
		name, value, _ := strings.Cut(one, "=")
		c.Settings = append(c.Settings, pgwire.Param{Name: name, Value: value})
	}
	return &c
}

// Uses reports whether the target logs in with these keys.
func (t *Target) Uses(keys credential.Keys) bool { return t.keys.Equal(keys) }

// SameFiles reports whether the files that the URL names held the same for both.
func (t *Target) SameFiles(o *Target) bool {
	return t.roots.Equal(o.roots) && slices.EqualFunc(t.client, o.client, func(a, b tls.Certificate) bool {
		return slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal)
	})
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
	"krbsrvname", "keepalives", "keepalives_idle",
	"keepalives_interval", "keepalives_count", "tcp_user_timeout", "fallback_application_name", "passfile",
	"sslcompression", "sslsni", "min_protocol_version", "max_protocol_version",
}

// Parse reads a postgres:// or postgresql:// URL. It reads the certificate files
// that the URL names, and nothing else: no environment, no password file. An error
// never holds the password.
func Parse(raw string) (*Target, error) {
	hosts, single := cutHosts(raw)
	u, err := url.Parse(single)
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
	p := parameters{t: t}
	if err := p.address(hosts); err != nil {
		return nil, err
	}
	for _, name := range sortedKeys(query) {
		if err := p.set(name, query.Get(name)); err != nil {
			return nil, err
		}
	}
	return t, p.finish()
}

// cutHosts takes the hosts out of a URL: net/url knows one alone.
func cutHosts(raw string) (hosts, single string) {
	begin := strings.Index(raw, "://") + len("://")
	if begin < len("://") {
		return "", raw
	}
	end := len(raw)
	if i := strings.IndexAny(raw[begin:], "/?#"); i >= 0 {
		end = begin + i
	}
	if i := strings.LastIndexByte(raw[begin:end], '@'); i >= 0 {
		begin += i + 1
	}
	return raw[begin:end], raw[:begin] + "h" + raw[end:]
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
	host, port       string // comma-separated
	root, cert, ckey string
}

// address splits hosts with their ports.
func (p *parameters) address(hosts string) error {
	var names, ports []string
	for one := range strings.SplitSeq(hosts, ",") {
		name, port := one, ""
		if i := strings.LastIndexByte(one, ':'); i > strings.LastIndexByte(one, ']') {
			name, port = one[:i], one[i+1:]
		}
		if strings.HasPrefix(name, "[") {
			name = strings.TrimSuffix(name[1:], "]")
		}
		name, err := url.PathUnescape(name)
		if err != nil {
			return errors.New("a host's name is malformed")
		}
		names, ports = append(names, name), append(ports, port)
	}
	p.host, p.port = strings.Join(names, ","), strings.Join(ports, ",")
	return nil
}

// The words of libpq's parameters that choose among a few.
var choices = map[string][]string{
	"target_session_attrs": {"any", "read-write", "read-only", "primary", "standby"},
	"load_balance_hosts":   {"disable", "random"},
	"sslnegotiation":       {"postgres", "direct"},
	"channel_binding":      {"prefer", "require", "disable"},
	"gssencmode":           {"prefer", "disable"}, // which are the same here

	"ssl_min_protocol_version": {"", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"},
	"ssl_max_protocol_version": {"", "TLSv1.2", "TLSv1.3"},
}

// versions are those of TLS that are spoken here.
var versions = map[string]uint16{"TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}

// choose sets what has few values; ok is false if that is not what name is.
func (p *parameters) choose(name, value string) (ok bool, _ error) {
	words, ok := choices[name]
	if !ok {
		return false, nil
	}
	if !slices.Contains(words, value) {
		return true, fmt.Errorf("%s %q is none of %s", name, value, strings.Join(words, ", "))
	}
	switch name {
	case "target_session_attrs":
		if value != "any" {
			p.t.Wants = value
		}
	case "load_balance_hosts":
		p.t.Shuffle = value == "random"
	case "sslnegotiation":
		p.t.Direct = value == "direct"
	case "channel_binding":
		p.t.Binding = value
	case "ssl_min_protocol_version":
		p.t.oldest = versions[value]
	case "ssl_max_protocol_version":
		p.t.newest = versions[value]
	}
	return true, nil
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
	case "require_auth":
		return p.requireAuth(value)
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
		if ok, err := p.choose(name, value); ok {
			return err
		}
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

// methods are require_auth's words. By none the server asks for nothing.
var methods = []string{methodNone, methodPassword, methodMD5, methodSCRAM, "gss", "sspi", "oauth"}

// requireAuth reads what the server may ask for: a list, or all but what a list of words with ! names.
func (p *parameters) requireAuth(value string) error {
	if value == "" {
		return nil
	}
	var named []string
	but := strings.HasPrefix(value, "!")
	for word := range strings.SplitSeq(value, ",") {
		name, not := strings.CutPrefix(word, "!")
		if not != but || !slices.Contains(methods, name) {
			return fmt.Errorf("require_auth %q is no list of %s, all or none of them with !", value, strings.Join(methods, ", "))
		}
		named = append(named, name)
	}
	p.t.Methods = slices.DeleteFunc(slices.Clone(methods), func(m string) bool { return slices.Contains(named, m) == but })
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
	if err := p.hosts(); err != nil {
		return err
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
	if t.Direct && (t.SSL == Disable || t.SSL == Allow || t.SSL == Prefer) {
		return fmt.Errorf("sslnegotiation=direct needs sslmode=require or stronger, not %s", t.SSL)
	}
	if t.newest != 0 && t.oldest > t.newest {
		return errors.New("ssl_min_protocol_version is above ssl_max_protocol_version")
	}
	return p.certificates()
}

// maxHosts bounds the addresses of one target.
const maxHosts = 16

func (p *parameters) hosts() error {
	names, ports := strings.Split(p.host, ","), strings.Split(p.port, ",")
	if len(names) > maxHosts {
		return fmt.Errorf("names %d hosts; more than %d are too many", len(names), maxHosts)
	}
	if len(ports) != 1 && len(ports) != len(names) {
		return fmt.Errorf("names %d hosts and %d ports", len(names), len(ports))
	}
	sockets := 0
	for i, name := range names {
		port := ports[min(i, len(ports)-1)]
		if name == "" {
			name = "localhost"
		}
		if port == "" {
			port = "5432"
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("port %q is not a number from 1 to 65535", port)
		}
		h := Host{Network: "tcp", Address: net.JoinHostPort(name, port), Name: name}
		if strings.HasPrefix(name, "/") {
			h.Network, h.Address = "unix", filepath.Join(name, ".s.PGSQL."+port)
			sockets++
		}
		p.t.Hosts = append(p.t.Hosts, h)
	}
	if sockets == len(names) {
		p.t.SSL = Disable
	}
	return nil
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

// tlsConfig is what the target's SSLMode asks of a handshake with one of its hosts.
func (t *Target) tlsConfig(h Host) *tls.Config {
	cfg := &tls.Config{
		ServerName: h.Name, RootCAs: t.roots, Certificates: t.client,
		MinVersion: max(t.oldest, tls.VersionTLS12), MaxVersion: t.newest,
	}
	if t.Direct {
		cfg.NextProtos = []string{"postgresql"}
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
