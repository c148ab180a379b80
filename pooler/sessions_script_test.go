package pooler

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
)

// A step is what a client sends at once, and how many ReadyForQuery end the answer.
type step struct {
	story string // for people
	bytes string
	ready int // untilMarker: where that depends on what fails
}

// untilMarker is the ready of a step whose last cycle is the marker, which is answered like no other.
const untilMarker = -1

var marker = strings.Repeat(frame('C', "Pthere is none\x00"), markers) + frame('S', "")

const markers = 3

// An author writes a random session. The same seed gives the same session.
type author struct {
	*rand.Rand
	session int    // gives names that no other session has
	chose   bool   // settings at login
	routine string // what the session makes, changes and calls; mostly it does not
}

func (a *author) one(choices ...string) string { return choices[a.IntN(len(choices))] }

// startup is how the session logs in.
func (a *author) startup() (params []string) {
	if a.IntN(2) == 0 {
		return nil
	}
	a.chose = true
	for _, p := range [][2]string{
		{"application_name", fmt.Sprintf("it's %d", a.session)}, {"search_path", "other, public"}, {"timezone", "Asia/Tokyo"},
		{"options", `-c statement_timeout=55s --work-mem=9MB -c my.word=a\ b`}, {"datestyle", "German"},
	} {
		if a.IntN(5) == 0 {
			params = append(params, p[0], p[1])
		}
	}
	return params
}

// script writes the session's steps.
func (a *author) script() []step {
	steps := make([]step, 3+a.IntN(10))
	for i := range steps {
		steps[i] = a.step()
	}
	if a.session%8 > 0 {
		return steps
	}
	a.routine = fmt.Sprintf("%d", a.session/8%64) // few, since all of the catalog is looked at; none that another session has now
	steps = append(steps[:len(steps)/2], query("drop function if exists routine"+a.routine+"(), made"+a.routine+"()"))
	for range 3 + a.IntN(6) {
		steps = append(steps, a.step())
	}
	return steps
}

// step writes one to three cycles, sent in one go.
func (a *author) step() (all step) {
	amid := false
	for range 1 + a.IntN(6)/4 {
		var s step
		switch a.IntN(12) {
		case 0, 1, 2, 3, 4:
			s = query(a.alone())
		case 5:
			s = query(a.several())
		case 6:
			s = a.copy()
		default:
			s = a.pipeline()
		}
		all.story += s.story + "\n"
		all.bytes += s.bytes
		all.ready += s.ready
		amid = amid || s.ready == untilMarker
	}
	if amid {
		all.bytes += marker
		all.ready = untilMarker
	}
	return all
}

func query(sql string) step { return step{sql, frame('Q', sql+"\x00"), 1} }

// several are statements of one simple query: an implicit transaction.
func (a *author) several() string {
	list := make([]string, 2+a.IntN(3))
	for i := range list {
		list[i] = a.statement()
		if a.IntN(8) == 0 {
			list[i] = a.named()
		}
	}
	return strings.Join(list, "; ")
}

// alone is a statement that is a simple query.
func (a *author) alone() string {
	if a.IntN(16) == 0 {
		return a.named()
	}
	for {
		if sql := a.anything(); !a.chose || !localDefaults.MatchString(sql) {
			return sql
		}
	}
}

// named uses in SQL what the protocol prepares.
func (a *author) named() string {
	return a.one("execute p0", "execute p1 ('1')", "deallocate p0", "deallocate prepare p2", "prepare p1 as select 'by SQL'", "explain (costs off) execute p2")
}

// copy is a COPY that may fail, whose data is sent at once.
func (a *author) copy() step {
	sql := a.one("copy notes (session, n) from stdin", "copy nowhere from stdin", "copy (select n from fixture order by n) to stdout", "copy mine from stdin")
	line := fmt.Sprintf("%d\t%d\n", a.session, a.IntN(9))
	data := frame('d', a.one(line, line+line, "no number\n", line[:3])) + a.one(frame('c', ""), frame('f', "changed my mind\x00"))
	if a.IntN(3) == 0 {
		// By a name that nothing else uses: without its data it would be waited for forever.
		data = frame('C', "Scopy\x00") + frame('P', "copy\x00"+sql+"\x00\x00\x00") + bindTexts("", "copy", nil) + frame('E', "\x00\x00\x00\x00\x00") + a.one("", "", frame('H', ""), frame('d', "")) + data + frame('S', "")
		return step{sql + " extended " + fmt.Sprintf("%q", data), data, 1}
	}
	return step{sql + " with " + fmt.Sprintf("%q", data), frame('Q', sql+"\x00") + data, 1}
}

