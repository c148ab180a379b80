package audit

import (
	"strings"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// The catalog is asked in a transaction of its own, so that the client's search_path, limits and encoding, in which there may
// be no such letters, do not matter, and nothing temporary is found in its place (pg_temp comes first unless it is named). Nor does PostgreSQL compile the questions (from 11 on): that takes twenty times as long as to answer them, and
// the planner believes it to be worth it, since it takes them to be dear.
const (
	catalog = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE;SET LOCAL search_path=pg_catalog,pg_temp;SET LOCAL statement_timeout='25s';SET LOCAL lock_timeout='1s';SET LOCAL client_encoding=SQL_ASCII;" +
		"SELECT WHERE CASE WHEN current_setting('server_version_num')::int>=110000 THEN set_config('jit','off',true) END='';"

	ours = "NOT IN (SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog','information_schema'))" // of relations

	// Functions with a source, and those in C, or of PostgreSQL's own under another name, that may leave something.
	sources = "SELECT p.oid,p.xmin,p.proname,p.prosrc,l.lanname FROM pg_proc p JOIN pg_language l ON l.oid=p.prolang WHERE p.oid>=16384" +
		" AND CASE l.lanname WHEN 'internal' THEN p.prosrc ~ '^(set_config|pg_(try_)?advisory|setseed|pg_listening|pg_notify)'" +
		" WHEN 'c' THEN p.oid NOT IN (SELECT d.objid FROM pg_depend d JOIN pg_extension e ON e.oid=d.refobjid WHERE d.classid='pg_proc'::regclass" +
		" AND d.refclassid='pg_extension'::regclass AND d.deptype='e' AND e.extname IN (" + harmless + ")) ELSE true END"

	// Extensions whose functions in C leave nothing in a session, but for those that scan knows by name.
	harmless = "'address_standardizer','adminpack','amcheck','autoinc','bloom','btree_gin','btree_gist','citext','cube','dblink','dict_int','dict_xsyn','earthdistance'," +
		"'file_fdw','fuzzystrmatch','h3','hstore','hypopg','insert_username','intagg','intarray','isn','lo','ltree','moddatetime','old_snapshot','pageinspect'," +
		"'pg_buffercache','pg_cron','pg_freespacemap','pg_graphql','pg_hashids','pg_jsonschema','pg_net','pg_partman','pg_prewarm','pg_repack','pg_stat_monitor'," +
		"'pg_stat_statements','pg_surgery','pg_trgm','pg_visibility','pg_walinspect','pgaudit','pgcrypto','pgrouting','pgrowlocks','pgsodium','pgstattuple'," +
		"'plpgsql','plpgsql_check','postgis','postgis_raster','postgis_sfcgal','postgis_topology','postgres_fdw','refint','rum','seg','sslinfo','supabase_vault'," +
		"'tablefunc','tcn','timescaledb','tsm_system_rows','tsm_system_time','unaccent','uuid-ossp','vector','xml2'"
)

const columns = "SELECT md5(COALESCE(string_agg(a.attrelid::text||' '||a.attnum::text||a.xmin::text,',' ORDER BY a.attrelid,a.attnum),''))" +
	" FROM pg_attribute a JOIN pg_class c ON c.oid=a.attrelid WHERE c.oid>=16384 AND c.relkind IN ('r','v','m','f','p','c') AND c.relpersistence<>'t'"

// State is the SQL that asks for two marks: one changes with the sources of functions, and
// with what triggers, rules, policies, defaults, operators, casts and types use them, the other
// with the columns of tables and views, which is asked for if tables is true. [Hidden] takes its row.
func State(tables bool) string {
	if tables {
		return catalog + "SELECT 'm'," + mark + ",(" + columns + ")" + marked
	}
	return catalog + "SELECT 'm'," + mark + ",''" + marked
}

const (
	mark   = "md5(COALESCE(string_agg(t,',' ORDER BY t),''))"
	marked = " FROM (SELECT oid::text||xmin::text AS t FROM (" + sources + ") f" +
		" UNION ALL SELECT oid::text||xmin::text FROM pg_trigger WHERE NOT tgisinternal UNION ALL SELECT oid::text||xmin::text FROM pg_rewrite WHERE oid>=16384" +
		" UNION ALL SELECT oid::text||xmin::text FROM pg_policy UNION ALL SELECT oid::text||xmin::text FROM pg_attrdef" +
		" UNION ALL SELECT oid::text||xmin::text FROM pg_constraint WHERE contype IN ('c','f') AND oid>=16384" +
		// Under another name a table does the same; and there is what has a type of its database's own.
		" UNION ALL SELECT oid::text||relname FROM pg_class WHERE oid>=16384 AND relpersistence<>'t' AND (relhasrules OR relhastriggers OR relrowsecurity OR relchecks>0" +
		" OR relhassubclass OR oid IN (SELECT adrelid FROM pg_attrdef UNION ALL SELECT indrelid FROM pg_index WHERE indexrelid>=16384 AND (indexprs IS NOT NULL OR indpred IS NOT NULL)" +
		" UNION ALL SELECT objid FROM pg_depend WHERE classid='pg_class'::regclass AND refclassid='pg_type'::regclass AND refobjid>=16384 UNION ALL SELECT stxrelid FROM pg_statistic_ext) OR relkind='c')" +
		" UNION ALL SELECT objid::text||objsubid::text||refobjid::text FROM pg_depend WHERE classid='pg_class'::regclass AND refclassid='pg_type'::regclass AND refobjid>=16384" +
		" UNION ALL SELECT p.oid::text||p.proname FROM pg_aggregate a JOIN pg_proc p ON p.oid=a.aggfnoid WHERE p.oid>=16384" +
		" UNION ALL SELECT oid::text||xmin::text FROM pg_operator WHERE oid>=16384 UNION ALL SELECT oid::text||xmin::text FROM pg_cast WHERE oid>=16384" +
		" UNION ALL SELECT oid::text||xmin::text FROM pg_amproc WHERE oid>=16384 UNION ALL SELECT oid::text||xmin::text FROM pg_event_trigger" +
		" UNION ALL SELECT oid::text||xmin::text FROM pg_type WHERE oid>=16384 AND typtype='d' UNION ALL SELECT aggfnoid::oid::text||xmin::text FROM pg_aggregate WHERE aggfnoid::oid>=16384" +
		" UNION ALL SELECT indexrelid::text||xmin::text FROM pg_index WHERE indexrelid>=16384 AND (indexprs IS NOT NULL OR indpred IS NOT NULL)" +
		" UNION ALL SELECT oid::text||xmin::text FROM pg_statistic_ext UNION ALL SELECT inhrelid::text||xmin::text FROM pg_inherits) AS all_of_them;COMMIT"
)

// Catalog is the SQL that asks for those sources and uses, for PostgreSQL of this major
// version (0: unknown). [Hidden] takes its rows. To write views and their like as texts PostgreSQL locks the tables under them, for
// which it does not wait for long (55P03): without texts it does not, and what they do is known less well.
func Catalog(version int, texts bool) string {
	source := "f.prosrc"
	if version >= 14 {
		source = "COALESCE(pg_get_function_sqlbody(f.oid),f.prosrc)"
	}
	source = "CASE WHEN octet_length(f.prosrc)<=1048576 THEN " + source + " END" // longer ones are not read
	expressions := written
	if !texts {
		expressions = unwritten
	}
	// What depends on a function, operator or view, by the table that holds it.
	const users = " CASE d.classid WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid=d.objid)" +
		" WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid=d.objid)" +
		" WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid=d.objid)" +
		" WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid=d.objid)" +
		" WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid=d.objid)" +
		" WHEN 'pg_statistic_ext'::regclass THEN (SELECT stxrelid FROM pg_statistic_ext WHERE oid=d.objid)" +
		" WHEN 'pg_class'::regclass THEN COALESCE((SELECT indrelid FROM pg_index WHERE indexrelid=d.objid),d.objid) END"
	// What a constraint or index calls may be called by the planner, too, if it is immutable.
	const writes = "CASE WHEN d.classid IN ('pg_trigger'::regclass,'pg_attrdef'::regclass,'pg_statistic_ext'::regclass) THEN '!' ELSE '' END"
	// What is used: a function that is not PostgreSQL's, or an operator that is not.
	const used = "CASE d.refclassid WHEN 'pg_proc'::regclass THEN (SELECT q.proname||'(' FROM pg_proc q WHERE q.oid=d.refobjid AND q.oid>=16384)" +
		" WHEN 'pg_operator'::regclass THEN (SELECT chr(1)||o.oprname FROM pg_operator o WHERE o.oid=d.refobjid AND o.oid>=16384) END"
	return catalog + expressions + temporary + seeded + "SELECT CASE WHEN f.lanname IN ('c','internal') THEN 'c' WHEN f.lanname='plpgsql' OR f.lanname='sql' AND current_setting('server_version_num')::int>=180000 THEN 'p' WHEN f.lanname='sql' THEN 'f' ELSE 'g' END,f.proname," + source + " FROM (" + sources + ") f;" +
		"SELECT 'u',c.relname||" + writes + "," + used + " FROM pg_depend d JOIN pg_class c ON c.oid=" + users + " WHERE d.refclassid IN ('pg_proc'::regclass,'pg_operator'::regclass);" +
		"SELECT 'u',c.relname||side,v.relname||side FROM (VALUES(''),('!')) AS s(side),pg_depend d JOIN pg_class v ON v.oid=d.refobjid JOIN pg_class c ON c.oid=(SELECT ev_class FROM pg_rewrite WHERE oid=d.objid)" +
		" WHERE d.classid='pg_rewrite'::regclass AND d.refclassid='pg_class'::regclass AND c.oid<>v.oid AND c.relnamespace " + ours + ";" +
		// Functions of aggregates, and of bodies that are no text; operators; what fires with changes of the schema.
		"SELECT 'u',p.proname||'('," + used + " FROM pg_depend d JOIN pg_proc p ON p.oid=d.objid WHERE d.classid='pg_proc'::regclass AND d.refclassid IN ('pg_proc'::regclass,'pg_operator'::regclass);" +
		"SELECT 'u',chr(1)||o.oprname,p.proname||'(' FROM pg_operator o JOIN pg_proc p ON p.oid=o.oprcode WHERE o.oid>=16384 AND p.oid>=16384;" +
		"SELECT 'u',chr(1)||o.oprname,chr(3)||b.proname FROM pg_operator o JOIN (" + builtins + ") b ON b.oid=o.oprcode WHERE o.oid>=16384;" +
		"SELECT 'u',p.proname||'(',chr(3)||b.proname FROM pg_aggregate a JOIN (" + builtins + ") b ON b.oid IN (a.aggtransfn,a.aggfinalfn,a.aggmtransfn,a.aggmfinalfn,a.aggminvtransfn)" +
		" JOIN pg_proc p ON p.oid=a.aggfnoid WHERE a.aggfnoid::oid>=16384;" +
		"SELECT 'u',chr(2),p.proname||'(' FROM pg_event_trigger e JOIN pg_proc p ON p.oid=e.evtfoid WHERE e.evtenabled<>'D';" +
		// Who writes to one table writes to others: by foreign keys, to partitions, to heirs.
		"SELECT 'u',p.relname||'!',c.relname||'!' FROM pg_constraint k JOIN pg_class c ON c.oid=k.conrelid JOIN pg_class p ON p.oid=k.confrelid" +
		" WHERE k.contype='f' AND (k.confdeltype IN ('c','n','d') OR k.confupdtype IN ('c','n','d'));" +
		"SELECT 'u',p.relname||side,c.relname||side FROM (VALUES(''),('!')) AS s(side),pg_inherits i JOIN pg_class c ON c.oid=i.inhrelid JOIN pg_class p ON p.oid=i.inhparent;" +
		types + ";COMMIT"
}

// PostgreSQL keeps no account of who uses its own functions. They are looked for in the trees that it has made of expressions,
// of which those that hold one are asked for as texts.
var (
	builtins = "SELECT oid,proname FROM pg_proc WHERE pronamespace='pg_catalog'::regnamespace AND proname IN ('" + strings.Join(scan.Builtins, "','") + "')"

	holds = "::text ~ (SELECT ':(funcid|opfuncid|aggfnoid|winfnoid) ('||string_agg(oid::text,'|')||') ' FROM (" + builtins + ") b)"

	written = "SELECT 'e',c.relname,regexp_replace(pg_get_ruledef(r.oid),'^CREATE RULE','') FROM pg_rewrite r JOIN pg_class c ON c.oid=r.ev_class" +
		" WHERE r.oid>=16384 AND (r.ev_action" + holds + " OR r.ev_qual" + holds + " OR r.ev_action::text ~ '{NOTIFYSTMT');" +
		"SELECT 'e',c.relname||'!',pg_get_expr(d.adbin,d.adrelid) FROM pg_attrdef d JOIN pg_class c ON c.oid=d.adrelid WHERE d.adbin" + holds + ";" +
		"SELECT 'e',c.relname||'!',pg_get_expr(k.conbin,k.conrelid) FROM pg_constraint k JOIN pg_class c ON c.oid=k.conrelid WHERE k.contype='c' AND k.conbin" + holds + ";" +
		"SELECT 'e',c.relname,concat_ws(',',pg_get_expr(p.polqual,p.polrelid),pg_get_expr(p.polwithcheck,p.polrelid)) FROM pg_policy p JOIN pg_class c ON c.oid=p.polrelid" +
		" WHERE p.polqual" + holds + " OR p.polwithcheck" + holds + ";" +
		"SELECT 'e',c.relname||'!',substr(pg_get_triggerdef(t.oid),8) FROM pg_trigger t JOIN pg_class c ON c.oid=t.tgrelid WHERE t.tgqual" + holds + ";" +
		"SELECT 'e',proname||'(',pg_get_expr(proargdefaults,0) FROM pg_proc WHERE oid>=16384 AND proargdefaults" + holds + ";"

	// The same, but which functions they call alone.
	unwritten = "SELECT 'u',name,chr(3)||b.proname FROM (" +
		"SELECT c.relname::text,concat(r.ev_action,r.ev_qual) FROM pg_rewrite r JOIN pg_class c ON c.oid=r.ev_class WHERE r.oid>=16384" +
		" UNION ALL SELECT c.relname||'!',d.adbin::text FROM pg_attrdef d JOIN pg_class c ON c.oid=d.adrelid" +
		" UNION ALL SELECT c.relname||'!',k.conbin::text FROM pg_constraint k JOIN pg_class c ON c.oid=k.conrelid WHERE k.contype='c'" +
		" UNION ALL SELECT c.relname,concat(p.polqual,p.polwithcheck) FROM pg_policy p JOIN pg_class c ON c.oid=p.polrelid" +
		" UNION ALL SELECT c.relname||'!',t.tgqual::text FROM pg_trigger t JOIN pg_class c ON c.oid=t.tgrelid" +
		" UNION ALL SELECT proname||'(',proargdefaults::text FROM pg_proc WHERE oid>=16384" +
		") AS e(name,tree),regexp_matches(e.tree,':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+) ','g') AS m JOIN (" + builtins + ") b ON b.oid=m[1]::oid;"

	// A function's own seed stays when it is over.
	seeded = "SELECT 'e',p.proname||'(','setseed(0)' FROM pg_proc p WHERE p.oid>=16384 AND EXISTS (SELECT FROM unnest(p.proconfig) AS one WHERE lower(one) ~ '^seed=');"

	// What functions make is temporary: search_path leads there, first of all or behind schemas that may not exist.
	temporary = "SELECT 'e',p.proname||'(','pg_temp' FROM pg_proc p WHERE p.oid>=16384 AND EXISTS (SELECT FROM unnest(p.proconfig) AS one WHERE lower(one) ~ '^search_path=.*pg_temp'" +
		" AND NOT EXISTS (SELECT FROM pg_namespace n WHERE nspname<>'pg_catalog' AND nspname=ANY(string_to_array(replace(substr(split_part(lower(one),'pg_temp',1),13),'\"',''),', '))));"
)

// types asks which types use functions, when their values are read, written, checked, compared
// or cast, and what has such a type: a table, another type, a function. A cast or comparison
// between types of PostgreSQL's own may stand behind any text.
var types = "WITH RECURSIVE b AS (" + builtins + "), f(oid,name) AS (SELECT oid,proname||'(' FROM (" + sources + ") s UNION ALL SELECT oid,chr(3)||proname FROM b)," +
	" uses(typ,fn) AS (SELECT CASE WHEN castsource>=16384 THEN castsource ELSE casttarget END,castfunc FROM pg_cast WHERE oid>=16384" +
	" UNION SELECT casttarget,castfunc FROM pg_cast WHERE oid>=16384 AND casttarget>=16384" +
	" UNION SELECT k.contypid,d.refobjid FROM pg_constraint k JOIN pg_depend d ON d.classid='pg_constraint'::regclass AND d.objid=k.oid AND d.refclassid='pg_proc'::regclass WHERE k.contypid<>0" +
	" UNION SELECT k.contypid,o.oprcode FROM pg_constraint k JOIN pg_depend d ON d.classid='pg_constraint'::regclass AND d.objid=k.oid AND d.refclassid='pg_operator'::regclass JOIN pg_operator o ON o.oid=d.refobjid WHERE k.contypid<>0" +
	" UNION SELECT d.objid,d.refobjid FROM pg_depend d WHERE d.classid='pg_type'::regclass AND d.refclassid='pg_proc'::regclass" +
	" UNION SELECT CASE WHEN oprleft>=16384 OR oprright=0 THEN oprleft ELSE oprright END,oprcode FROM pg_operator WHERE oid>=16384 AND oprname IN ('=','<>','<','>','<=','>=','~~','!~~','~~*','!~~*','~','!~')" +
	" UNION SELECT k.contypid,m[1]::oid FROM pg_constraint k,regexp_matches(k.conbin::text,':(?:funcid|opfuncid) ([0-9]+) ','g') AS m WHERE k.contypid<>0" +
	" UNION SELECT t.oid,m[1]::oid FROM pg_type t,regexp_matches(t.typdefaultbin::text,':(?:funcid|opfuncid) ([0-9]+) ','g') AS m WHERE t.oid>=16384" +
	" UNION SELECT amproclefttype,amproc FROM pg_amproc WHERE oid>=16384 AND amproclefttype>=16384)," +
	" has(typ,of) AS (SELECT oid,typelem FROM pg_type WHERE typelem>=16384 UNION ALL SELECT oid,typbasetype FROM pg_type WHERE typbasetype>=16384 UNION ALL SELECT rngtypid,rngsubtype FROM pg_range" +
	" UNION ALL SELECT c.reltype,a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid=a.attrelid WHERE a.attnum>0 AND NOT a.attisdropped AND a.atttypid>=16384 AND c.reltype<>0)," +
	" closed(typ,fn) AS (SELECT u.typ,f.name FROM uses u JOIN f ON f.oid=u.fn UNION SELECT h.typ,c.fn FROM closed c JOIN has h ON h.of=c.typ WHERE c.typ>=16384)" +
	" SELECT 'u',CASE WHEN c.typ<16384 THEN '' ELSE t.typname END,c.fn FROM closed c JOIN pg_type t ON t.oid=c.typ" +
	" UNION SELECT 'u',p.proname||'(',c.fn FROM closed c JOIN pg_proc p ON c.typ=p.prorettype OR c.typ=ANY(p.proargtypes) OR c.typ=ANY(p.proallargtypes) WHERE c.typ>=16384"

// Hidden is the answers to State and Catalog.
type Hidden struct {
	Mark    string // of what functions do
	Columns string // of what tables are like; "": not asked for
	Plans   bool   // there are functions whose texts a session analyses but once

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
	kind := string(columns[0])
	if columns[2] == nil && (kind == "f" || kind == "p" || kind == "g") {
		kind = "c" // too long
	}
	h.Plans = h.Plans || string(columns[0]) == "p"
	switch kind {
	case "m":
		h.Mark, h.Columns = first, second
	case "f", "p":
		h.routines = append(h.routines, scan.Routine{Name: first, Source: second})
	case "g":
		h.routines = append(h.routines, scan.Routine{Name: first, Source: second, Language: scan.Foreign})
	case "c":
		h.routines = append(h.routines, scan.Routine{Name: first, Language: scan.Machine})
	case "e":
		h.routines = append(h.routines, scan.Routine{Name: first, Source: second, Language: scan.Expression})
	case "u":
		if columns[2] != nil {
			h.links = append(h.links, scan.Link{From: first, To: second})
		}
	}
	return nil
}

// Hints are what the catalog's sources do.
func (h *Hidden) Hints() scan.Hints { return scan.Reveal(h.routines, h.links) }
