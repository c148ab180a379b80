package audit

import (
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// The catalog is asked in a transaction of its own, so that the client's search_path and
// limits do not matter.
const (
	catalog = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE;SET LOCAL search_path=pg_catalog;SET LOCAL statement_timeout='25s';"

	ours = "NOT IN (SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog','information_schema'))"

	sources = "SELECT p.oid,p.xmin,p.proname,p.prosrc FROM pg_proc p JOIN pg_language l ON l.oid=p.prolang AND l.lanname NOT IN ('internal','c') WHERE p.pronamespace " + ours
)

const columns = "SELECT md5(COALESCE(string_agg(a.attrelid::text||' '||a.attnum::text||a.xmin::text,',' ORDER BY a.attrelid,a.attnum),''))" +
	" FROM pg_attribute a JOIN pg_class c ON c.oid=a.attrelid WHERE c.oid>=16384 AND c.relkind IN ('r','v','m','f','p','c') AND c.relpersistence<>'t'"

// State is the SQL that asks for two marks: one changes with the sources of functions, and
// with what triggers, rules, policies and defaults use them, the other with the columns of
// tables and views. [Hidden] takes its row.
const State = catalog + "SELECT 'm',md5(COALESCE(string_agg(t,',' ORDER BY t),'')),(" + columns + ") FROM (SELECT oid::text||xmin::text AS t FROM (" + sources + ") f" +
	" UNION ALL SELECT oid::text||xmin::text FROM pg_trigger WHERE NOT tgisinternal UNION ALL SELECT oid::text||xmin::text FROM pg_rewrite WHERE oid>=16384" +
	" UNION ALL SELECT oid::text||xmin::text FROM pg_policy UNION ALL SELECT oid::text||xmin::text FROM pg_attrdef" +
	" UNION ALL SELECT oid::text||xmin::text FROM pg_constraint WHERE contype='c' AND oid>=16384) AS all_of_them;COMMIT"

// Catalog is the SQL that asks for those sources and uses, for PostgreSQL of this major
// version (0: unknown). [Hidden] takes its rows.
func Catalog(version int) string {
	source := "f.prosrc"
	if version >= 14 {
		source = "COALESCE(pg_get_function_sqlbody(f.oid),f.prosrc)"
	}
	// What depends on a function or view, by the table that holds it.
	const users = " CASE d.classid WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid=d.objid)" +
		" WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid=d.objid)" +
		" WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid=d.objid)" +
		" WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid=d.objid)" +
		" WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid=d.objid) END"
	const written = "CASE WHEN d.classid IN ('pg_trigger'::regclass,'pg_attrdef'::regclass,'pg_constraint'::regclass) THEN '!' ELSE '' END"
	return catalog + "SELECT 'f',f.proname," + source + " FROM (" + sources + ") f;" +
		"SELECT 'u',c.relname||" + written + ",p.proname||'(' FROM pg_depend d JOIN pg_proc p ON p.oid=d.refobjid JOIN pg_class c ON c.oid=" + users +
		" WHERE d.refclassid='pg_proc'::regclass AND p.pronamespace " + ours + ";" +
		"SELECT 'u',c.relname||side,v.relname||side FROM (VALUES(''),('!')) AS s(side),pg_depend d JOIN pg_class v ON v.oid=d.refobjid JOIN pg_class c ON c.oid=(SELECT ev_class FROM pg_rewrite WHERE oid=d.objid)" +
		" WHERE d.classid='pg_rewrite'::regclass AND d.refclassid='pg_class'::regclass AND c.oid<>v.oid AND c.relnamespace " + ours + ";COMMIT"
}

// Hidden is the answers to State and Catalog.
type Hidden struct {
	Mark    string // of what functions do
	Columns string // of what tables are like

	routines []scan.Routine
	links    []scan.Link
}

// Row takes one row. One that is not understood is passed over.
func (h *Hidden) Row(body []byte) error {
	var columns [3][]byte
	if !pgwire.Columns(body, columns[:]) {
		return nil
	}
	first, second := string(columns[1]), string(columns[2])
	switch string(columns[0]) {
	case "m":
		h.Mark, h.Columns = first, second
	case "f":
		h.routines = append(h.routines, scan.Routine{Name: first, Source: second})
	case "u":
		h.links = append(h.links, scan.Link{From: first, To: second})
	}
	return nil
}

// Hints are what the catalog's sources do.
func (h *Hidden) Hints() scan.Hints { return scan.Reveal(h.routines, h.links) }
