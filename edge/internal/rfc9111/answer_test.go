package rfc9111

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// header makes one of lines.
func header(lines ...string) http.Header {
	h := http.Header{}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		h.Add(name, value)
	}
	return h
}

func TestWhatMayBeKept(t *testing.T) {
	for _, tc := range []struct {
		name   string
		status int
		header http.Header
		ok     bool
		open   bool
	}{
		{"a lifetime", 200, header("Cache-Control: max-age=60"), true, false},
		{"Expires", 200, header("Expires: Sun, 01 Mar 2026 12:05:00 GMT"), true, false},
		{"public", 200, header("Cache-Control: public"), true, true},
		{"s-maxage", 200, header("Cache-Control: s-maxage=60"), true, true},
		{"stale-if-error", 200, header("Cache-Control: stale-if-error=60"), true, false},
		{"stale-while-revalidate", 200, header("Cache-Control: max-age=0, stale-while-revalidate=60"), true, false},
		{"a page that is gone", 404, header("Cache-Control: max-age=60"), true, false},
		{"a move", 301, header("Cache-Control: max-age=60"), true, false},

		{"nothing is said", 200, header("Last-Modified: Mon, 02 Jan 2006 15:04:05 GMT"), false, false},
		{"private", 200, header("Cache-Control: private, max-age=60"), false, false},
		{"private in another line", 200, header("Cache-Control: public, max-age=60", "Cache-Control: private"), false, false},
		{"private fields", 200, header(`Cache-Control: public, private="x-user"`), false, false},
		{"no-store", 200, header("Cache-Control: public, no-store"), false, false},
		{"no-cache", 200, header("Cache-Control: public, no-cache"), false, false},
		{"Pragma alone", 200, header("Pragma: no-cache", "Expires: Sun, 01 Mar 2026 12:05:00 GMT"), false, false},
		{"Pragma beside Cache-Control", 200, header("Pragma: no-cache", "Cache-Control: public"), true, true},
		{"a cookie", 200, header("Cache-Control: public, max-age=60", "Set-Cookie: a=b"), false, false},
		{"a lifetime of nothing", 200, header("Cache-Control: max-age=0"), false, false},
		{"a past Expires", 200, header("Expires: Sun, 01 Mar 2026 11:05:00 GMT"), false, false},
		{"Expires: 0", 200, header("Expires: 0"), false, false},
		{"two Expires", 200, header("Expires: Sun, 01 Mar 2026 12:05:00 GMT", "Expires: Sun, 01 Mar 2026 12:06:00 GMT"), false, false},
		{"max-age before Expires", 200, header("Cache-Control: max-age=0", "Expires: Sun, 01 Mar 2026 12:05:00 GMT"), false, false},
		{"broken", 200, header("Cache-Control: public; max-age=60"), false, false},
		{"an Age that makes no sense", 200, header("Cache-Control: max-age=60", "Age: x"), false, false},
		{"two Ages", 200, header("Cache-Control: max-age=60", "Age: 1", "Age: 2"), false, false},
		{"a CDN is told no", 200, header("Cache-Control: public", "CDN-Cache-Control: private"), false, false},
		{"Cloudflare is told no", 200, header("Cache-Control: public", "Cloudflare-CDN-Cache-Control: no-store"), false, false},
		{"a surrogate is told no", 200, header("Cache-Control: public", "Surrogate-Control: no-store"), false, false},
		{"a part", 206, header("Cache-Control: public"), false, false},
		{"not modified", 304, header("Cache-Control: public"), false, false},
		{"unauthorized", 401, header("Cache-Control: public"), false, false},
		{"an error", 500, header("Cache-Control: public"), false, false},
		{"a refusal", 429, header("Cache-Control: public"), false, false},
	} {
		term, ok := Storable(tc.status, tc.header, noon, noon)
		if ok != tc.ok || ok && term.Open != tc.open {
			t.Errorf("%s: %v, open %v", tc.name, ok, term.Open)
		}
	}
}

func TestForHowLongAnAnswerMayBeGiven(t *testing.T) {
	const hour = time.Hour
	for _, tc := range []struct {
		name         string
		header       http.Header
		fresh, until time.Duration // from noon, with an hour of stale use
	}{
		{"max-age", header("Cache-Control: max-age=60"), time.Minute, time.Minute + hour},
		{"s-maxage is first, and is final", header("Cache-Control: max-age=60, s-maxage=90"), 90 * time.Second, 90 * time.Second},
		{"s-maxage with a word for errors", header("Cache-Control: s-maxage=90, stale-if-error=30"), 90 * time.Second, 2 * time.Minute},
		{"no stale use", header("Cache-Control: max-age=60, must-revalidate"), time.Minute, time.Minute},
		{"no stale use, whatever else it says", header("Cache-Control: max-age=60, proxy-revalidate, stale-if-error=9"), time.Minute, time.Minute},
		{"the app's word, where it is less", header("Cache-Control: max-age=60, stale-if-error=30"), time.Minute, 90 * time.Second},
		{"the longer of its words", header("Cache-Control: max-age=60, stale-if-error=30, stale-while-revalidate=40"), time.Minute, 100 * time.Second},
		{"ours, where that is less", header("Cache-Control: max-age=60, stale-if-error=86400"), time.Minute, time.Minute + hour},
		{"an Age", header("Cache-Control: max-age=60", "Age: 20"), 40 * time.Second, 40*time.Second + hour},
		{"an old Date", header("Cache-Control: max-age=60", "Date: Sun, 01 Mar 2026 11:59:30 GMT"), 30 * time.Second, 30*time.Second + hour},
		{"a Date to come", header("Cache-Control: max-age=60", "Date: Sun, 01 Mar 2026 12:59:30 GMT"), time.Minute, time.Minute + hour},
		{"Expires counts from Date", header("Date: Sun, 01 Mar 2026 11:00:00 GMT", "Expires: Sun, 01 Mar 2026 11:01:00 GMT", "Cache-Control: public"), time.Minute - hour, time.Minute},
		{"public alone", header("Cache-Control: public"), 0, hour},
	} {
		term, ok := Storable(200, tc.header, noon, noon)
		if fresh, until := term.Fresh().Sub(noon), term.Until(hour).Sub(noon); !ok || fresh != tc.fresh || until != tc.until {
			t.Errorf("%s: %v, fresh for %v, of use for %v; want %v and %v", tc.name, ok, fresh, until, tc.fresh, tc.until)
		}
	}
	slow, _ := Storable(200, header("Cache-Control: max-age=60"), noon, noon.Add(10*time.Second))
	if got := slow.Left(noon.Add(10 * time.Second)); got != 50*time.Second {
		t.Errorf("an answer that took ten seconds is fresh for %v", got)
	}
	if got := slow.Age(noon.Add(-time.Hour)); got != 0 {
		t.Errorf("before it was born it is %v old", got)
	}
}

