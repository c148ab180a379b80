package pooler

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/directory"
	"mainstay.dev/mainstay/pooler/internal/fair"
	"mainstay.dev/mainstay/pooler/internal/hba"
	"mainstay.dev/mainstay/pooler/internal/upstream"
	"mainstay.dev/mainstay/telemetry"
)

// Config is the pooler section.
type Config struct {
	Listen       string                    `yaml:"listen" doc:"Address for PostgreSQL clients; without users it must be a loopback address."`
	Users        map[string]setting.Secret `yaml:"users" doc:"Who may log in: name and password, or in the password's place what PostgreSQL keeps of it (a SCRAM verifier or an md5 hash). None: everybody who comes from this machine."`
	Userlist     string                    `yaml:"userlist" doc:"A file with more users: on each line \"name\" \"password\", as PgBouncer's auth_file has them; read again on reload."`
	Generated    []string                  `yaml:"generated" doc:"Users whose password a machine made, of 128 random bits or more: it is checked with one iteration of SCRAM instead of 4096, which makes a login many times cheaper."`
	AuthQuery    directory.Config          `yaml:"auth_query" doc:"Users that PostgreSQL knows."`
	HBA          []hba.Rule                `yaml:"hba" doc:"Who may come from where, and how they prove who they are: the first rule that fits decides, and who fits none is refused. None: users log in as auth says."`
	Groups       map[string][]string       `yaml:"groups" doc:"Groups of users, for rules that name +group. One that does not stand here is a role of PostgreSQL, whose members are asked for there, as auth_query.upstream, cache and idle say."`
	Auth         string                    `yaml:"auth" doc:"How users prove their password: scram-sha-256 or md5."`
	TLS          TLS                       `yaml:"tls" doc:"Encryption towards clients, on the same address; offered if a certificate is given."`
	Databases    map[string]Database       `yaml:"databases" doc:"The databases that clients can name."`
	MaxClients   int                       `yaml:"max_clients" doc:"How many clients may be logged in at once."`
	UserClients  int                       `yaml:"user_clients" doc:"How many clients of one user may be logged in at once. 0: as many as there may be."`
	LoginTimeout time.Duration             `yaml:"login_timeout" doc:"How long a client may take to log in."`
	StallTimeout time.Duration             `yaml:"stall_timeout" doc:"How long a client may leave an answer unread or a message unfinished before it is disconnected; waiting between messages is no stall. 0: forever."`
	Drain        time.Duration             `yaml:"drain" doc:"How long open transactions may take to finish when Mainstay stops."`
	Span         string                    `yaml:"span" doc:"What a span, a log line and a count in the metrics is of: query, or transaction."`
	Slow         Slow                      `yaml:"slow" doc:"The log of slow queries."`
	Cache        Cache                     `yaml:"cache" planned:"the query cache" doc:"The query cache."`
}

// Slow says which queries are logged for being slow.
type Slow struct {
	Over time.Duration `yaml:"over" doc:"Log queries that took longer than this, with their shape (never a literal) and where the time went. 0: none."`
	Plan bool          `yaml:"plan" doc:"Ask PostgreSQL for their plan too (EXPLAIN, not ANALYZE), on a connection of its own, one at a time; the plan may show literals. Of a statement with parameters it is the generic plan (PostgreSQL 12 or later)."`
}

// The words that Config.Span knows.
const (
	spanQuery       = "query"
	spanTransaction = "transaction"
)

// TLS is the pooler's certificate.
type TLS struct {
	Cert     string `yaml:"cert" doc:"PEM file with the certificate and its chain; read again on reload."`
	Key      string `yaml:"key" doc:"PEM file with the private key; read again on reload."`
	ClientCA string `yaml:"client_ca" doc:"PEM file with the authorities whose client certificates are accepted, for the method cert; read again on reload."`
	Require  bool   `yaml:"require" doc:"Refuse clients that do not encrypt."`
}

