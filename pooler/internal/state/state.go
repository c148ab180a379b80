// Package state knows the settings that a client has chosen for its PostgreSQL
// session, at login or since, as a value: they can be compared, and carried from one
// server connection to another.
//
// Only the pooler imports it. It is pure: nothing here touches a connection.
package state

import (
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// Settings are run-time settings by name. They are immutable; equal ones have equal
// keys, and those of one [Table] are the same.
type Settings struct {
	key    string
	list   []pgwire.Param // sorted by name, each name once
	traits atomic.Uint32  // once somebody has asked
	told   atomic.Pointer[Settings]
}

// None is a client that chose nothing.
var None = &Settings{}

// Equal reports whether a server with these settings needs nothing done for a client
// with those.
func (s *Settings) Equal(o *Settings) bool { return s == o || s.key == o.key }

// conforming is the setting that says whether plain strings know backslash escapes.
const conforming = "standard_conforming_strings"

// Traits of settings, which are asked for with each statement or transaction, and looked up once.
const (
	known = 1 << iota
	escapes
	temporary
)

func (s *Settings) has(trait uint32) bool {
	has := s.traits.Load()
	if has == 0 {
		has = known
		if v, _ := s.Get(conforming); v == "off" {
			has |= escapes
		}
		if v, _ := s.Get("search_path"); toTemporary(v) {
			has |= temporary
		}
		s.traits.Store(has)
	}
	return has&trait != 0
}

// toTemporary reports whether a search_path may lead to what is temporary before all else: many name it last, for safety.
func toTemporary(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(strings.ReplaceAll(path, " ", ""), `"$user",`), ",")
	return strings.Contains(strings.ToLower(first), "pg_temp")
}

// Backslash reports whether plain strings know backslash escapes.
func (s *Settings) Backslash() bool { return s.has(escapes) }

// Temporary reports whether tables that are not said to be temporary may be: search_path leads there.
func (s *Settings) Temporary() bool { return s.has(temporary) }

// Tell notes what a server reports to clients that choose these at login.
func (s *Settings) Tell(reports *Settings) {
	if s.Len() > 0 {
		s.told.Store(reports)
	}
}

// Told is what was noted last; None, if nothing was.
func (s *Settings) Told() *Settings {
	if told := s.told.Load(); told != nil {
		return told
	}
	return None
}

// Key tells settings apart: equal ones have equal keys. It is empty for none.
func (s *Settings) Key() string { return s.key }

// Len counts them.
func (s *Settings) Len() int { return len(s.list) }

// All lists them by name. The slice must not be changed.
func (s *Settings) All() []pgwire.Param { return s.list }

// Get returns one setting.
func (s *Settings) Get(name string) (value string, ok bool) {
	i, ok := slices.BinarySearchFunc(s.list, name, byName)
	if !ok {
		return "", false
	}
	return s.list[i].Value, true
}

func byName(p pgwire.Param, name string) int { return strings.Compare(p.Name, name) }

// With returns the settings with one more, or another value of one.
func (s *Settings) With(name, value string) *Settings {
	i, ok := slices.BinarySearchFunc(s.list, name, byName)
	if ok && s.list[i].Value == value {
		return s
	}
	list := slices.Clone(s.list)
	if ok {
		list[i].Value = value
	} else {
		list = slices.Insert(list, i, pgwire.Param{Name: name, Value: value})
	}
	return seal(list)
}

// Without returns the settings without one.
func (s *Settings) Without(name string) *Settings {
	i, ok := slices.BinarySearchFunc(s.list, name, byName)
	if !ok {
		return s
	}
	return seal(slices.Delete(slices.Clone(s.list), i, i+1))
}

// seal makes settings of a sorted list, which must not be changed any more.
func seal(list []pgwire.Param) *Settings {
	if len(list) == 0 {
		return None
	}
	n := 0
	for _, p := range list {
		n += len(p.Name) + len(p.Value) + 2
	}
	var key strings.Builder
	key.Grow(n)
	for _, p := range list {
		key.WriteString(p.Name)
		key.WriteByte(0)
		key.WriteString(p.Value)
		key.WriteByte(0)
	}
	return &Settings{key: key.String(), list: list}
}

// Of makes settings of a list, of which the last of a name counts.
func Of(list []pgwire.Param) *Settings {
	s := None
	for _, p := range list {
		s = s.With(p.Name, p.Value)
	}
	return s
}

