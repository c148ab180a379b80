// Package directory looks users up: in PostgreSQL itself, by a query, and in a file
// of names and secrets.
//
// Only the pooler imports it. A [Directory] may be used by many logins at once; it
// keeps neither a connection nor a goroutine.
package directory

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// Standard asks the catalog. It needs a role that may read pg_authid.
const Standard = "SELECT rolname, rolpassword, rolvaliduntil FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin"

// Config says how to look a user up in PostgreSQL.
type Config struct {
	On       bool           `yaml:"on" doc:"Look users up in PostgreSQL that users and userlist do not hold."`
	Query    string         `yaml:"query" doc:"SQL that is given the user's name as $1 and returns its name, its password as PostgreSQL keeps it, and, if there is a third column, until when it is valid. It runs with search_path = pg_catalog, so all that is not built in needs its schema's name."`
	Upstream setting.Secret `yaml:"upstream" doc:"Where to ask, and as whom. Default: the server of the database that the client names, as the pooler itself logs in there."`
	Cache    time.Duration  `yaml:"cache" doc:"How long an answer is good for. A wrong password asks again."`
}

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() { *c = Config{Query: Standard, Cache: 30 * time.Second} }

// Validate reports every mistake.
func (c *Config) Validate(ps *setting.Problems) {
	if c.Query == "" && c.On {
		ps.Add("query", "is missing", "leave it out for the standard one")
	}
	if c.Cache < 0 {
		ps.Add("cache", "must not be negative", "try 30s")
	}
	if c.Upstream != "" {
		if _, err := upstream.Parse(c.Upstream.Reveal()); err != nil {
			ps.Add("upstream", err.Error(), "write postgres://user:password@host:5432/database")
		}
	}
}

// A Directory remembers what PostgreSQL said of its users.
type Directory struct {
	config Config
	target *upstream.Target // nil: the one that is given
	slots  chan struct{}

	mu    sync.Mutex
	known map[string]*entry
}

type entry struct {
	ready      chan struct{} // closed when the rest is there
	credential *credential.Credential
	until      time.Time // of the password; zero: for ever
	asked      time.Time
	err        error
}

const (
	maxKnown = 10_000
	atOnce   = 4               // queries under way
	limit    = 5 * time.Second // for one
)

// New returns the directory; nil if it is off.
func New(c Config) (*Directory, error) {
	if !c.On {
		return nil, nil
	}
	d := &Directory{config: c, slots: make(chan struct{}, atOnce), known: map[string]*entry{}}
	if c.Upstream != "" {
		t, err := upstream.Parse(c.Upstream.Reveal())
		if err != nil {
			return nil, err
		}
		d.target = t
	}
	return d, nil
}

// Find returns the credential of a user, nil if there is none who may log in. The
// same question is asked once at a time.
func (d *Directory) Find(ctx context.Context, dial upstream.Dial, at *upstream.Target, user string) (*credential.Credential, error) {
	if d.target != nil {
		at = d.target
	}
	if at == nil || strings.ContainsRune(user, 0) {
		return nil, nil
	}
	key := at.String() + "\x00" + user
	now := time.Now()
	d.mu.Lock()
	e := d.known[key]
	if e == nil || !e.asked.IsZero() && now.Sub(e.asked) >= d.config.Cache {
		e = &entry{ready: make(chan struct{})}
		if len(d.known) >= maxKnown {
			clear(d.known)
		}
		d.known[key] = e
		d.mu.Unlock()
		d.fill(e, dial, at, user)
		d.mu.Lock()
		e.asked = time.Now()
		if e.err != nil && d.known[key] == e {
			delete(d.known, key)
		}
		close(e.ready)
	}
	d.mu.Unlock()
	select {
	case <-e.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if e.err != nil || e.credential == nil || !e.until.IsZero() && !now.Before(e.until) {
		return nil, e.err
	}
	return e.credential, nil
}

// Forget makes the next question about a user be asked anew.
func (d *Directory) Forget(at *upstream.Target, user string) {
	if d.target != nil {
		at = d.target
	}
	if at != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.known, at.String()+"\x00"+user)
	}
}