// Database is one database that clients can name.
type Database struct {
	Upstream setting.Secret `yaml:"upstream" doc:"Where it is: postgres://user:password@host:5432/database, with sslmode and sslrootcert as libpq has them."`
	Login    string         `yaml:"login" doc:"Who logs in there: shared (the upstream's user, for all clients) or client (each client as itself, with what its own login reveals; the pool's limits then hold for each user)."`
	Hosts    []string       `yaml:"hosts" doc:"Names by which TLS clients reach this database whatever database they name (SNI)."`
	Tenant   string         `yaml:"tenant" doc:"Clients whose user is name.tenant get this database, as name, whatever database they name."`
	Mode     string         `yaml:"mode" doc:"When a client gives its server connection back: transaction (after each transaction), session (when it disconnects) or statement (after each query; a transaction that is left open is rolled back and refused, SQLSTATE 0A000)."`
	Reset    string         `yaml:"reset" doc:"When a server connection is cleaned before another client gets it: dirty (if the pooler saw something that needs it) or always."`
	Listen   Listen         `yaml:"listen" doc:"Clients that LISTEN, in transaction mode."`
	Pool     Pool           `yaml:"pool" doc:"The server connections that clients share."`

	MaxClients       int           `yaml:"max_clients" doc:"How many clients may be logged in to this database at once. 0: as many as pooler.max_clients says."`
	QueryTimeout     time.Duration `yaml:"query_timeout" doc:"How long a query may run before Mainstay cancels it (SQLSTATE 57014; a warning before the error says why). 0: forever."`
	IdleTransaction  time.Duration `yaml:"idle_in_transaction_timeout" doc:"How long a client may leave a transaction open without a query before it is disconnected (SQLSTATE 25P03). 0: forever."`
	StatementTimeout time.Duration `yaml:"statement_timeout" doc:"PostgreSQL's own statement_timeout on every server connection; clients may SET another. 0: what the server has."`
}

// Listen is how clients listen for notifications through the connection that they share.
type Listen struct {
	OnLoss string        `yaml:"on_loss" doc:"What tells clients that notifications may be lost because that connection was: notice (a warning, when it is back) or disconnect (SQLSTATE 57P01, at once)."`
	Buffer setting.Bytes `yaml:"buffer" doc:"How much a client may leave unread, or unwritten while its transaction is open, before it is disconnected (SQLSTATE 53400)."`
}

// SetDefaults fills in what the file leaves out.
func (l *Listen) SetDefaults() { *l = Listen{OnLoss: lossNotice, Buffer: 1e6} }

// Pool bounds a database's server connections.
type Pool struct {
	Min            int           `yaml:"min" doc:"How many to keep open when nobody needs them."`
	Max            int           `yaml:"max" doc:"How many may be open at once."`
	AcquireTimeout time.Duration `yaml:"acquire_timeout" doc:"How long a client may wait for one; then it gets SQLSTATE 53300."`
	ConnectTimeout time.Duration `yaml:"connect_timeout" doc:"How long PostgreSQL may take to accept a new one."`
	OutageWait     time.Duration `yaml:"outage_wait" doc:"How long clients wait for a server that cannot be reached, as during its restart, before they are told."`
	IdleTimeout    time.Duration `yaml:"idle_timeout" doc:"How long one above min may be unused before it is closed."`
	Lifetime       time.Duration `yaml:"lifetime" doc:"How old one may become before it is replaced between two uses. 0: any age."`
	Statements     int           `yaml:"statements" doc:"How many of the clients' prepared statements to keep on each."`

	Reserve      int              `yaml:"reserve" doc:"How many more than max may be open while clients have waited for longer than reserve_after."`
	ReserveAfter time.Duration    `yaml:"reserve_after" doc:"How long a client must have waited for the reserve to be opened."`
	Total        int              `yaml:"total" doc:"How many may be open for all users together, where each client logs in as itself (login: client): unused ones of other users are closed to make room. 0: no limit."`
	UserMax      int              `yaml:"user_max" doc:"How many of them one user's clients may have at once, if users does not say. 0: all."`
	Users        map[string]Share `yaml:"users" doc:"What single users may have of the pool, by name. Without it all users have equal parts when they want more than there is."`
}

// Share is what one user may have of a pool.
type Share struct {
	Min      int `yaml:"min" doc:"Connections that others leave free for this user's clients, used or not."`
	Max      int `yaml:"max" doc:"How many this user's clients may have at once. 0: all."`
	Weight   int `yaml:"weight" doc:"This user's part when several want more than there is: 2 gets twice what 1 gets."`
	Priority int `yaml:"priority" doc:"Who goes first: a higher one before every lower one. Low ones may starve."`
}

// Cache is the schema of the query cache to come.
type Cache struct {
	Size setting.Bytes `yaml:"size" doc:"Memory for results."`
}

