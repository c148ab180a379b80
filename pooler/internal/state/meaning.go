package state

import "strings"

// meaning are the settings that decide what a statement's text means when it is prepared: how it
// is read, which tables its names lead to, and what its constants are. Who may use those is
// decided when it is executed; but the schemas that a role may not use are not looked into.
var meaning = [...]string{
	"search_path", "datestyle", "intervalstyle", "timezone", "timezone_abbreviations", conforming, "backslash_quote", "xmloption", "array_nulls",
	"transform_null_equals", "lc_monetary", "default_text_search_config",
}

// MeansSame reports whether a text that is prepared under these settings means the same as under
// others, as far as their values tell.
func (s *Settings) MeansSame(o *Settings) bool {
	if s.Equal(o) {
		return true
	}
	for _, name := range append(meaning[:], encoding, authorization, role) {
		was, chosen := s.Get(name)
		if is, ok := o.Get(name); ok != chosen || is != was {
			return false
		}
	}
	return true
}

// Meaning is the SQL, simple queries in a transaction, that gives a server those of the settings that
// decide what a text means, until the transaction's end, whatever it has had.
func (s *Settings) Meaning() []string {
	var sql strings.Builder
	give := func(name string) {
		switch value, ok := s.Get(name); {
		case ok:
			sql.WriteString("SELECT pg_catalog.set_config(" + Literal(name) + "," + Literal(value) + ",true) IS NULL;")
		case name == authorization:
			sql.WriteString("SET LOCAL SESSION AUTHORIZATION DEFAULT;")
		default:
			sql.WriteString("SET LOCAL " + name + " TO DEFAULT;")
		}
	}
	give(authorization)
	give(role)
	give(encoding)
	first := sql.String() // the others' values are in that encoding
	sql.Reset()
	for _, name := range meaning {
		give(name)
	}
	return []string{first, sql.String()}
}