// bindTexts writes a Bind of text values; what is nil is null.
func bindTexts(portal, name string, values []string) string {
	body := portal + "\x00" + name + "\x00\x00\x00"
	body += string(binary.BigEndian.AppendUint16(nil, uint16(len(values))))
	for _, v := range values {
		body += string(binary.BigEndian.AppendUint32(nil, uint32(len(v)))) + v
	}
	return frame('B', body+"\x00\x00")
}

// pipeline writes messages of the extended protocol up to a Sync. Many of them fail,
// on purpose: a name is taken or there is none, a value is no number.
func (a *author) pipeline() step {
	var s step
	add := func(story, bytes string) {
		s.story += " " + story
		s.bytes += bytes
	}
	s.ready = 1
	behindOne := false
	for range 1 + a.IntN(4) {
		if a.IntN(24) == 0 { // skipped, if something has failed before
			sql := a.statement()
			add("query "+sql, frame('Q', sql+"\x00"))
			s.ready = untilMarker
		}
		name := a.one("", "", "p0", "p1", "p2")
		portal := a.one("", "", "", "c0")
		if a.IntN(3) > 0 {
			sql := a.statement()
			for makesRoutines.MatchString(sql) {
				sql = a.statement()
			}
			if behindOne && a.IntN(2) == 0 {
				sql = a.backslashes()
			}
			behindOne = backslashed.MatchString(sql)
			if !behindOne && a.IntN(3) == 0 {
				sql = a.one("select $1::text || coalesce(current_setting('my.word', true), '')", "select n, $1::int from fixture order by n",
					"insert into notes values ("+fmt.Sprint(a.session)+", $1::int)", "select set_config('my.word', $1::text, false)",
					"select set_config($1::text, 'x', false)", "select set_config('work_mem', $1::text || 'MB', true)")
			}
			add(fmt.Sprintf("parse %q %s", name, sql), frame('P', name+"\x00"+sql+"\x00\x00\x00"))
		}
		if a.IntN(6) == 0 {
			add("describe statement "+name, frame('D', "S"+name+"\x00"))
		}
		var values []string
		if a.IntN(2) == 0 {
			values = []string{a.one("1", "77", "word", "work_mem")}
		}
		add(fmt.Sprintf("bind %q %q %q", portal, name, values), bindTexts(portal, name, values))
		if a.IntN(4) == 0 {
			add("describe portal "+portal, frame('D', "P"+portal+"\x00"))
		}
		limit := a.one("\x00\x00\x00\x00", "\x00\x00\x00\x00", "\x00\x00\x00\x02")
		add(fmt.Sprintf("execute %q %d", portal, limit[3]), frame('E', portal+"\x00"+limit))
		switch a.IntN(10) {
		case 0:
			add("execute again", frame('E', portal+"\x00"+limit))
		case 1:
			add("flush", frame('H', ""))
		case 2:
			name := a.one("", "p0", "p1", "p2")
			add("close statement "+name, frame('C', "S"+name+"\x00"))
		case 3:
			add("close portal "+portal, frame('C', "P"+portal+"\x00"))
		}
	}
	add("sync", frame('S', ""))
	return s
}

// backslashed are what may change how a text is read.
var backslashed = regexp.MustCompile(`^set .*(conforming|my\.word)`)

// backslashes is a text whose constants are read in one way or another.
func (a *author) backslashes() string {
	return a.one(`select 'a\b'`, `select 'it\'s'`, `select 'a\', 'b'`, `select e'\x41', 'c\\d'`, `select u&'d\0061t'`, `set my.word = 'f\\g'`, `select set_config('my.word', 'h\i', false)`,
		`select 'a\'; select 'set my.word = 1'`, `select $1::text || 'j\'`)
}

// resets are statements that go back to what the client chose at login. Known: to what follows
// in the same message, or in the same cycle, they go back to the server's own defaults.
var resets = regexp.MustCompile(`default|discard all|reset|zone local`)

// Known: behind one of these PostgreSQL refuses to set the isolation of the transaction, where the client chose settings at login.
var localDefaults = regexp.MustCompile(`local .*(default|local)`)

