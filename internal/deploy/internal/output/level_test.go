package output

import (
	"log/slog"
	"testing"
)

func TestTheLevelOfALineIsWhatItsAppSays(t *testing.T) {
	for line, want := range map[string]slog.Level{
		`{"level":"error","msg":"x"}`:                                slog.LevelError,
		`{"time":"…","level": "WARN","msg":"x"}`:                     slog.LevelWarn,
		`{"level":50,"time":1,"msg":"pino"}`:                         slog.LevelError,
		`{"level":60,"msg":"pino, fatal"}`:                           slog.LevelError,
		`{"level":40,"msg":"pino"}`:                                  slog.LevelWarn,
		`{"level":30,"msg":"an error was avoided"}`:                  slog.LevelInfo,
		`{"severity":"CRITICAL","message":"gcp"}`:                    slog.LevelError,
		`{"msg":"said \"level\":\"error\"","level":"info"}`:          slog.LevelInfo,
		`{"levelname": "ERROR", "message": "python"}`:                slog.LevelError,
		`{"msg":"nothing about it"}`:                                 slog.LevelInfo,
		`time=… level=error msg="x"`:                                 slog.LevelError,
		`ts=1 lvl=warn msg=x`:                                        slog.LevelWarn,
		`level=info msg="no error"`:                                  slog.LevelInfo,
		`mylevel=error`:                                              slog.LevelInfo,
		`2026-01-02 03:04:05,678 ERROR [main] c.a.App: it broke`:     slog.LevelError,
		`[2026-01-02T03:04:05Z] [error] it broke`:                    slog.LevelError,
		`2026/01/02 03:04:05 [warn] 1#1: x`:                          slog.LevelWarn,
		`E, [2026-01-02] ERROR -- : ruby`:                            slog.LevelError,
		`Error: Cannot find module 'x'`:                              slog.LevelError,
		`TypeError: Cannot read properties of undefined`:             slog.LevelError,
		`java.lang.IllegalStateException: x`:                         slog.LevelError,
		`panic: runtime error: index out of range`:                   slog.LevelError,
		`Traceback (most recent call last):`:                         slog.LevelError,
		`npm ERR! code ELIFECYCLE`:                                   slog.LevelError,
		`(node:1) Warning: deprecated`:                               slog.LevelInfo,
		`GET /error 200 in 3 ms`:                                     slog.LevelInfo,
		`no error was found`:                                         slog.LevelInfo,
		`error rate is fine`:                                         slog.LevelInfo,
		`listening on 3000`:                                          slog.LevelInfo,
		`    at Object.<anonymous> (/srv/app/error.js:1:7)`:          slog.LevelInfo,
		`INFO request failed with error ERROR_CODE after retrying x`: slog.LevelInfo,
		``: slog.LevelInfo,
	} {
		if got := Level(line); got != want {
			t.Errorf("%s: %v", line, got)
		}
	}
}

func BenchmarkLevel(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Level(`{"time":"2026-01-02T03:04:05Z","level":"info","msg":"request","path":"/work","status":200}`)
	}
}
