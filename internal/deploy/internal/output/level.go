package output

import (
	"log/slog"
	"strings"
)

// Level reads from a line how bad its app says it is: Error, Warn or, of all else,
// Info. It knows JSON (level, severity, lvl or log.level, also as the numbers of
// pino and bunyan), logfmt, and words in front: [error], ERROR, Error:, panic:.
func Level(line string) slog.Level {
	if strings.HasPrefix(line, "{") {
		return jsonLevel(line)
	}
	if v, ok := logfmtLevel(line); ok {
		return word(v)
	}
	return plainLevel(line)
}

// words of apps, in lower case.
var words = map[string]slog.Level{
	"error": slog.LevelError, "err": slog.LevelError, "err!": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError,
	"critical": slog.LevelError, "crit": slog.LevelError, "severe": slog.LevelError, "alert": slog.LevelError,
	"emerg": slog.LevelError, "emergency": slog.LevelError, "uncaught": slog.LevelError, "unhandled": slog.LevelError, "traceback": slog.LevelError,
	"dpanic": slog.LevelError, "warn": slog.LevelWarn, "warning": slog.LevelWarn,
}

func word(s string) slog.Level { return words[strings.ToLower(s)] } // else Info, which is 0

// jsonLevel looks for the first key that names a level. Where such a key is not at
// the top it is the log library's own doing, and as good.
func jsonLevel(line string) slog.Level {
	for _, key := range []string{`"level"`, `"severity"`, `"lvl"`, `"log.level"`, `"levelname"`} {
		_, rest, ok := strings.Cut(line, key)
		if !ok {
			continue
		}
		rest = strings.TrimLeft(rest, " :")
		if v, quoted := strings.CutPrefix(rest, `"`); quoted {
			v, _, _ = strings.Cut(v, `"`)
			return word(v)
		}
		n := 0
		for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
			n++
		}
		switch v := rest[:n]; {
		case n == 2 && v >= "50":
			return slog.LevelError
		case n == 2 && v >= "40":
			return slog.LevelWarn
		}
		return slog.LevelInfo
	}
	return slog.LevelInfo
}

// logfmtLevel finds level=, lvl= or severity= at the begin of a word.
func logfmtLevel(line string) (value string, found bool) {
	for _, key := range []string{"level=", "lvl=", "severity="} {
		at := strings.Index(line, key)
		if at < 0 || at > 0 && line[at-1] != ' ' && line[at-1] != '\t' {
			continue
		}
		v := strings.TrimPrefix(line[at+len(key):], `"`)
		if end := strings.IndexAny(v, "\" \t"); end >= 0 {
			v = v[:end]
		}
		return v, true
	}
	return "", false
}

// front is how much of a plain line may hold its level, behind a time and a name.
const front = 96

// plainLevel looks at the first words of a line. A word counts if it is written as
// a level is: in capitals, in brackets, or as the line's own beginning.
func plainLevel(line string) slog.Level {
	if len(line) > front {
		line = line[:front]
	}
	for i, f := range strings.Fields(line) {
		bare := strings.Trim(f, "[]()<>{}:|,;")
		switch at := word(bare); {
		case at == slog.LevelInfo && i == 0 && (strings.HasSuffix(f, "Error:") || strings.HasSuffix(f, "Exception:")):
			return slog.LevelError
		case at == slog.LevelInfo:
		case bare == strings.ToUpper(bare), strings.HasPrefix(f, "["), strings.HasPrefix(f, "<"), i == 0 && (f != bare || bare != strings.ToLower(bare)):
			return at
		}
		if i == 7 {
			break
		}
	}
	return slog.LevelInfo
}
