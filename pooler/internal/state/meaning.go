package state

import (
	"slices"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// meaning are the settings that decide what a statement's text means when it is prepared: how it
// is read, which tables its names lead to, what its constants are, and, the last, how those are written that
// PostgreSQL turns into text when it plans it. Who may use tables is
// decided when it is executed; but the schemas that a role may not use are not looked into.
var meaning = [...]string{
	"search_path", "datestyle", "intervalstyle", "timezone", "timezone_abbreviations", conforming, "backslash_quote", "xmloption", "array_nulls",
	"transform_null_equals", "lc_monetary", "default_text_search_config",
	"extra_float_digits", "bytea_output", "quote_all_identifiers",
}

// MeansSame reports whether a text that is prepared under these settings means the same as under
// others, as far as their values tell.
func (s *Settings) MeansSame(o *Settings) bool { return s.same(o, Decides) }

// InterpretsSame is that for its constants: see Interprets.
func (s *Settings) InterpretsSame(o *Settings) bool { return s.same(o, Interprets) }

func (s *Settings) same(o *Settings, matters func(name string) bool) bool {
	if s.Equal(o) {
		return true
	}
	for _, name := range append(meaning[:], encoding, authorization, role) {
		if !matters(name) {
			continue
		}
		was, chosen := s.Get(name)
		if is, ok := o.Get(name); ok != chosen || is != was {
			return false
		}
	}
	return true
}

// Sense are those of the settings that decide what a text means.
func (s *Settings) Sense() *Settings {
	var list []pgwire.Param
	for _, p := range s.list {
		if Decides(p.Name) {
			list = append(list, p)
		}
	}
	return seal(list)
}

// Decides reports whether what a text means when it is prepared is decided by the setting of this name, in lower case.
func Decides(name string) bool {
	return slices.Contains(meaning[:], name) || name == encoding || name == authorization || name == role
}

// Interprets is that for what the text's constants mean, and how it is read. (Its names PostgreSQL looks up again where search_path leads
// elsewhere.)
func Interprets(name string) bool {
	return Decides(name) && name != "search_path" && name != authorization && name != role
}

// MostShown is how many characters of a setting Present shows.
const MostShown = 1000

// Present is the SQL, a statement that leaves nothing, that shows which settings that decide what a text means are
// not the server's own: as an audit's rows.
func Present() string {
	var names strings.Builder
	for _, name := range append(meaning[:], encoding) {
		names.WriteString(",'" + name + "'")
	}
	shown := func(name string) string {
		return " UNION ALL SELECT 's','" + name + "',pg_catalog.current_setting('" + name + "')"
	}
	return "SELECT 'a',name,pg_catalog.left(pg_catalog.current_setting(name)," + strconv.Itoa(MostShown) + ") FROM pg_catalog.pg_show_all_settings() WHERE source OPERATOR(pg_catalog.=) 'session'" +
		" AND pg_catalog.lower(name) OPERATOR(pg_catalog.=) ANY (ARRAY[" + names.String()[1:] + "])" + shown(role) + shown(authorization)
}

// Carried is the value that stands for a statement that SQL's PREPARE made by this text, under settings that mean the same
// as these; nil: they are not known.
func Carried(text string, under *Settings) string {
	key := "?"
	if under != nil && !strings.Contains(under.key, "\x01") {
		key = strings.ReplaceAll(under.Sense().key, "\x00", "\x01")
	}
	return text + "\x00" + key
}

// OfCarried takes such a value apart.
func OfCarried(value string) (text string, under *Settings) {
	text, key, _ := strings.Cut(value, "\x00")
	if key == "?" {
		return text, nil
	}
	var list []pgwire.Param
	for fields := strings.Split(key, "\x01"); len(fields) > 2; fields = fields[2:] {
		list = append(list, pgwire.Param{Name: fields[0], Value: fields[1]})
	}
	return text, seal(list)
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

// constants are the settings that decide what a constant without a type means, besides TimeZone, DateStyle and search_path,
// which PostgreSQL heeds itself; and how one is written that PostgreSQL turns into text when it plans what it stands in.
var constants = [...]string{"intervalstyle", "timezone_abbreviations", "xmloption", "array_nulls", "transform_null_equals", "lc_monetary",
	"extra_float_digits", "bytea_output", "quote_all_identifiers"}

// Constants is a key: under settings with equal ones constants mean the same. usual is what the server reports without any.
func (s *Settings) Constants(usual *Settings) string {
	zone, chosen := s.Get("timezone")
	if !chosen {
		zone, _ = usual.Get("TimeZone")
	}
	if zone = strings.ToLower(zone); zone == "etc/utc" {
		zone = "utc"
	}
	style, _ := s.Get("datestyle")
	order := dateOrder(style)
	if order == "" {
		style, _ = usual.Get("DateStyle")
		order = dateOrder(style)
	}
	key := []string{order, zone}
	for _, name := range constants {
		value, _ := s.Get(name)
		if digits, err := strconv.Atoi(value); err == nil && digits > 0 && name == "extra_float_digits" {
			value = "" // the default, 1, and drivers' 2 and 3 are the same since PostgreSQL 12
		}
		key = append(key, value)
	}
	return strings.Join(key, "\x00")
}

// dateOrder is how a DateStyle reads 01/02/03; "": as before. How dates are written matters to no constant.
func dateOrder(style string) (order string) {
	for word := range strings.FieldsFuncSeq(strings.ToLower(style), func(r rune) bool { return r < 'a' || r > 'z' }) {
		switch {
		case word == "ymd":
			order = word
		case word == "dmy" || strings.HasPrefix(word, "euro") || word == "german" && order == "":
			order = "dmy"
		case word == "mdy" || word == "us" || strings.HasPrefix(word, "noneuro"):
			order = "mdy"
		}
	}
	return order
}