// Known: what was prepared to call a function that was made in the same cycle, and is gone with it, is described otherwise.
var makesRoutines = regexp.MustCompile(`function routine|make\d`)

// statement writes one statement among others of its message or cycle.
func (a *author) statement() string {
	for {
		if sql := a.anything(); !a.chose || !resets.MatchString(sql) {
			return sql
		}
	}
}

func (a *author) anything() string {
	if a.routine != "" && a.IntN(3) == 0 {
		return a.hidden()
	}
	switch a.IntN(17) {
	case 0, 1:
		return a.transaction()
	case 2, 3, 4:
		return a.setting()
	case 5:
		return a.role()
	case 6, 7:
		return a.pinning()
	case 8:
		return a.one("selekt 1", "select 1/0", "select * from nowhere", "", "select 'x'::int", "select pg_catalog.set_config('nonsense', 'x', false)", "vacuum fixture")
	case 9:
		return a.one(fmt.Sprintf("insert into notes values (%d, %d)", a.session, a.IntN(9)),
			fmt.Sprintf("update notes set n = n + 1 where session = %d", a.session), fmt.Sprintf("delete from notes where session = %d and n < 4", a.session),
			fmt.Sprintf("do $$ begin insert into notes values (%d, 5); perform set_config('my.done', 'yes', %v); exception when others then raise notice 'no'; end $$", a.session, a.IntN(2) == 0))
	case 10:
		return a.hidden()
	default:
		return a.look()
	}
}

// hidden does by functions what others say themselves.
func (a *author) hidden() string {
	if a.routine != "" && a.IntN(2) == 0 {
		does := a.one("set_config('my.word', 'of a new one', false)", "set_config('my.other', 'now', true)", "remember('my.word', 'by another')", fmt.Sprintf("pg_try_advisory_lock(%d)", a.session*10), "current_user")
		makes := "create or replace function routine" + a.routine + "() returns text language sql as $f$ select (" + does + ")::text $f$"
		return a.one(makes, makes, "do $$ begin "+makes+"; end $$", "drop function routine"+a.routine+"()",
			"select routine"+a.routine+"()", "select routine"+a.routine+"()", "select routine"+a.routine+"()", "select make"+a.routine+"()", "select made"+a.routine+"()", "select made"+a.routine+"()")
	}
	return a.one("select remember('my.word', 'by a function')", "select remember('work_mem', '5MB')", "select remember('timezone', 'Asia/Tokyo')", "do $$ begin perform remember('my.other', 'by do'); end $$",
		"select become('lesser')", "select become('none')", fmt.Sprintf("select hold_on(%d)", a.session*10+a.IntN(3)), "select scratch()", "drop table scratched", "insert into watched values (1)", "call proceed()", "select * from seen_by",
		"select local_word()")
}

// transaction begins, ends or divides one.
func (a *author) transaction() string {
	return a.one("begin", "begin", "begin isolation level serializable read only", "start transaction isolation level repeatable read", "commit", "commit", "end",
		"rollback", "rollback", "abort and chain", "commit and chain", "savepoint a", "savepoint b", "rollback to a", "rollback to b", "release a", "prepare transaction 'x'",
		"set transaction read only", "set constraints all deferred", "set transaction isolation level serializable")
}

// setting changes settings in every way that there is.
func (a *author) setting() string {
	scope := a.one("", "", "session ", "local ")
	return a.one("set "+scope+"work_mem = '"+a.one("5MB", "6MB", "1kB", "7777kB")+"'", "set "+scope+"search_path = "+a.one("other", "public, other", `"$user", public`, "pg_catalog", "default", "''"),
		"set "+scope+"my.word to "+a.one("'it''s'", "default", "E'back\\\\slash'", "'{\"sub\": \"me\"}'"), "set "+scope+"timezone = "+a.one("'Asia/Tokyo'", "'UTC'", "default", "-3"),
		"set "+scope+"time zone local", "set "+scope+"datestyle = "+a.one("german", "'sql, dmy'", "default", "yesterday"), "set "+scope+"application_name = "+a.one("'me'", "''", "default"),
		"set "+scope+"names 'utf8'", "set "+scope+"extra_float_digits = "+a.one("0", "3", "99"), "set "+scope+"bytea_output = "+a.one("escape", "hex"), "set "+scope+"nonsense = 1",
		"set "+scope+"standard_conforming_strings = "+a.one("on", "on", "off"), "set "+scope+"default_transaction_read_only = "+a.one("on", "off", "off"),
		"set "+scope+"statement_timeout = "+a.one("'30s'", "0", "default"), "set "+scope+"log_min_messages = error",
		"reset all", "reset work_mem", "reset my.word", "reset search_path", "reset timezone", "reset nonsense", "reset statement_timeout", "reset application_name", "discard all", "discard plans", "discard temp",
		"set session characteristics as transaction isolation level "+a.one("serializable", "read committed"), "set session characteristics as transaction read only",
		"select set_config('my.word', '"+a.one("x", "", "y z")+"', "+a.one("true", "false")+")", "select set_config('my.' || 'word', 'computed', "+a.one("true", "false")+")",
		"select set_config(name, setting, false) from pg_settings where name = 'work_mem'", "with w as (select set_config('my.other', 'cte', false)) select * from w",
		"explain (costs off) select set_config('my.word', 'never', false)")
}