// Settings that are changed apart from the others: what a client may set, and may
// see, depends on them.
const (
	role          = "role"
	authorization = "session_authorization"
	encoding      = "client_encoding"
)

// Change is the SQL, simple queries that each are carried out as a whole or not at
// all, that leads a server from these settings to others. Mostly it is one query;
// none if there is nothing to do. back is how many statements, the first of the first
// query, lead back what others do not have.
func (s *Settings) Change(to *Settings) (queries []string, back int) {
	if s.Equal(to) {
		return nil, 0
	}
	var sql strings.Builder
	leave, all := s.leave(to)
	recodes := s.Recodes(to)
	for _, statement := range leave {
		sql.WriteString(statement + ";")
	}
	if all {
		s = None
	}
	if recodes {
		if is, ok := to.Get(encoding); ok {
			sql.WriteString("SELECT " + assign(encoding, is))
		}
		queries = append(queries, sql.String())
		sql.Reset()
	}
	separator := "SELECT "
	set := func(name, value string) {
		sql.WriteString(separator + assign(name, value))
		separator = ","
	}
	for _, p := range to.list {
		if was, ok := s.Get(p.Name); p.Name != role && p.Name != authorization && (!ok || was != p.Value) {
			set(p.Name, p.Value)
		}
	}
	for _, name := range []string{authorization, role} {
		if value, ok := to.Get(name); ok {
			if separator == "," {
				sql.WriteString(";")
			}
			separator = "SELECT "
			set(name, value)
		}
	}
	if sql.Len() > 0 {
		queries = append(queries, sql.String())
	}
	return queries, len(leave)
}

// timeout is the setting that may cut short what changes settings.
const timeout = "statement_timeout"

// leave is what leads back those that others do not have; all is whether it does so to those that they have, too. RESET ALL
// asks for no rights, and knows no name that has become another's: a function of a superuser's may have set what its
// caller may not, and a library may have taken a prefix for itself since.
func (s *Settings) leave(to *Settings) (statements []string, all bool) {
	if was, ok := s.Get(timeout); ok {
		if is, kept := to.Get(timeout); !kept || is != was {
			statements = append(statements, "RESET "+timeout)
		}
	}
	if _, ok := s.Get(authorization); ok {
		statements = append(statements, "RESET SESSION AUTHORIZATION")
	}
	if _, ok := s.Get(role); ok {
		statements = append(statements, "RESET ROLE")
	}
	few := len(statements)
	for _, p := range s.list {
		if _, kept := to.Get(p.Name); kept || p.Name == role || p.Name == authorization || p.Name == timeout {
			continue
		}
		if strings.Contains(p.Name, ".") || privileged(p.Name) {
			return append(statements[:few], "RESET ALL"), true
		}
		statements = append(statements, "RESET "+identifier(p.Name))
	}
	return statements, false
}

// SQL is what sets these where nothing is set.
func (s *Settings) SQL() string {
	queries, _ := None.Change(s)
	return strings.Join(queries, ";")
}

// Recodes reports whether others, whose values are not the same in every encoding, are to be sent in another one than
// these: PostgreSQL reads a whole query in the encoding that is in force when it comes.
func (s *Settings) Recodes(to *Settings) bool {
	was, had := s.Get(encoding)
	is, has := to.Get(encoding)
	return (had != has || is != was) && !to.plain()
}

// listed are the settings whose values are lists of names, which SET would take for one name.
var listed = []string{"search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"}

