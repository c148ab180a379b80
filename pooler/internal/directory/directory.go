// Package directory looks users up: in PostgreSQL itself, by a query, and in a file
// of names and secrets.
//
// Only the pooler imports it. A [Directory] may be used by many logins at once; it
// keeps a connection to each server that it has asked lately, and no goroutine.
package directory

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/credential"
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
	Idle     time.Duration  `yaml:"idle" doc:"How long the connection that has asked is kept for the next question. 0: it is closed at once."`
}

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() {
	*c = Config{Query: Standard, Cache: 30 * time.Second, Idle: time.Minute}
}

// Validate reports every mistake.
func (c *Config) Validate(ps *setting.Problems) {
	if c.Query == "" && c.On {
		ps.Add("query", "is missing", "leave it out for the standard one")
	}
	if c.Cache < 0 {
		ps.Add("cache", "must not be negative", "try 30s")
	}
	if c.Idle < 0 {
		ps.Add("idle", "must not be negative", "try 1m")
	}
	if c.Upstream != "" {
		if _, err := upstream.Parse(c.Upstream.Reveal()); err != nil {
			ps.Add("upstream", err.Error(), "write postgres://user:password@host:5432/database")
		}
	}
}

// A Directory remembers what PostgreSQL said of its users.
type Directory struct {
	config  Config
	target  *upstream.Target // nil: the one that is given
	slots   chan struct{}
	secrets memory[secret]
	roles   memory[map[string]bool]
	lines   lines
}

// A secret is what a user's password is checked against.
type secret struct {
	credential *credential.Credential // nil: there is no such user, or it has no password
	until      time.Time              // of the password; zero: for ever
}

const (
	atOnce = 4               // queries under way
	limit  = 5 * time.Second // for one, and for one attempt to connect
)

// New returns the directory; nil if nobody needs it: it is off, and groups, whose members
// are asked for even so, are not looked for.
func New(c Config, groups bool) (*Directory, error) {
	if !c.On && !groups {
		return nil, nil
	}
	d := &Directory{config: c, slots: make(chan struct{}, atOnce), lines: lines{idle: c.Idle}}
	if c.Upstream != "" {
		t, err := upstream.Parse(c.Upstream.Reveal())
		if err != nil {
			return nil, err
		}
		d.target = t
	}
	return d, nil
}

// Close closes the connections that wait for a question, and keeps none any more. The
// directory goes on to answer, meanwhile too: servers may take their time, so no lock is
// to be held. It may be nil.
func (d *Directory) Close() {
	if d != nil {
		d.lines.close(true)
	}
}

// Renew closes the connections that wait for a question, as Close does. The directory may
// be nil.
func (d *Directory) Renew() {
	if d != nil {
		d.lines.close(false)
	}
}

// A Server is where a user is looked up.
type Server struct {
	Dial     upstream.Dial
	Target   *upstream.Target // unless the configuration names one; nil: there is none
	Patience time.Duration    // how long it may accept no connection, as while it is restarted
}

// Find returns the credential of a user, nil if there is none who may log in, or if the
// directory is there for groups alone. The same question is asked once at a time.
func (d *Directory) Find(ctx context.Context, at Server, user string) (*credential.Credential, error) {
	at.Target = d.where(at.Target)
	if !d.config.On || at.Target == nil || impossible(user) {
		return nil, nil
	}
	found, err := d.secrets.get(ctx, at.Target.String()+"\x00"+user, d.config.Cache, func() (secret, error) { return d.secret(at, user) })
	if err != nil || !found.until.IsZero() && !time.Now().Before(found.until) {
		return nil, err
	}
	return found.credential, nil
}

// Roles returns the roles that a user is, or is a member of, by whatever way. It is empty
// for somebody whom PostgreSQL does not know.
func (d *Directory) Roles(ctx context.Context, at Server, user string) (map[string]bool, error) {
	at.Target = d.where(at.Target)
	if at.Target == nil || impossible(user) {
		return nil, nil
	}
	return d.roles.get(ctx, at.Target.String()+"\x00"+user, d.config.Cache, func() (map[string]bool, error) {
		rows, err := d.ask(at, memberships, user)
		roles := map[string]bool{}
		for _, row := range rows {
			roles[row[0]] = true
		}
		return roles, err
	})
}

// MaxName is more than a role's name can have bytes: 63, unless PostgreSQL was built otherwise.
// Answers are kept by names that anybody may send.
const MaxName = 255

// impossible reports whether there cannot be a role with this name.
func impossible(user string) bool { return len(user) > MaxName || strings.ContainsRune(user, 0) }

// memberships are what pg_hba.conf's +role goes by: a superuser is not of every role.
const memberships = `WITH RECURSIVE of(oid) AS (
  SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1
  UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN of ON m.member = of.oid)
SELECT r.rolname FROM of JOIN pg_catalog.pg_roles r ON r.oid = of.oid`

// where is the server to be asked; nil if there is none.
func (d *Directory) where(at *upstream.Target) *upstream.Target {
	if d.target != nil {
		return d.target
	}
	return at
}

// Forget makes the next question about a user be asked anew.
func (d *Directory) Forget(at *upstream.Target, user string) {
	if at = d.where(at); at != nil {
		d.secrets.forget(at.String() + "\x00" + user)
	}
}

// secret asks for a user's.
func (d *Directory) secret(at Server, user string) (found secret, err error) {
	rows, err := d.ask(at, d.config.Query, user)
	if err == nil && len(rows) > 1 {
		err = errors.New("look the user up: auth_query returned more than one row")
	}
	if err != nil || len(rows) == 0 {
		return found, err
	}
	row := rows[0]
	if len(row) < 2 || row[0] != user || row[1] == "" {
		return found, nil // there is none, or it has no password
	}
	if len(row) > 2 {
		if found.until, err = validUntil(row[2]); err != nil {
			return found, fmt.Errorf("look the user up: %w", err)
		}
	}
	found.credential, err = credential.New(user, row[1], credential.Human)
	return found, err
}

// ask asks PostgreSQL a question about a user.
func (d *Directory) ask(at Server, sql, user string) (rows [][]string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit+at.Patience)
	defer cancel()
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return nil, errors.New("look the user up: too many are looked up at once")
	}
	if rows, err = d.lines.ask(ctx, at, sql, user); err != nil {
		return nil, fmt.Errorf("look the user up: %w", err)
	}
	return rows, nil
}

// validUntil reads a timestamptz of a session in UTC with DateStyle ISO.
func validUntil(text string) (time.Time, error) {
	switch text {
	case "", "infinity":
		return time.Time{}, nil
	case "-infinity":
		return time.Unix(1, 0), nil
	}
	if year, _, _ := strings.Cut(text, "-"); len(year) > 4 { // which time.Parse does not read
		if n, err := strconv.ParseUint(year, 10, 32); err == nil && n > 9999 {
			return time.Time{}, nil
		}
	}
	t, err := time.Parse("2006-01-02 15:04:05.999999-07", text)
	if err != nil {
		return t, fmt.Errorf("the third column, %q, is no time", text)
	}
	return t, nil
}
