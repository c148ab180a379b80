// Package audit asks a server connection, between two transactions, what its client
// has left there: settings, temporary objects, locks, cursors, prepared statements,
// channels. What a text may have done is guessed by package scan; what it did is
// known here. So a rollback, a savepoint and a function's inner workings need no
// model of ours.
//
// Only the pooler imports it. It is pure: it makes the SQL and reads the rows.
package audit

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// A Question is what is to be found out.
type Question struct {
	Effects scan.Effect     // what the client's statements may have done
	Names   []string        // settings that they named
	Known   *state.Settings // those that the client had before
	Locally bool            // what was led back is that until the transaction's end
	Cleared scan.Effect     // what is surely gone, and not asked for: see [scan.Clears]
	Brief   bool            // a hash of all settings is asked for instead of their list: see [Brief]
	Hash    bool            // that is, too
	Untimed bool            // not within the time limits that the client has set
}

// What a question's effects make worth asking.
const (
	asksSettings = scan.Setting | scan.AnyChange | scan.Back | scan.Unseen | scan.Discards | scan.Nameless
	asksAll      = scan.AnyChange | scan.Back | scan.Unseen | scan.Discards | scan.Nameless
	asksTables   = scan.Temporary | scan.Unseen | scan.Discards
	asksLocks    = scan.Locks | scan.Unseen | scan.Discards
	asksCursors  = scan.Hold | scan.Unseen | scan.Discards
	asksPrepared = scan.Prepares | scan.Unseen | scan.Discards
	asksChannels = scan.Listens | scan.Unseen | scan.Discards
)

// Pins are the effects that an audit can find to last, and that keep a connection
// with its client.
const Pins = scan.Temporary | scan.Locks | scan.Hold | scan.Prepares

// Asked says which of the pins a question asks about.
func (q *Question) Asked() (pins scan.Effect) {
	for _, one := range [...]struct{ when, pin scan.Effect }{{asksTables, scan.Temporary}, {asksLocks, scan.Locks}, {asksCursors, scan.Hold}, {asksPrepared, scan.Prepares}} {
		if q.Effects&one.when != 0 {
			pins |= one.pin
		}
	}
	return pins
}

// Everything reports whether all of the client's settings are asked for.
func (q *Question) Everything() bool { return q.Effects&asksAll != 0 }

// The parts of the SQL. Operators are qualified, since the client's search_path may
// hold others of the same name.
const (
	begin    = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE;"
	everyone = "SELECT 'a',name,pg_catalog.current_setting(name) FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session';"
	tables   = "SELECT 't',NULL,NULL WHERE EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 2615" +
		" AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema());"
	locks = "SELECT 'l',NULL,NULL WHERE EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'" +
		" AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid());"
	cursors    = "SELECT 'c',NULL,NULL WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable);"
	statements = "SELECT CASE WHEN from_sql THEN 'p' ELSE 'o' END,name,CASE WHEN from_sql AND pg_catalog.octet_length(statement) OPERATOR(pg_catalog.<=) 65536" +
		" THEN statement END FROM pg_catalog.pg_prepared_statements;" // to list them all costs less than to count some
	channels = "SELECT 'n',channel,NULL FROM pg_catalog.pg_listening_channels() AS channel;"
)

// Shared is the SQL that lists the statements of the protocol that there are; its rows are for [Listing.Row].
const Shared = begin + "SET LOCAL statement_timeout=0;SELECT 'b',name,NULL FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql;COMMIT"

// lift asks for the client's time limits, for those that there are without it, and lifts them: from the next statement on
// PostgreSQL measures no time. They are not seen any more then.
var lift = liftOne("statement_timeout") + liftOne("lock_timeout")

func liftOne(name string) string {
	shown := ",'" + name + "',pg_catalog.current_setting('" + name + "');"
	return "SELECT 'v'" + shown + "SET LOCAL " + name + " TO DEFAULT;SELECT 'd'" + shown + "SET LOCAL " + name + "=0;"
}