func (d *Directory) fill(e *entry, dial upstream.Dial, at *upstream.Target, user string) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		e.err = errors.New("look the user up: too many are looked up at once")
		return
	}
	row, err := ask(ctx, dial, at, d.config.Query, user)
	if err != nil {
		e.err = fmt.Errorf("look the user up: %w", err)
		return
	}
	if len(row) < 2 || row[0] != user || row[1] == "" {
		return // there is none, or it has no password
	}
	if len(row) > 2 {
		if e.until, err = validUntil(row[2]); err != nil {
			e.err = fmt.Errorf("look the user up: %w", err)
			return
		}
	}
	e.credential, e.err = credential.New(user, row[1], credential.Human)
}

// validUntil reads a timestamptz of a session in UTC with DateStyle ISO.
func validUntil(text string) (time.Time, error) {
	switch text {
	case "", "infinity":
		return time.Time{}, nil
	case "-infinity":
		return time.Unix(1, 0), nil
	}
	t, err := time.Parse("2006-01-02 15:04:05.999999-07", text)
	if err != nil {
		return t, fmt.Errorf("the third column, %q, is no time", text)
	}
	return t, nil
}

// ask runs the query on a connection of its own, on which no client has any say, and
// returns its row; null is "".
func ask(ctx context.Context, dial upstream.Dial, at *upstream.Target, sql, user string) (row []string, err error) {
	at = at.Only("search_path=pg_catalog", "datestyle=ISO", "timezone=UTC", "statement_timeout=5000", "application_name=mainstay auth_query")
	c, err := at.Connect(ctx, dial)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if until, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(until); err != nil {
			return nil, err
		}
	}
	nul := []byte{0}
	bind := []byte{0, 0, 0, 0, 0, 1} // no names, formats all text, one parameter
	bind = binary.BigEndian.AppendUint32(bind, uint32(len(user)))
	bind = append(append(bind, user...), 0, 0)
	out := pgwire.Append(nil, pgwire.Parse, nul, []byte(sql), nul, []byte{0, 0})
	out = pgwire.Append(out, pgwire.Bind, bind)
	out = pgwire.Append(out, pgwire.Execute, []byte{0, 0, 0, 0, 2})
	out = pgwire.Append(out, pgwire.Sync)
	out = pgwire.Append(out, pgwire.Terminate)
	if _, err := c.Write(out); err != nil {
		return nil, err
	}
	rows := 0
	var refused error
	for {
		typ, body, err := c.In.Next()
		if err != nil {
			return nil, err
		}
		switch typ {
		case pgwire.DataRow:
			rows++
			if row, err = columns(body); err != nil {
				return nil, err
			}
		case pgwire.ErrorResponse:
			refused = fmt.Errorf("auth_query: %s (%s)", pgwire.Field(body, 'M'), pgwire.Field(body, 'C'))
		case pgwire.ReadyForQuery:
			if rows > 1 {
				return nil, errors.New("auth_query returned more than one row")
			}
			return row, refused
		}
	}
}

func columns(body []byte) (row []string, err error) {
	malformed := errors.New("malformed DataRow")
	if len(body) < 2 {
		return nil, malformed
	}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	for range n {
		if len(body) < 4 {
			return nil, malformed
		}
		size := int32(binary.BigEndian.Uint32(body))
		body = body[4:]
		if size < 0 {
			row = append(row, "")
			continue
		}
		if int(size) > len(body) {
			return nil, malformed
		}
		row = append(row, string(body[:size]))
		body = body[size:]
	}
	return row, nil
}

// ReadList reads a file of users: on each line a name and a secret, both in double
// quotes, as PgBouncer's auth_file has them. A quote inside is doubled; a line that
// begins with ; or # says nothing.
func ReadList(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseList(string(text))
}

func parseList(text string) (map[string]string, error) {
	users := map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == ';' || line[0] == '#' {
			continue
		}
		name, rest, ok1 := unquote(line)
		secret, _, ok2 := unquote(strings.TrimLeft(rest, " \t"))
		if !ok1 || !ok2 || name == "" || secret == "" {
			return nil, fmt.Errorf(`line %d is not "user" "secret"`, i+1)
		}
		users[name] = secret
	}
	return users, nil
}

func unquote(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		return "", "", false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), s[i+1:], true
	}
	return "", "", false
}