// The words that Config.Auth, Database.Mode and Database.Reset know.
const (
	authSCRAM = "scram-sha-256"
	authMD5   = "md5"

	modeTransaction = "transaction"
	modeSession     = "session"
	modeStatement   = "statement"

	loginShared = "shared"
	loginClient = "client"

	lossNotice     = "notice"
	lossDisconnect = "disconnect"

	resetDirty  = "dirty"
	resetAlways = "always"
)

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() {
	*c = Config{
		Listen: "127.0.0.1:6432", Auth: authSCRAM, Span: spanQuery, MaxClients: 1000,
		LoginTimeout: 15 * time.Second, StallTimeout: 5 * time.Minute, Drain: 30 * time.Second,
	}
	c.AuthQuery.SetDefaults()
}

// SetDefaults fills in what the file leaves out.
func (d *Database) SetDefaults() {
	*d = Database{Login: loginShared, Mode: modeTransaction, Reset: resetDirty}
	d.Pool.SetDefaults()
	d.Listen.SetDefaults()
}

// SetDefaults fills in what the file leaves out.
func (p *Pool) SetDefaults() {
	*p = Pool{
		Min: 2, Max: 10, AcquireTimeout: 30 * time.Second, ConnectTimeout: 5 * time.Second,
		OutageWait: 5 * time.Second, IdleTimeout: 10 * time.Minute, Lifetime: time.Hour, Statements: 500,
		ReserveAfter: 5 * time.Second,
	}
}

// SetDefaults fills in what the file leaves out.
func (s *Share) SetDefaults() { *s = Share{Weight: 1} }

// share is what a user may have, in the queue's words.
func (p *Pool) share(user string) fair.Share {
	if s, ok := p.Users[user]; ok {
		return fair.Share{Min: s.Min, Max: s.Max, Weight: s.Weight, Priority: s.Priority}
	}
	return fair.Share{Max: p.UserMax}
}

// named are the users that servers are kept for.
func (p *Pool) named() (users []string) {
	for user, s := range p.Users {
		if s.Min > 0 {
			users = append(users, user)
		}
	}
	return users
}

// Validate reports every mistake.
func (c *Config) Validate(ps *setting.Problems) {
	c.validateListen(ps)
	for name, secret := range c.Users {
		if name == "" || strings.ContainsRune(name, 0) {
			ps.Add("users", "a user's name must not be empty", "")
		}
		if secret == "" {
			ps.Add(setting.Join("users", name), "has no password, so nobody could log in", `give one: "${POOLER_PASSWORD}"`)
		}
	}
	c.validateAuth(ps)
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		ps.Add("tls", "needs both cert and key", "give both or neither")
	} else if _, err := c.TLS.load(); err != nil {
		ps.Add("tls", err.Error(), "name a readable PEM certificate and its key")
	}
	if c.TLS.Require && c.TLS.Cert == "" {
		ps.Add("tls.require", "needs a certificate", "give cert and key")
	}
	if c.MaxClients < 1 {
		ps.Add("max_clients", "must be at least 1", "try 1000")
	}
	atLeast(ps, "user_clients", c.UserClients, 0)
	positive(ps, "login_timeout", c.LoginTimeout, "15s")
	notNegative(ps, "stall_timeout", c.StallTimeout, "5m")
	notNegative(ps, "drain", c.Drain, "30s")
	oneOf(ps, "span", c.Span, spanQuery, spanTransaction)
	notNegative(ps, "slow.over", c.Slow.Over, "1s")
	names := map[string]string{}
	for name, d := range c.Databases {
		var part setting.Problems
		d.Validate(&part)
		for _, other := range append([]string{"tenant " + d.Tenant}, lower(d.Hosts)...) {
			if first, taken := names[other]; taken && other != "tenant " {
				part.Add("", fmt.Sprintf("%s leads to database %s too", other, first), "name it once")
			}
			names[other] = name
		}
		ps.Below(setting.Join("databases", name), part)
	}
}

// lower are names that TLS clients ask for in whatever case.
func lower(hosts []string) (all []string) {
	for _, host := range hosts {
		all = append(all, strings.ToLower(host))
	}
	return all
}

func (c *Config) validateAuth(ps *setting.Problems) {
	oneOf(ps, "auth", c.Auth, authSCRAM, authMD5)
	var part setting.Problems
	c.AuthQuery.Validate(&part)
	ps.Below("auth_query", part)
	for i, r := range c.HBA {
		var part setting.Problems
		r.Validate(&part)
		if r.Method == hba.Cert && c.TLS.ClientCA == "" {
			part.Add("method", "cert needs authorities to trust", "give pooler.tls.client_ca")
		}
		ps.Below(fmt.Sprintf("hba[%d]", i), part)
	}
	for i, name := range c.Generated {
		if c.Users[name] != "" {
			machineMade(ps, fmt.Sprintf("generated[%d]", i), name, c.Users[name].Reveal())
		}
	}
}