// SQL is the question as one simple query; empty if there is nothing to ask.
func (q *Question) SQL() string {
	var sql strings.Builder
	if q.Effects&asksSettings != 0 && q.Cleared&scan.Setting == 0 {
		names := q.Names
		if q.Brief || q.Hash {
			sql.WriteString("EXECUTE " + briefName + ";")
		}
		if q.Everything() {
			if !q.Brief {
				sql.WriteString(everyone)
			}
			names = append([]string{"role", "session_authorization"}, names...)
		}
		recoded := slices.Contains(q.Names, "client_encoding")
		for _, p := range q.Known.All() {
			own := strings.Contains(p.Name, ".")
			if (q.Everything() && (own || !q.Brief) || recoded && !state.Plain(p.Value)) && !slices.Contains(names, p.Name) {
				names = append(slices.Clip(names), p.Name)
			}
		}
		if slices.Contains(names, "session_authorization") && !slices.Contains(names, "role") {
			names = append(slices.Clip(names), "role") // which SET SESSION AUTHORIZATION resets
		}
		if len(names) > 0 {
			sql.WriteString("SELECT 's',n,pg_catalog.current_setting(n,true) FROM pg_catalog.unnest(" + array(names) + ") AS n;")
		}
	}
	parts, asked := [...]struct {
		when, of scan.Effect
		sql      string
	}{
		{asksTables, scan.Temporary, tables}, {asksLocks, scan.Locks, locks}, {asksCursors, scan.Hold, cursors},
		{asksChannels, scan.Listens, channels}, {asksPrepared, scan.Prepares, statements}, // the last is asked apart, lest a forged statement hides it
	}, 0
	for _, part := range parts[:4] {
		if q.Effects&part.when != 0 && q.Cleared&part.of == 0 {
			asked++
		}
	}
	rest := q.Brief && asked == 4
	if rest {
		sql.WriteString("EXECUTE " + restName + ";")
	}
	for n, part := range parts {
		if q.Effects&part.when != 0 && q.Cleared&part.of == 0 && (!rest || n == 4) {
			sql.WriteString(part.sql)
		}
	}
	if sql.Len() == 0 {
		return ""
	}
	first := begin
	if q.Untimed {
		first += lift
	}
	return first + sql.String() + "COMMIT"
}

// Findings are the answer.
type Findings struct {
	Pins     scan.Effect
	Channels []string // to which the server listens
	Stuck    []string // names of statements that SQL's PREPARE made, and that cannot be carried
	Shared   int      // how many statements of the protocol there are that clients share, if they were asked for

	hash   string         // of the values of all settings
	forged bool           // there is a statement that has one of our names, and is not ours
	all    []pgwire.Param // every setting of the session
	named  []pgwire.Param // those that were asked for by name, and exist

	limits, usual []pgwire.Param // that were lifted: what the client has, and what there is without it

	statements []pgwire.Param // that SQL's PREPARE made: name and text
	brief      int            // how many of those of [Brief] there are
}

var errRow = errors.New("malformed row")

// Row takes one row of the answer.
func (f *Findings) Row(body []byte) error {
	var columns [3][]byte
	if !pgwire.Columns(body, columns[:]) || len(columns[0]) != 1 {
		return errRow
	}
	if columns[0][0] == 'o' {
		if prepared.Shared(columns[1]) {
			f.Shared++
		} else if name := string(columns[1]); name == briefName || name == restName {
			f.brief++
		}
		return nil
	}
	name, value := string(columns[1]), string(columns[2])
	switch columns[0][0] {
	case 'a':
		f.all = append(f.all, pgwire.Param{Name: strings.ToLower(name), Value: value})
	case 's':
		if columns[2] != nil {
			f.named = append(f.named, pgwire.Param{Name: name, Value: value})
		}
	case 'v':
		f.limits = append(f.limits, pgwire.Param{Name: name, Value: value})
	case 'd':
		f.usual = append(f.usual, pgwire.Param{Name: name, Value: value})
	case 't':
		f.Pins |= scan.Temporary
	case 'l':
		f.Pins |= scan.Locks
	case 'c':
		f.Pins |= scan.Hold
	case 'h':
		f.hash = name
	case 'p':
		if f.forged = f.forged || name == briefName || name == restName; f.forged {
			f.Pins |= scan.Prepares
			f.Stuck = append(f.Stuck, name)
			break
		}
		if named, ok := scan.PreparedBy(columns[2]); !ok || named != name || len(f.statements) >= maxStatements {
			f.Pins |= scan.Prepares
			f.Stuck = append(f.Stuck, name)
			break
		}
		f.statements = append(f.statements, pgwire.Param{Name: name, Value: value})
	case 'n':
		f.Channels = append(f.Channels, name)
	default:
		return errRow
	}
	return nil
}

// unlift puts the limits that were lifted in the place of what was seen of them since.
func (f *Findings) unlift() {
	for i, p := range f.limits {
		f.all = slices.DeleteFunc(f.all, func(seen pgwire.Param) bool { return seen.Name == p.Name })
		if i < len(f.usual) && f.usual[i] != p {
			f.all = append(f.all, p)
		}
		for j := range f.named {
			if f.named[j].Name == p.Name {
				f.named[j] = p
			}
		}
	}
}

