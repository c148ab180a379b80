package words

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEveryStatusIsToldAsOneThatTheSDKsKnow(t *testing.T) {
	for status, want := range map[int]struct {
		as   int
		kind string
	}{
		200: {502, "api_error"}, 302: {502, "api_error"}, 400: {400, "invalid_request_error"}, 401: {401, "authentication_error"}, 405: {405, "invalid_request_error"},
		408: {408, "timeout_error"}, 429: {429, "rate_limit_error"}, 500: {500, "api_error"}, 502: {502, "api_error"}, 503: {503, "overloaded_error"},
		504: {504, "timeout_error"}, 520: {502, "api_error"}, 524: {504, "timeout_error"}, 529: {529, "overloaded_error"}, 530: {502, "api_error"},
	} {
		if as, kind := For(status); as != want.as || kind != want.kind {
			t.Errorf("%d: %d %s", status, as, kind)
		}
	}
	if Status("overloaded_error") != 529 || Status("of tomorrow") != 500 {
		t.Error("a type has lost its status")
	}
}

func FuzzExcerpt(f *testing.F) {
	f.Add([]byte("<html><title>Bad gateway</title>"))
	f.Add([]byte(`{"message":"so\u0000 so"}`))
	f.Add([]byte("plain\xff"))
	f.Add([]byte("İ<title>İ"))
	f.Fuzz(func(t *testing.T, text []byte) {
		said := Excerpt(text)
		if utf8.RuneCountInString(said) > 121 || !utf8.ValidString(said) || strings.ContainsAny(said, "\n\r\x00") {
			t.Errorf("%q", said)
		}
		if !json.Valid(Error("api_error", said, "id")) || !IsError(Error("api_error", said, "id")) {
			t.Errorf("%q is no error", said)
		}
		IsError(text)
	})
}
