package pooler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/fair"
	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/telemetry"
)

// ErrUnknown is wrapped by errors that mean that an order named a database or a
// client that is not there.
var ErrUnknown = errors.New("unknown")

// order carries an order out on the pools of a database ("": of all). Its own comes first: those
// that users get from then on, where each logs in as itself, are made after it.
func (p *Server) order(database string, do func(*pool)) error {
	p.orders.Lock() // a reload would have what replaces a pool take the orders that that one had before
	defer p.orders.Unlock()
	pools := p.policy.Load().pools
	if database != "" && pools[database] == nil {
		return fmt.Errorf("database %q is %w; mainstay db pools lists those that there are", database, ErrUnknown)
	}
	for name, pool := range pools {
		if database != "" && name != database {
			continue
		}
		do(pool)
		for _, m := range pool.family() {
			do(m)
		}
	}
	return nil
}

// Pause lets clients of a database ("": of all) wait, from now on, and waits until
// those that have a server have given it back; then no connection to PostgreSQL is
// open. If ctx ends first the error says how many are left, and the pause stays.
func (p *Server) Pause(ctx context.Context, database string) error {
	var errs []error
	var all sync.WaitGroup
	var mu sync.Mutex
	err := p.order(database, func(pool *pool) {
		pool.halt()
		all.Go(func() {
			if err := pool.pause(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	})
	if err != nil {
		return err
	}
	all.Wait()
	p.policy.Load().directory.Renew()
	p.tellOrder("paused", database, "Clients wait; connections to PostgreSQL are closed when they come back.")
	return errors.Join(errs...)
}

// Resume ends a pause.
func (p *Server) Resume(database string) error {
	if err := p.order(database, (*pool).resume); err != nil {
		return err
	}
	p.tellOrder("resumed", database, "Clients are served again.")
	return nil
}

// Reconnect replaces every connection to PostgreSQL by a new one: idle ones now,
// others when their transaction ends.
func (p *Server) Reconnect(database string) error {
	if err := p.order(database, (*pool).renew); err != nil {
		return err
	}
	p.policy.Load().directory.Renew()
	p.tellOrder("reconnecting", database, "Connections to PostgreSQL are replaced.")
	return nil
}

// A Kill names clients: all that fit every field that is given.
type Kill struct {
	ID       uint32 `json:"id,omitempty"`
	User     string `json:"user,omitempty"`
	Database string `json:"database,omitempty"`
	Why      string `json:"why,omitempty"` // told to the clients
}

// Kill ends clients, with SQLSTATE 57P01, whatever they do. It returns how many.
func (p *Server) Kill(k Kill) (n int, err error) {
	message := "terminating connection: an administrator ended it"
	if k.Why != "" {
		message += ": " + k.Why
	}
	if k.ID == 0 && k.User == "" && k.Database == "" {
		return 0, errors.New("name whom to end: a client's id, a user or a database")
	}
	for _, c := range p.Clients() {
		if k.ID != 0 && k.ID != c.ID || k.User != "" && k.User != c.User || k.Database != "" && k.Database != c.Database {
			continue
		}
		p.mu.Lock()
		s := p.sessions[c.ID]
		p.mu.Unlock()
		if s != nil {
			s.expel(end(Killed, message, ""))
			n++
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("a client like that is %w; mainstay db clients lists those that there are", ErrUnknown)
	}
	return n, nil
}

func (p *Server) tellOrder(name, database, text string) {
	p.deps.Sink.Emit(telemetry.Event{
		Time: time.Now(), Part: "pooler", Name: name, Level: slog.LevelInfo, Text: text,
		Attrs: []slog.Attr{slog.String("database", cmp.Or(database, "all"))},
	})
}

// Stats is how the pooler stands now.
type Stats struct {
	Clients    int             `json:"clients"`
	MaxClients int             `json:"max_clients"`
	Databases  []DatabaseStats `json:"databases"`
}

// DatabaseStats is how one database's pool stands now.
type DatabaseStats struct {
	Database    string        `json:"database"`
	Mode        string        `json:"mode"`
	Upstream    string        `json:"upstream"` // without the password
	Min         int           `json:"min"`
	Max         int           `json:"max"`                 // of all users' own pools that there are, where each logs in as itself
	Active      int           `json:"active"`              // servers that a client has
	Idle        int           `json:"idle"`                // servers that wait for a client
	Connecting  int           `json:"connecting"`          // servers that are being connected to
	Waiting     int           `json:"waiting"`             // clients that wait for a server
	LongestWait time.Duration `json:"longest_wait"`        // of those, in nanoseconds
	LongestUse  time.Duration `json:"longest_use"`         // of the active servers, in nanoseconds
	Reserve     int           `json:"reserve,omitempty"`   // servers beyond max that may be open now, or still are
	Listeners   int           `json:"listeners,omitempty"` // clients that listen, in transaction mode
	Channels    int           `json:"channels,omitempty"`  // to which they listen, through one connection more
	Paused      *time.Time    `json:"paused,omitempty"`    // since when no server is given away
	Outage      string        `json:"outage,omitempty"`

	notifications, losses, wiped uint64
}

// ClientStats is how one client stands now.
type ClientStats struct {
	ID          uint32        `json:"id"` // as in the cancel key, and for Kill
	User        string        `json:"user"`
	Database    string        `json:"database"`
	Application string        `json:"application,omitempty"`
	Color       string        `json:"color"`
	Address     string        `json:"address"`
	TLS         bool          `json:"tls"`
	Since       time.Time     `json:"since"`              // when it connected
	State       string        `json:"state"`              // idle, waiting, or what it does with its server
	For         time.Duration `json:"for"`                // how long it has waited, or had its server; in nanoseconds
	Server      uint32        `json:"server,omitempty"`   // PostgreSQL's process that it has
	Pinned      string        `json:"pinned,omitempty"`   // why it keeps its server between transactions
	Channels    int           `json:"channels,omitempty"` // to which it listens, in transaction mode
}

// Clients lists the clients that are logged in, those that wait or work for longest
// first.
func (p *Server) Clients() []ClientStats {
	p.mu.Lock()
	sessions := make([]*session, 0, len(p.sessions))
	for _, s := range p.sessions {
		sessions = append(sessions, s)
	}
	p.mu.Unlock()
	waits, leases := map[*session]time.Time{}, map[*session]lease{}
	for _, pool := range p.allPools() {
		pool.mu.Lock()
		pool.line.Each(func(place *fair.Place[*waiter]) bool {
			waits[place.Value.owner] = place.Since
			return true
		})
		for _, l := range pool.held() {
			leases[l.holder] = l
		}
		pool.mu.Unlock()
	}
	all := []ClientStats{}
	for _, s := range sessions {
		if !s.admitted() {
			continue
		}
		st := s.stats()
		if since, ok := waits[s]; ok {
			st.State, st.For = "waiting", time.Since(since)
		} else if l, ok := leases[s]; ok {
			st.State, st.For, st.Server = s.doing(), time.Since(l.since), l.server.PID
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b ClientStats) int { return cmp.Or(cmp.Compare(b.For, a.For), cmp.Compare(a.ID, b.ID)) })
	return all
}

// occupiedByAll is how many connections the pools of all users together have, where each logs in as itself.
func (p *pool) occupiedByAll() int {
	if p.parent == nil {
		return 0
	}
	return int(p.parent.occupied.Load())
}

// heldByAll lists the leases of those, the longest first. No pool's lock is held.
func (p *pool) heldByAll() (all []lease) {
	for _, m := range p.parent.family() {
		m.mu.Lock()
		all = append(all, m.held()...)
		m.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b lease) int { return a.since.Compare(b.since) })
	return all
}

// stats is what is known of a session that is logged in, but for its server.
func (s *session) stats() ClientStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	channels := 0
	if s.ear != nil {
		channels = len(s.ear.channels)
	}
	return ClientStats{
		ID: s.id, User: s.user, Database: s.database, Application: s.application, Color: s.color,
		Address: s.raw.RemoteAddr().String(), TLS: s.conn != s.raw, Since: time.Unix(0, s.came), State: "idle", Pinned: s.pinned, Channels: channels,
	}
}

// Stats may be called at any time.
func (p *Server) Stats() Stats {
	policy := p.policy.Load()
	p.mu.Lock()
	st := Stats{Clients: p.inside.all, MaxClients: policy.config.MaxClients, Databases: []DatabaseStats{}}
	p.mu.Unlock()
	for _, pool := range policy.pools {
		d := pool.stats()
		users := pool.family()
		for _, m := range users {
			d.add(m.stats())
		}
		if pool.perClient() { // max is each user's
			d.Max *= max(1, len(users))
			if total := pool.limits().Total; total > 0 {
				d.Max = min(d.Max, total)
			}
		}
		st.Databases = append(st.Databases, d)
	}
	slices.SortFunc(st.Databases, func(a, b DatabaseStats) int { return cmp.Compare(a.Database, b.Database) })
	return st
}

// add counts one user's pool in.
func (d *DatabaseStats) add(m DatabaseStats) {
	d.Active, d.Idle, d.Connecting, d.Waiting = d.Active+m.Active, d.Idle+m.Idle, d.Connecting+m.Connecting, d.Waiting+m.Waiting
	d.Reserve += m.Reserve
	d.LongestWait, d.LongestUse = max(d.LongestWait, m.LongestWait), max(d.LongestUse, m.LongestUse)
	d.Outage = cmp.Or(d.Outage, m.Outage)
	d.Listeners, d.Channels = d.Listeners+m.Listeners, d.Channels+m.Channels
	d.notifications, d.losses, d.wiped = d.notifications+m.notifications, d.losses+m.losses, d.wiped+m.wiped
}

func (p *pool) stats() DatabaseStats {
	config := p.config.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	st := DatabaseStats{
		Database: p.name, Mode: config.Mode, Upstream: p.target.String(), Min: config.Pool.Min, Max: config.Pool.Max,
		Idle: len(p.idle), Active: len(p.all) - len(p.idle), Connecting: p.dialing, Waiting: p.line.Waiting(),
	}
	if oldest := p.line.Oldest(); oldest != nil {
		st.LongestWait = time.Since(oldest.Since)
	}
	for b := range p.all {
		if b.holder != nil {
			st.LongestUse = max(st.LongestUse, time.Since(b.since))
		}
	}
	if p.outage != nil {
		st.Outage = p.outage.err.Error()
	}
	if p.paused != nil {
		st.Paused = &p.paused.since
	}
	st.Reserve = max(p.room(), len(p.all)) - config.Pool.Max
	st.Listeners, st.Channels = p.hub.Levels()
	st.notifications, st.losses, st.wiped = p.hub.Notifications.Load(), p.hub.Losses.Load(), p.wiped.Load()
	return st
}

// seenFor is how long a window of the queries that Top and Levels tell of lasts: they
// are of this one and the one before.
const seenFor = 5 * time.Minute

// Summary is what is known of one shape or user.
type Summary = fingerprint.Summary

// Top is where the time went lately: in the last five to ten minutes.
type Top struct {
	Queries []Summary `json:"queries"` // by shape, those that took the most time first; the last is the rest
	Users   []Summary `json:"users"`
}

// Top lists at most n shapes and users.
func (p *Server) Top(n int) (t Top) {
	t.Queries, t.Users = p.shapes.Top(n)
	return t
}

// topLevels bounds the shapes and users that have metrics of their own.
const topLevels = 20

// seen is Top as metrics.
func (p *Server) seen() (levels []telemetry.Level) {
	top := p.Top(topLevels)
	add := func(s Summary, label, value string) {
		by := telemetry.Label{Name: label, Value: value}
		for _, q := range []struct {
			name string
			d    time.Duration
		}{{"0.5", s.P50}, {"0.95", s.P95}, {"0.99", s.P99}} {
			levels = append(levels, telemetry.Level{
				Name: "mainstay_pooler_" + label + "_seconds", Help: "Percentiles of the last minutes' queries, of the " + label + "s that took the most time.",
				Labels: []telemetry.Label{by, {Name: "quantile", Value: q.name}}, Value: q.d.Seconds(),
			})
		}
		levels = append(levels, telemetry.Level{
			Name: "mainstay_pooler_" + label + "_queries", Help: "How many those were.", Labels: []telemetry.Label{by}, Value: float64(s.Calls),
		})
	}
	for _, s := range top.Queries {
		add(s, "fingerprint", s.Fingerprint)
	}
	for _, s := range top.Users {
		add(s, "user", s.User)
	}
	return levels
}

// Levels is Stats as metrics.
func (p *Server) Levels() []telemetry.Level {
	st, pins := p.Stats(), p.pins()
	levels := []telemetry.Level{
		{Name: "mainstay_pooler_clients", Help: "Clients that are logged in.", Value: float64(st.Clients)},
		{Name: "mainstay_pooler_clients_max", Help: "Clients that may be logged in at once.", Value: float64(st.MaxClients)},
	}
	for _, d := range st.Databases {
		database := telemetry.Label{Name: "database", Value: d.Database}
		for _, s := range []struct {
			state string
			n     int
		}{{"active", d.Active}, {"idle", d.Idle}, {"connecting", d.Connecting}} {
			levels = append(levels, telemetry.Level{
				Name: "mainstay_pooler_servers", Help: "Connections to PostgreSQL by state: active (a client has it), idle, connecting.",
				Labels: []telemetry.Label{database, {Name: "state", Value: s.state}}, Value: float64(s.n),
			})
		}
		for _, l := range []telemetry.Level{
			{Name: "mainstay_pooler_servers_max", Help: "Connections to PostgreSQL that may be open at once.", Value: float64(d.Max)},
			{Name: "mainstay_pooler_waiting", Help: "Clients that wait for a connection to PostgreSQL.", Value: float64(d.Waiting)},
			{Name: "mainstay_pooler_longest_wait_seconds", Help: "How long the first of them has waited.", Value: d.LongestWait.Seconds()},
			{Name: "mainstay_pooler_longest_use_seconds", Help: "How long a client has had its connection to PostgreSQL.", Value: d.LongestUse.Seconds()},
			{Name: "mainstay_pooler_paused", Help: "1 while the database is paused: clients wait.", Value: bit(d.Paused != nil)},
			{Name: "mainstay_pooler_upstream_down", Help: "1 while PostgreSQL accepts no connection.", Value: bit(d.Outage != "")},
			{Name: "mainstay_pooler_listeners", Help: "Clients that listen for notifications, in transaction mode.", Value: float64(d.Listeners)},
			{Name: "mainstay_pooler_channels", Help: "Channels to which they listen, through one connection more.", Value: float64(d.Channels)},
			{Name: "mainstay_pooler_notifications_total", Help: "Notifications that were handed to clients.", Value: float64(d.notifications), Counter: true},
			{Name: "mainstay_pooler_listener_losses_total", Help: "How often that connection was lost while clients listened: notifications may be lost.", Value: float64(d.losses), Counter: true},
			{Name: "mainstay_pooler_wiped_total", Help: "How often a connection to PostgreSQL had its settings led back before another client got it, since what had been done there could not be read.", Value: float64(d.wiped), Counter: true},
		} {
			l.Labels = []telemetry.Label{database}
			levels = append(levels, l)
		}
		for reason, n := range audit.Tally(pins[d.Database]) {
			levels = append(levels, telemetry.Level{
				Name: "mainstay_pooler_pinned", Help: "Clients that keep their connection to PostgreSQL between transactions, by what they left there.",
				Labels: []telemetry.Label{database, {Name: "reason", Value: reason}}, Value: float64(n),
			})
		}
	}
	return append(levels, p.seen()...)
}

// pins is why clients keep their server, by database: one text for each client.
func (p *Server) pins() map[string][]string {
	p.mu.Lock()
	sessions := slices.Collect(maps.Values(p.sessions))
	p.mu.Unlock()
	by := map[string][]string{}
	for _, s := range sessions {
		if !s.admitted() {
			continue
		}
		s.mu.Lock()
		if s.pinned != "" {
			by[s.database] = append(by[s.database], s.pinned)
		}
		s.mu.Unlock()
	}
	return by
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// commands are further tags that need no memory of their own.
var commands = func() map[string]string {
	m := map[string]string{}
	for _, c := range []string{
		"MERGE", "COPY", "FETCH", "MOVE", "ROLLBACK", "START TRANSACTION", "SAVEPOINT", "RELEASE", "SET", "RESET", "SHOW",
		"DECLARE CURSOR", "CLOSE CURSOR", "LISTEN", "UNLISTEN", "NOTIFY", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL", "DISCARD ALL",
		"DO", "CALL", "EXPLAIN", "LOCK TABLE", "TRUNCATE TABLE", "REFRESH MATERIALIZED VIEW", "VACUUM", "ANALYZE",
	} {
		m[c] = c
	}
	return m
}()

// maxCommand bounds a command's name; PostgreSQL's longest has 32 bytes.
const maxCommand = 64

func commandName(tag []byte) string {
	switch string(tag) { // these, which nearly all are, need no memory of their own
	case "SELECT":
		return "SELECT"
	case "INSERT":
		return "INSERT"
	case "UPDATE":
		return "UPDATE"
	case "DELETE":
		return "DELETE"
	case "BEGIN":
		return "BEGIN"
	case "COMMIT":
		return "COMMIT"
	}
	if known, ok := commands[string(tag)]; ok {
		return known
	}
	return string(tag[:min(len(tag), maxCommand)])
}

// codeOf says what an error of PostgreSQL's own means.
func codeOf(sqlstate string) Code {
	if len(sqlstate) != 5 {
		return ServerError
	}
	switch sqlstate[:2] {
	case "53", "58", "XX":
		return ServerError
	case "57":
		if sqlstate == "57014" {
			return Canceled
		}
		return ServerError
	}
	return SQLError
}