// Settings says what the server has now, and what the client means it to have: the
// same, but for what went back to its default, which for the client is what it gave
// at login. user is who the connection logged in as.
func (f *Findings) Settings(q *Question, login *state.Settings, user string) (has, wants *state.Settings) {
	if q.Effects&asksSettings == 0 {
		return q.Known, q.Known
	}
	f.unlift()
	has = q.Known
	back := q.Effects&(scan.Back|scan.Discards) != 0
	if q.Cleared&(scan.Setting|scan.Discards) == scan.Setting { // but for who one is
		for _, name := range [...]string{"role", "session_authorization"} {
			if value, ok := q.Known.Get(name); ok {
				f.named = append(f.named, pgwire.Param{Name: name, Value: value})
			}
		}
	}
	if q.Everything() {
		has = state.None
		for _, p := range f.all {
			if !ofTransaction(p.Name) {
				has = has.With(p.Name, p.Value)
			}
		}
		for _, p := range known(q.Known) { // what is known by its name alone may be the server's own
			if _, listed := has.Get(p.Name); !listed && !q.mentions(p.Name) {
				has = has.With(p.Name, p.Value)
			}
		}
	}
	for _, p := range f.named {
		switch {
		case p.Name == "role" && p.Value == "none", p.Name == "session_authorization" && p.Value == user:
			has = has.Without(p.Name)
		case back && p.Value == "" && strings.Contains(p.Name, ".") && q.wentBack(p.Name):
			has = has.Without(p.Name)
		case ofTransaction(p.Name):
		case q.Everything() && !strings.Contains(p.Name, ".") && p.Name != "role" && p.Name != "session_authorization":
			// It is among all of them, unless it went back to its default, or has been that all along: see SET LOCAL, whose end is reported.
			if value, ok := q.Known.Get(p.Name); ok && value == p.Value && !back && !slices.Contains(q.Names, p.Name) && !slices.Contains(q.Names, "all") {
				has = has.With(p.Name, p.Value)
			}
		default:
			has = has.With(p.Name, p.Value)
		}
	}
	wants = has
	if q.Everything() {
		for _, p := range login.All() {
			if p.Name == "role" && !q.resetsRole() {
				continue // SET ROLE NONE stays, over RESET ALL too
			}
			if _, ok := has.Get(p.Name); !ok {
				wants = wants.With(p.Name, p.Value)
			}
		}
	}
	return has, wants
}

// ofTransaction reports whether a setting is of the transaction alone.
func ofTransaction(name string) bool {
	return name == "transaction_isolation" || name == "transaction_read_only" || name == "transaction_deferrable"
}

// wentBack reports whether a setting of the client's own that is empty now, as one is that was reset,
// may have been reset, and has not just stayed empty.
func (q *Question) wentBack(name string) bool {
	was, ok := q.Known.Get(name)
	return !ok || was != "" || q.mentions(name)
}

// mentions reports whether this setting may have been changed, by all that the texts say.
func (q *Question) mentions(name string) bool {
	const anything = scan.AnyChange | scan.Unseen | scan.Discards | scan.Nameless
	return q.Effects&anything != 0 || len(q.Names) >= scan.MaxMentions || slices.Contains(q.Names, name) || slices.Contains(q.Names, "all")
}

// resetsRole reports whether a role that is none went back there, rather than being set.
func (q *Question) resetsRole() bool {
	named := slices.Contains(q.Names, "role") || slices.Contains(q.Names, "session_authorization")
	return q.Effects&scan.Discards != 0 || q.Effects&scan.Back != 0 && named
}

// Restore is the SQL, a statement, that gives back what the client chose at login to those
// of its settings that a RESET has led to the server's defaults, in the transaction that is
// open; empty if there can be none: it takes a snapshot, behind which some statements are
// refused (SET TRANSACTION ISOLATION LEVEL).
func (q *Question) Restore(login *state.Settings) string {
	var rows []string
	for _, p := range login.All() {
		may := q.mentions(p.Name) || q.Effects&scan.Local != 0 // whose names nobody keeps
		if strings.Contains(p.Name, ".") {
			may = may && q.wentBack(p.Name)
		}
		if may && p.Name != "role" {
			local := strconv.FormatBool(q.Locally || !strings.Contains(p.Name, ".") && !q.mentions(p.Name)) // by SET LOCAL alone
			rows = append(rows, "("+state.Literal(p.Name)+","+state.Literal(p.Value)+","+local+")")
		}
	}
	if len(rows) == 0 {
		return ""
	}
	return "SELECT pg_catalog.set_config(chosen.name,chosen.value,chosen.local) IS NULL FROM (VALUES " + strings.Join(rows, ",") + ") AS chosen(name,value,local)" +
		" LEFT JOIN pg_catalog.pg_settings AS present ON pg_catalog.lower(present.name) OPERATOR(pg_catalog.=) chosen.name" +
		" WHERE CASE WHEN present.name IS NULL THEN pg_catalog.current_setting(chosen.name,true) OPERATOR(pg_catalog.=) ''" +
		" ELSE present.source OPERATOR(pg_catalog.<>) 'session' END"
}