// machineMade reports a secret that cannot be what users under generated need to have.
func machineMade(ps *setting.Problems, path, name, secret string) {
	if len(secret) < 22 { // 128 bits in base64
		ps.Add(path, fmt.Sprintf("the password of %s has fewer than 22 characters, which are not 128 random bits", name), "make one: openssl rand -base64 24")
	}
}

// open reports whether nothing says who may log in: then this machine may.
func (c *Config) open() bool {
	return len(c.Users) == 0 && c.Userlist == "" && !c.AuthQuery.On && len(c.HBA) == 0
}

func (c *Config) validateListen(ps *setting.Problems) {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "" {
		ps.Add("listen", "is no address", "try 127.0.0.1:6432")
		return
	}
	if c.open() && !loopback(host) {
		ps.Add("listen", fmt.Sprintf("%s can be reached from other machines, and there are no users: anybody could log in", c.Listen),
			"add users, or listen on 127.0.0.1:6432")
	}
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Validate reports every mistake, with paths relative to the database.
func (d *Database) Validate(ps *setting.Problems) {
	if d.Upstream == "" {
		ps.Add("upstream", "is missing", `give the server's address: "${DATABASE_URL}"`)
	} else if _, err := upstream.Parse(d.Upstream.Reveal()); err != nil {
		ps.Add("upstream", err.Error(), "write postgres://user:password@host:5432/database")
	}
	oneOf(ps, "login", d.Login, loginShared, loginClient)
	oneOf(ps, "mode", d.Mode, modeTransaction, modeSession, modeStatement)
	oneOf(ps, "reset", d.Reset, resetDirty, resetAlways)
	atLeast(ps, "max_clients", d.MaxClients, 0)
	oneOf(ps, "listen.on_loss", d.Listen.OnLoss, lossNotice, lossDisconnect)
	if d.Listen.Buffer < minBuffer {
		ps.Add("listen.buffer", "is less than the longest notifications need", "try 1MB")
	}
	notNegative(ps, "query_timeout", d.QueryTimeout, "30s")
	notNegative(ps, "idle_in_transaction_timeout", d.IdleTransaction, "1m")
	notNegative(ps, "statement_timeout", d.StatementTimeout, "30s")
	var part setting.Problems
	d.Pool.Validate(&part)
	ps.Below("pool", part)
}

// Validate reports every mistake, with paths relative to the pool.
func (p *Pool) Validate(ps *setting.Problems) {
	if p.Max < 1 {
		ps.Add("max", "must be at least 1", "try 10")
	}
	if p.Min < 0 {
		ps.Add("min", "must not be negative", "try 2")
	}
	if p.Max >= 1 && p.Min > p.Max {
		ps.Add("min", fmt.Sprintf("%d is more than max, which is %d", p.Min, p.Max), "lower min or raise max")
	}
	positive(ps, "acquire_timeout", p.AcquireTimeout, "30s")
	positive(ps, "connect_timeout", p.ConnectTimeout, "5s")
	notNegative(ps, "outage_wait", p.OutageWait, "5s")
	positive(ps, "idle_timeout", p.IdleTimeout, "10m")
	notNegative(ps, "lifetime", p.Lifetime, "1h")
	if p.Statements < 1 {
		ps.Add("statements", "must be at least 1", "try 500")
	}
	atLeast(ps, "reserve", p.Reserve, 0)
	notNegative(ps, "reserve_after", p.ReserveAfter, "5s")
	atLeast(ps, "user_max", p.UserMax, 0)
	atLeast(ps, "total", p.Total, 0)
	kept := 0
	for name, s := range p.Users {
		at := setting.Join("users", name)
		atLeast(ps, at+".min", s.Min, 0)
		atLeast(ps, at+".max", s.Max, 0)
		atLeast(ps, at+".weight", s.Weight, 1)
		if s.Max > 0 && s.Min > s.Max {
			ps.Add(at+".min", fmt.Sprintf("%d is more than max, which is %d", s.Min, s.Max), "lower min or raise max")
		}
		kept += max(0, s.Min)
	}
	if p.Max >= 1 && kept > p.Max {
		ps.Add("users", fmt.Sprintf("%d connections are kept for single users (min), and there are %d in all", kept, p.Max), "lower the users' min or raise max")
	}
}

func atLeast(ps *setting.Problems, path string, n, least int) {
	if n < least {
		ps.Add(path, fmt.Sprintf("must be at least %d", least), fmt.Sprintf("write %d or more", least))
	}
}

// Compile turns a configuration into what a pooler obeys, or reports every mistake
// as setting.Problems. It reads the files that the configuration names, and is
// otherwise pure.
func Compile(cfg Config) (*policy, error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	if err := ps.Err(); err != nil {
		return nil, err
	}
	var err error
	p := &policy{
		config: cfg, accounts: map[string]account{}, targets: map[string]*upstream.Target{}, pools: map[string]*pool{},
		hosts: map[string]string{}, tenants: map[string]string{}, verifiers: cfg.AuthQuery.On,
	}
	p.admitUsers(&ps)
	if p.rules, err = hba.Compile(cfg.HBA, cfg.Groups); err != nil {
		ps.Add("hba", err.Error(), "")
	}
	if p.directory, err = directory.New(cfg.AuthQuery, p.rules != nil && p.rules.Asks()); err != nil {
		ps.Add("auth_query", err.Error(), "")
	}
	for name, d := range cfg.Databases {
		t, err := upstream.Parse(d.Upstream.Reveal())
		if err != nil {
			ps.Add(setting.Join("databases", name)+".upstream", err.Error(), "")
		}
		if err == nil && d.StatementTimeout > 0 {
			t = t.With("statement_timeout", strconv.FormatInt(d.StatementTimeout.Milliseconds(), 10))
		}
		p.targets[name] = t
		for _, host := range lower(d.Hosts) {
			p.hosts[host] = name
		}
		if d.Tenant != "" {
			p.tenants[d.Tenant] = name
		}
	}
	if p.tls, err = cfg.TLS.load(); err != nil {
		ps.Add("tls", err.Error(), "")
	} else if p.tls != nil {
		p.binding = credential.EndPoint(p.tls.Certificates[0].Leaf)
	}
	return p, ps.Err()
}

// admitUsers makes an account for every user of the file and of the userlist.
func (p *policy) admitUsers(ps *setting.Problems) {
	cfg := &p.config
	add := func(path, name, secret string) {
		iterations := credential.Human
		if slices.Contains(cfg.Generated, name) {
			iterations = credential.Generated
			if path == "userlist" { // Validate has looked at the others
				machineMade(ps, path, name, secret)
			}
		}
		c, err := credential.New(name, secret, iterations)
		switch {
		case err != nil:
			ps.Add(path, err.Error(), "")
		case len(cfg.HBA) > 0: // the rules say how each is checked
		case cfg.Auth == authSCRAM && !c.SCRAM():
			ps.Add(path, "is an md5 hash, which scram-sha-256 cannot check", "give the password or a SCRAM verifier, or write auth: md5")
		case cfg.Auth == authMD5 && !c.MD5():
			ps.Add(path, "is a SCRAM verifier, which md5 cannot check", "give the password or an md5 hash, or write auth: scram-sha-256")
		}
		p.accounts[name] = account{credential: c, color: telemetry.ColorUnknown}
		p.verifiers = p.verifiers || err == nil && !c.MD5()
	}
	if cfg.Userlist != "" {
		listed, err := directory.ReadList(cfg.Userlist)
		if err != nil {
			ps.Add("userlist", err.Error(), `write on each line: "name" "password"`)
		}
		for name, secret := range listed {
			add("userlist", name, secret)
		}
	}
	for name, secret := range cfg.Users {
		add(setting.Join("users", name), name, secret.Reveal())
	}
}

// minBuffer holds the longest notification, of 8000 bytes, twice.
const minBuffer = 16 << 10

func oneOf(ps *setting.Problems, path, value string, words ...string) {
	if !slices.Contains(words, value) {
		ps.Add(path, fmt.Sprintf("%q is unknown", value), "write "+strings.Join(words, " or "))
	}
}

func positive(ps *setting.Problems, path string, d time.Duration, try string) {
	if d <= 0 {
		ps.Add(path, "must be positive", "try "+try)
	}
}

func notNegative(ps *setting.Problems, path string, d time.Duration, try string) {
	if d < 0 {
		ps.Add(path, "must not be negative", "try "+try)
	}
}

// load reads the certificate; nil if none is configured.
func (t TLS) load() (*tls.Config, error) {
	if t.Cert == "" || t.Key == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"postgresql"},
		DynamicRecordSizingDisabled: true, // an answer is wanted whole: small records only mean more of them
	}
	if t.ClientCA == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("read client_ca: %w", err)
	}
	cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("client_ca %s holds no certificate", t.ClientCA)
	}
	return cfg, nil
}
