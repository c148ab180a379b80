package pooler

import "unsafe"

// record finishes the exchange of a cycle that the server has answered.
func (s *session) record(c *cycle) {
	x := &s.exchange
	code := OK
	if x.DB.SQLState != "" {
		code = codeOf(x.DB.SQLState)
	}
	if s.mute {
		code = ClientGone
	}
	s.finish(c, code)
}

// recordEnd finishes the exchange that a session's end cut short.
func (s *session) recordEnd(e *ending) {
	s.mu.Lock()
	c, ok := s.cycles.pop()
	if !ok {
		c = s.next
	}
	s.mu.Unlock()
	x := &s.exchange
	if e.code != ClientGone && e.code != Stopping {
		x.Err = e
	}
	if x.DB.SQLState == "" && e.code != ClientGone {
		x.DB.SQLState = e.fault.SQLState
	}
	s.finish(&c, e.code)
}

func (s *session) finish(c *cycle, code Code) {
	x := &s.exchange
	x.Route, x.Color, x.Caller = s.database, s.color, s.user
	x.Code, x.Blame = string(code), meaning[code].Blame
	x.BytesIn = c.bytes
	if !c.start.IsZero() {
		x.Start = c.start
	}
	x.DB.Database, x.DB.User = s.database, s.user
	if c.traced {
		// Continue reads the text and keeps nothing of it.
		x.Trace.Continue(unsafe.String(&c.trace[0], len(c.trace)), "")
	} else {
		// A query that belongs to no trace is not worth one of its own.
		x.Trace.Continue("", "")
		x.Trace.Flags = 0
	}
	x.Finish(s.pooler.deps.Sink)
	s.busy = false
}

// commands are the tags that need no memory of their own.
var commands = func() map[string]string {
	m := map[string]string{}
	for _, c := range []string{
		"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "FETCH", "MOVE", "BEGIN", "COMMIT", "ROLLBACK",
		"START TRANSACTION", "SAVEPOINT", "RELEASE", "SET", "RESET", "SHOW", "DECLARE CURSOR", "CLOSE CURSOR",
		"LISTEN", "UNLISTEN", "NOTIFY", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL", "DISCARD ALL", "DO", "CALL",
		"EXPLAIN", "LOCK TABLE", "TRUNCATE TABLE", "REFRESH MATERIALIZED VIEW", "VACUUM", "ANALYZE",
	} {
		m[c] = c
	}
	return m
}()

// maxCommand bounds a command's name; PostgreSQL's longest has 32 bytes.
const maxCommand = 64

func commandName(tag []byte) string {
	if known, ok := commands[string(tag)]; ok {
		return known
	}
	return string(tag[:min(len(tag), maxCommand)])
}
