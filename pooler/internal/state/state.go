// Package state knows what a PostgreSQL session carries beyond its transaction:
// the settings that a client gives at login, and the traces that it may leave on a
// connection, which must be wiped before another client gets it.
//
// Only the pooler imports it. It is pure: nothing here touches a connection.
package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// Settings are the run-time settings that a client gave at login. They are applied
// to each server connection that the client gets. They are immutable; equal ones
// have equal keys.
type Settings struct {
	key  string
	list []pgwire.Param // sorted by name, each name once
}

// None is a client that gave no settings.
var None = &Settings{}

// Equal reports whether a server with these settings needs nothing done for a client
// with those.
func (s *Settings) Equal(o *Settings) bool { return s == o || s.key == o.key }

// Key tells settings apart: equal ones have equal keys. It is empty for none.
func (s *Settings) Key() string { return s.key }

// OfStartup takes the run-time settings from a startup packet, those inside
// "options" included (-c name=value, --name=value).
func OfStartup(start *pgwire.Startup) (*Settings, error) {
	chosen := map[string]string{}
	for _, p := range start.Parameters {
		switch name := strings.ToLower(p.Name); {
		case name == "user" || name == "database" || strings.HasPrefix(name, "_pq_."):
		case name == "replication":
			if !slices.Contains([]string{"false", "off", "no", "0", ""}, p.Value) {
				return nil, refuse("0A000", "replication does not go through the pooler; connect to PostgreSQL directly")
			}
		case name == "options":
			if err := parseOptions(p.Value, chosen); err != nil {
				return nil, err
			}
		default:
			if err := choose(chosen, name, p.Value); err != nil {
				return nil, err
			}
		}
	}
	if len(chosen) == 0 {
		return None, nil
	}
	s := &Settings{}
	for name, value := range chosen {
		s.list = append(s.list, pgwire.Param{Name: name, Value: value})
	}
	slices.SortFunc(s.list, func(a, b pgwire.Param) int { return strings.Compare(a.Name, b.Name) })
	var key strings.Builder
	for _, p := range s.list {
		fmt.Fprintf(&key, "%s\x00%s\x00", p.Name, p.Value)
	}
	s.key = key.String()
	return s, nil
}

// A Refusal is why a startup packet cannot be obeyed.
type Refusal struct{ SQLState, Message string }

func (r *Refusal) Error() string { return r.Message }

func refuse(sqlstate, message string) error { return &Refusal{sqlstate, message} }

func choose(chosen map[string]string, name, value string) error {
	ok := name != ""
	for i, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || c == '_'
		ok = ok && (letter || i > 0 && (c == '.' || '0' <= c && c <= '9'))
	}
	if !ok {
		return refuse("42704", fmt.Sprintf("unrecognized configuration parameter %q", name))
	}
	chosen[name] = value
	return nil
}

// parseOptions reads command-line switches as PostgreSQL does: words split at white
// space, a backslash taking the next byte as it is.
func parseOptions(text string, chosen map[string]string) error {
	words := optionWords(text)
	for i := 0; i < len(words); i++ {
		assignment, ok := strings.CutPrefix(words[i], "--")
		if !ok {
			assignment, ok = strings.CutPrefix(words[i], "-c")
			if ok && assignment == "" && i+1 < len(words) {
				i++
				assignment = words[i]
			}
		}
		name, value, found := strings.Cut(assignment, "=")
		if !ok || !found {
			return refuse("0A000", fmt.Sprintf("option %q is not understood; write -c name=value", words[i]))
		}
		name = strings.ToLower(strings.ReplaceAll(name, "-", "_"))
		if err := choose(chosen, name, value); err != nil {
			return err
		}
	}
	return nil
}

func optionWords(text string) (words []string) {
	var word []byte
	for i, begun := 0, false; i <= len(text); i++ {
		switch {
		case i == len(text) || strings.IndexByte(" \t\n\v\f\r", text[i]) >= 0:
			if begun {
				words = append(words, string(word))
			}
			word, begun = word[:0], false
		case text[i] == '\\' && i+1 < len(text):
			i++
			word, begun = append(word, text[i]), true
		default:
			word, begun = append(word, text[i]), true
		}
	}
	return words
}