// maxStatements bounds how many of a client's statements, of 64 KiB each, are carried.
const maxStatements = 100

// Statements are the texts by which SQL's PREPARE made what there is, by its name. If
// Pins has Prepares, there are others, which cannot be carried elsewhere by a text.
func (f *Findings) Statements() *state.Settings { return state.Of(f.statements) }

// Briefed reports whether the server has the statements of [Brief], or was not asked: code may drop them.
func (f *Findings) Briefed(q *Question) bool {
	return q.Effects&asksPrepared == 0 || q.Cleared&scan.Prepares != 0 || f.brief == 2
}

// Unset is the SQL that leads every setting back to the server's own.
const Unset = "SET SESSION AUTHORIZATION DEFAULT;RESET ALL"

// Wipe is the SQL, one simple query, that removes what was left behind, for the next
// client; empty if nothing was.
func Wipe(left scan.Effect) string {
	var sql strings.Builder
	for _, step := range [...]struct {
		of  scan.Effect
		sql string
	}{
		{asksCursors | scan.AnyChange, "CLOSE ALL;"},
		{asksSettings, Unset + ";"},
		{asksPrepared | scan.AnyChange, "DEALLOCATE ALL;"},
		{asksChannels | scan.AnyChange, "UNLISTEN *;"},
		{asksTables | scan.AnyChange, "DISCARD TEMP;"},
		{asksLocks | scan.AnyChange, "SELECT pg_catalog.pg_advisory_unlock_all();"},
		{scan.Sequence, "DISCARD SEQUENCES;"},
	} {
		if left&step.of != 0 {
			sql.WriteString(step.sql)
		}
	}
	if left&(scan.Nameless|scan.Opaque) != 0 {
		sql.WriteString(Reseed())
	}
	return sql.String()
}

// WipeUnseen is the SQL that removes what a client may have left without having been seen, but for what SQL's PREPARE made.
func WipeUnseen() string {
	return "CLOSE ALL;" + Unset + ";UNLISTEN *;DISCARD TEMP;SELECT pg_catalog.pg_advisory_unlock_all();" + Reseed()
}

// Reseed is the SQL that makes random() return what nobody knows. RESET ALL does not, and that it was given a seed may have been hidden.
func Reseed() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return fmt.Sprintf("SELECT pg_catalog.setseed(%.17f);", float64(binary.BigEndian.Uint64(b[:])>>11)/(1<<53))
}

// Wreck are effects that nothing undoes: such a connection is closed when its client
// leaves it.
const Wreck = scan.Loads | scan.Seeds | scan.Connects | scan.Keeps

// Sticky are pins that are known by the text alone.
const Sticky = Wreck | scan.Nameless

// reasons are the words for what keeps a connection with its client.
var reasons = [...]struct {
	pin  scan.Effect
	word string
}{
	{scan.Temporary, "temporary table"}, {scan.Locks, "advisory lock"}, {scan.Hold, "cursor with hold"},
	{scan.Seeds, "random seed"}, {scan.Connects, "dblink connection"}, {scan.Loads, "loaded library"},
	{scan.Nameless, "setting with a computed name"}, {scan.Prepares, "PREPARE"},
	{scan.Sequence, "sequence value"}, {scan.Keeps, "server memory"},
}

// Reasons names what keeps a connection with its client, for people.
func Reasons(pins scan.Effect) string {
	var words []string
	for _, r := range reasons {
		if pins&r.pin != 0 {
			words = append(words, r.word)
		}
	}
	return strings.Join(words, separator)
}

const separator = ", "

// Tally counts, by reason, what [Reasons] named of several connections; each reason
// that there is has its count, if only 0.
func Tally(named []string) map[string]int {
	n := make(map[string]int, len(reasons))
	for _, r := range reasons {
		n[r.word] = 0
	}
	for _, words := range named {
		for word := range strings.SplitSeq(words, separator) {
			if word != "" {
				n[word]++
			}
		}
	}
	return n
}