func TestOnWhatAnAnswerDepends(t *testing.T) {
	for _, tc := range []struct {
		header http.Header
		want   string
		ok     bool
	}{
		{header(), "", true},
		{header("Vary: accept-language,  Accept-Encoding", "Vary: ACCEPT-LANGUAGE"), "Accept-Language Accept-Encoding", true},
		{header("Vary: Accept", "Vary: *"), "", false},
		{header("Vary: accept language"), "", false},
		{header("Vary: a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"), "", false},
		{header("Content-Encoding: br"), "Accept-Encoding", true},
		{header("Access-Control-Allow-Origin: https://a.example"), "Origin", true},
		{header("Access-Control-Allow-Origin: *"), "", true},
	} {
		names, ok := Vary(tc.header)
		if got := strings.Join(names, " "); got != tc.want || ok != tc.ok {
			t.Errorf("%v: %q %v", tc.header, got, ok)
		}
	}
}

func TestWhetherAClientHasIt(t *testing.T) {
	stored := header(`Etag: W/"v1"`, "Last-Modified: Sun, 01 Mar 2026 12:00:00 GMT")
	for request, want := range map[string]bool{
		"":                            false,
		`If-None-Match: "v1"`:         true,
		`If-None-Match: W/"v1"`:       true,
		`If-None-Match: "v0", W/"v1"`: true,
		`If-None-Match: "v0,", "v1"`:  true,
		`If-None-Match: *`:            true,
		`If-None-Match: "v0"`:         false,
		`If-None-Match: v1`:           false,
		`If-None-Match: "v1`:          false,
		`If-None-Match: "x"v1"`:       false,
		`If-Modified-Since: Sun, 01 Mar 2026 12:00:00 GMT`: true,
		`If-Modified-Since: Sun, 01 Mar 2026 11:59:59 GMT`: false,
		`If-Modified-Since: yesterday`:                     false,
	} {
		r := header(request)
		if got := NotModified(r.Get, stored); got != want {
			t.Errorf("%s: %v", request, got)
		}
	}
	both := header(`If-None-Match: "v0"`, "If-Modified-Since: Sun, 01 Mar 2026 12:00:00 GMT")
	if NotModified(both.Get, stored) {
		t.Error("If-Modified-Since counts beside If-None-Match")
	}
	if NotModified(header(`If-None-Match: ""`).Get, header()) {
		t.Error("an answer without an ETag has one")
	}
}

// FuzzStorable: whatever else an answer says, what forbids to keep it does so; and what
// is kept for those with credentials was called everybody's, by a directive of its own.
func FuzzStorable(f *testing.F) {
	for _, seed := range []string{"public, max-age=60", "max-age=60", `x="a", s-maxage=5`, "stale-if-error=5", `x="no-store, public`, "private"} {
		f.Add(seed, "", "", 200)
	}
	f.Add("", "Sun, 01 Mar 2026 12:05:00 GMT", "5", 404)
	f.Fuzz(func(t *testing.T, control, expires, age string, status int) {
		h := http.Header{"Cache-Control": {control}}
		if expires != "" {
			h["Expires"] = []string{expires}
		}
		if age != "" {
			h["Age"] = []string{age}
		}
		term, ok := Storable(status, h, noon, noon)
		want, inGrammar := byGrammar(control)
		if ok && (!inGrammar || want.NoStore || want.NoCache || want.Private || !slices.Contains(statuses, status)) {
			t.Errorf("%q: kept", control)
		}
		if ok && term.Open != (want.Public || want.SMaxAge >= 0) {
			t.Errorf("%q: open %v", control, term.Open)
		}
		if ok && (want.Revalidate || want.SMaxAge >= 0 && want.StaleIfError < 0 && want.StaleWhileRevalidate < 0) && term.Until(time.Hour).After(term.Fresh()) {
			t.Errorf("%q: may be given when it is stale", control)
		}
		if ok && term.Left(noon) > mostAge {
			t.Errorf("%q: fresh for %v", control, term.Left(noon))
		}
		for _, no := range []string{"no-store", "private", "no-cache", `private="a"`} {
			for _, lines := range [][]string{{control, no}, {no, control}, {no + ", " + control}} {
				h["Cache-Control"] = lines
				if _, ok := Storable(status, h, noon, noon); ok {
					t.Errorf("%q: kept", lines)
				}
			}
		}
		h["Cache-Control"] = []string{control}
		h["Set-Cookie"] = []string{"a=b"}
		if _, ok := Storable(status, h, noon, noon); ok {
			t.Errorf("%q: kept with a cookie", control)
		}
	})
}