// Change is the SQL, one simple query, that leads a server from these settings to
// others; empty if there is nothing to do.
func (s *Settings) Change(to *Settings) string {
	var sql strings.Builder
	for _, p := range s.list {
		if !slices.ContainsFunc(to.list, func(q pgwire.Param) bool { return q.Name == p.Name }) {
			sql.WriteString("RESET " + p.Name + ";")
		}
	}
	for i, p := range to.list {
		// set_config reads lists such as search_path as a startup packet does; SET
		// would take a quoted one for a single name.
		if i == 0 {
			sql.WriteString("SELECT ")
		} else {
			sql.WriteString(",")
		}
		sql.WriteString("pg_catalog.set_config(" + literal(p.Name) + "," + literal(p.Value) + ",false)")
	}
	return sql.String()
}

// literal quotes a string whatever standard_conforming_strings says.
func literal(s string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// Traces are what a client may have left behind on a server connection, beyond its
// transaction. Each has its own way to be wiped.
type Traces uint8

const (
	Set       Traces = 1 << iota // SET, set_config, SET ROLE
	Prepared                     // PREPARE
	Listening                    // LISTEN
	Cursors                      // DECLARE … WITH HOLD
	Tables                       // CREATE TEMP …
	Locks                        // pg_advisory_lock
	Wreck                        // what nothing wipes: LOAD

	// Unseen is for statements that were not looked at.
	Unseen = Set | Tables | Locks
	Any    = Unseen | Prepared | Listening | Cursors
)

// OfTag says what a command may have left behind, by its tag
// (https://www.postgresql.org/docs/current/protocol-message-formats.html,
// CommandComplete). A SELECT's own text says more: see [OfText].
func OfTag(command []byte) Traces {
	switch string(command) {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT", "ROLLBACK", "MERGE", "COPY", "FETCH":
		return 0
	case "SET", "RESET":
		return Set
	case "PREPARE", "DEALLOCATE", "DEALLOCATE ALL":
		return Prepared
	case "LISTEN", "UNLISTEN":
		return Listening
	case "DECLARE CURSOR":
		return Cursors
	case "CREATE TABLE", "CREATE TABLE AS", "CREATE VIEW", "CREATE SEQUENCE", "CREATE FUNCTION", "CREATE TYPE":
		return Tables
	case "DO", "CALL", "DISCARD ALL", "EXECUTE":
		return Any
	case "LOAD":
		return Wreck
	}
	return 0
}

// OfText looks in a statement's text for the words without which neither a
// setting, nor a session's lock, nor a temporary table can come out of a statement
// whose tag does not tell. What a function does inside is not seen; a reset after every
// use is for those.
func OfText(text []byte) (left Traces) {
	for i := 0; i+4 <= len(text); i++ {
		switch text[i] | 0x20 {
		case 's':
			if hasFold(text[i:], "set_config") {
				left |= Set
			}
		case 'a':
			if hasFold(text[i:], "advisory") {
				left |= Locks
			}
		case 't':
			if hasFold(text[i:], "temp") {
				left |= Tables
			}
		}
	}
	return left
}

func hasFold(text []byte, word string) bool {
	return len(text) >= len(word) && text[1]|0x20 == word[1]|0x20 && bytes.EqualFold(text[:len(word)], []byte(word))
}

// Wipe is the SQL, one simple query, that removes what was left.
func (left Traces) Wipe() string {
	var sql strings.Builder
	for _, step := range [...]struct {
		of  Traces
		sql string
	}{
		{Cursors, "CLOSE ALL;"},
		{Set, "SET SESSION AUTHORIZATION DEFAULT;RESET ALL;"},
		{Prepared, "DEALLOCATE ALL;"},
		{Listening, "UNLISTEN *;"},
		{Tables, "DISCARD TEMP;"},
		{Locks, "SELECT pg_catalog.pg_advisory_unlock_all();"},
	} {
		if left&step.of != 0 {
			sql.WriteString(step.sql)
		}
	}
	return sql.String()
}