// role becomes somebody else. Known: SET ROLE to a role that the later SET SESSION
// AUTHORIZATION's user may not take cannot be carried (the session ends, 42501).
func (a *author) role() string {
	scope := a.one("", "", "session ", "local ")
	return a.one("set "+scope+"role lesser", "set "+scope+"role none", "reset role", "set "+scope+"role nobody_there", "set "+scope+"session authorization lesser",
		"set session authorization default", "reset session authorization", "select set_config('role', 'lesser', "+a.one("true", "false")+")")
}

// pinning leaves something that only the server has, or ends it.
func (a *author) pinning() string {
	key := fmt.Sprint(a.session*10 + a.IntN(3))
	return a.one("create temp table mine (session int, n int)", "create temp table mine as select 1 as session, 2 as n", "select 1 as session, 3 as n into temp mine", "insert into mine values (1, 1)",
		"create temp table mine (session int, n int) on commit drop", "select count(*) from mine", "drop table mine", "create temp view seen as select 1 as one", "drop view seen",
		"select pg_advisory_lock("+key+")", "select pg_try_advisory_lock_shared("+key+")", "select pg_advisory_unlock("+key+")", "select pg_advisory_unlock_all()", "select pg_advisory_xact_lock("+key+")",
		"prepare q0 as select $1::int + 1", "prepare q1 (text) as select $1 || current_user", "execute q0 (1)", "execute q1 ('x')", "execute q1", "deallocate q0", "deallocate prepare q1", "deallocate all",
		"declare held cursor with hold for select n from fixture order by n", "declare brief cursor for select n from fixture order by n", "fetch 2 from held", "fetch 2 from brief", "move 1 in held",
		"close held", "close brief", "close all", "listen here"+key, "listen here"+key, "unlisten here"+key, "unlisten *", "notify here"+key+", 'x'", "notify here"+key, "select pg_notify('here"+key+"', 'y')", "do $$ begin listen here"+key+"; end $$", "create temporary sequence counting", "select nextval('counting')", "drop sequence counting")
}

// look reads what the session is like.
func (a *author) look() string {
	return a.one("select n from fixture order by n limit 3", "select n from things order by n", "show work_mem", "show search_path", "show timezone", "show statement_timeout", "show all_nonsense",
		"select current_user, session_user", "select current_schema(), current_schemas(false)::text", "select nullif(current_setting('my.word', true), ''), nullif(current_setting('my.other', true), '')", "select current_setting('role')",
		"show transaction_isolation", "show transaction_read_only", "select '2026-02-03'::date", "select '\\x6162'::bytea, 0.1::float8 + 0.2::float8", `select 'a\\b'`,
		fmt.Sprintf("select count(*), sum(n) from notes where session = %d", a.session), "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
		"select name from pg_cursors where name in ('held', 'brief') order by name", "select name, parameter_types::text from pg_prepared_statements where from_sql order by name", "select * from pg_listening_channels()",
		"select relname from pg_class where relnamespace = pg_my_temp_schema() and relkind in ('r', 'v', 'S') order by 1", "select pg_current_xact_id_if_assigned() is not null", "select current_setting('application_name')",
		"select repeat('long', 5000)", "select generate_series(1, 300)", "show default_transaction_isolation", "show datestyle", "show standard_conforming_strings",
		"select pg_sleep(0.001)")
}