// privileged reports whether only a superuser may set a setting (as of PostgreSQL 17), which a client may be no more that
// RESET ALL leads it back for.
func privileged(name string) bool {
	switch name {
	case "allow_system_table_mods", "allow_in_place_tablespaces", "backtrace_functions", "commit_delay", "compute_query_id", "deadlock_timeout", "dynamic_library_path",
		"ignore_checksum_failure", "jit_dump_bitcode", "lc_messages", "lo_compat_privileges", "max_stack_depth", "session_preload_libraries",
		"session_replication_role", "temp_file_limit", "update_process_title", "zero_damaged_pages":
		return true
	}
	return slices.ContainsFunc([]string{"log_", "track_", "wal_", "debug_", "auto_explain.", "pg_stat_statements."}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// Again is the SQL, statements of which each says no more than that it is done, or returns no rows, that gives again what these say
// of a setting that was led back to the server's own: of "all" those that RESET ALL leads back, of "discard" those
// that DISCARD ALL does; local is whether until the transaction's end.
func (s *Settings) Again(name string, local bool) (sql []string) {
	if !s.plain() {
		return nil // they may not be in the encoding that there is then
	}
	scope, flag := "SET ", ",false"
	if local {
		scope, flag = "SET LOCAL ", ",true"
	}
	for _, p := range s.list {
		switch {
		case p.Name == name, name == "discard", name == "all" && p.Name != role, name == authorization && p.Name == role:
		default:
			continue
		}
		if privileged(p.Name) {
			continue // that might be refused
		}
		if p.Name == "search_path" {
			if names := asNames(p.Value); names != "" {
				sql = append(sql, scope+"search_path TO "+names) // unlike a SELECT it takes no snapshot
				continue
			}
		}
		if slices.Contains(listed, p.Name) {
			sql = append(sql, "SELECT WHERE pg_catalog.set_config("+Literal(p.Name)+","+Literal(p.Value)+flag+") IS NULL")
			continue
		}
		sql = append(sql, scope+identifier(p.Name)+" TO "+Literal(p.Value))
	}
	return sql
}

// Wholly reports whether that gives all of these again.
func (s *Settings) Wholly() bool {
	return s.plain() && !slices.ContainsFunc(s.list, func(p pgwire.Param) bool { return privileged(p.Name) })
}

// What SET writes of a name: in quotes, unless it needs none.
var (
	plainName  = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)
	quotedName = regexp.MustCompile(`^"[^"]+"$`)
)

// asNames is a list of names as SET takes it, if SET would write this value itself; empty otherwise. (A keyword that was
// not quoted is then quoted.)
func asNames(value string) string {
	names := strings.Split(value, ", ")
	for i, name := range names {
		if quotedName.MatchString(name) && !plainName.MatchString(name[1:len(name)-1]) {
			name = name[1 : len(name)-1]
		} else if !plainName.MatchString(name) {
			return ""
		}
		names[i] = Literal(name)
	}
	return strings.Join(names, ",")
}

// Forget is the SQL that drops the prepared statements that others do not have by the
// same name and text, where settings stand for statements; a ";" ends each of n.
func (s *Settings) Forget(others *Settings) (_ string, n int) {
	var sql strings.Builder
	for _, p := range s.list {
		if text, ok := others.Get(p.Name); !ok || text != p.Value {
			sql.WriteString(`DEALLOCATE "` + strings.ReplaceAll(p.Name, `"`, `""`) + `";`)
			n++
		}
	}
	return sql.String(), n
}

// Make calls yield for each of these that others do not have by the same name and value.
func (s *Settings) Make(others *Settings, yield func(name, value string)) {
	for _, p := range s.list {
		if text, ok := others.Get(p.Name); !ok || text != p.Value {
			yield(p.Name, p.Value)
		}
	}
}

// plain reports whether the values are the same in every encoding.
func (s *Settings) plain() bool { return Plain(s.key) }

// Plain reports whether a text is the same in every encoding.
func Plain(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool { return r >= 0x80 }) < 0
}

// assign calls set_config: it reads lists such as search_path as a startup packet
// does; SET would take a quoted one for a single name.
// It returns nothing, since a value may be long.
func assign(name, value string) string {
	return "pg_catalog.set_config(" + Literal(name) + "," + Literal(value) + ",false) IS NULL"
}

// Literal quotes a string so that it is the same whatever standard_conforming_strings and backslash_quote say, and whatever
// the encoding: there is no escape in it. In some encodings half a character may be a backslash, or a letter, but never a
// quote or a dollar.
func Literal(s string) string {
	if !strings.ContainsAny(s, `'\`) {
		return "'" + s + "'"
	}
	tag := "$_ms$"
	for strings.Index(s+tag, tag) < len(s) { // it ends where the first one stands
		tag = "$_ms" + tag[1:]
	}
	return tag + s + tag
}

// identifier quotes a setting's name, part by part.
func identifier(name string) string {
	parts := strings.Split(name, ".")
	for i, part := range parts {
		parts[i] = `"` + strings.ReplaceAll(part, `"`, `""`) + `"`
	}
	return strings.Join(parts, ".")
}

// Off reports whether PostgreSQL takes a boolean setting's value for false.
func Off(value string) bool {
	value = strings.ToLower(value)
	return value == "0" || len(value) > 1 && strings.HasPrefix("off", value) || value != "" && (strings.HasPrefix("false", value) || strings.HasPrefix("no", value))
}
