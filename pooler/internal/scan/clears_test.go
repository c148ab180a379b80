package scan

import "testing"

func TestWhatATextClearsIsKnownIfItDoesNothingElse(t *testing.T) {
	const all = Setting | Discards | Temporary | Locks | Hold | Listens | Prepares
	for sql, want := range map[string]Effect{
		"DISCARD ALL": all, " discard /* it */ all ;": all, "Reset All; -- now": Setting, "close all": Hold, "deallocate all": Prepares, "unlisten *": Listens,
		"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;":                                                           Locks | Hold | Listens | Setting, // asyncpg
		"SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP": all &^ Prepares,                  // Npgsql
		"select pg_catalog.pg_advisory_unlock_all()":                                                                                      Locks, "discard temporary; discard plans": Temporary, "discard plans": 0, "": 0, ";": 0,
		"reset work_mem": 0, "reset all; select 1": 0, "reset all; commit": 0, "begin; reset all": 0, "reset all all": 0, `reset "all"`: 0, "close c": 0, "deallocate prepare all": 0, "unlisten c": 0,
		"select pg_advisory_unlock_all(), 1": 0, "select mine.pg_advisory_unlock_all()": 0, "select pg_advisory_unlock_all() from t": 0, "set session authorization me": 0, "set role default": 0,
		"reset all; set x = 1": 0, "explain reset all": 0, "do 'reset all'": 0,
	} {
		if got := Clears([]byte(sql), false); got != want {
			t.Errorf("%s: %b, want %b", sql, got, want)
		}
	}
}
