package rfc9111

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// A Term is for how long an answer may be given to others than the one who asked.
type Term struct {
	// Open tells that the app itself calls the answer everybody's, by public or
	// s-maxage: it may be given to those who show credentials, and was perhaps made
	// for one of them.
	Open  bool
	born  time.Time     // the moment at which it was no second old
	fresh time.Duration // from then on
	stale time.Duration // from then on, by the app's own word; -1: it has none
}

// Age is how old the answer is.
func (t *Term) Age(now time.Time) time.Duration { return max(now.Sub(t.born), 0) }

// Left is how long the answer is still fresh; less than 0: since when it is stale.
func (t *Term) Left(now time.Time) time.Duration { return t.fresh - t.Age(now) }

// Fresh is the moment at which the answer becomes stale.
func (t *Term) Fresh() time.Time { return t.born.Add(t.fresh) }

// Until is the moment from which the answer must not be given any more, where stale
// answers may be given for most.
func (t *Term) Until(most time.Duration) time.Time {
	if t.stale != unsaid {
		most = min(most, t.stale)
	}
	return t.born.Add(t.fresh + most)
}

// statuses are those of answers that are kept: what a cache may keep and a client
// understands by itself. Parts (206) are not among them, nor what asks for credentials.
var statuses = []int{
	http.StatusOK, http.StatusNonAuthoritativeInfo, http.StatusNoContent, http.StatusMultipleChoices, http.StatusMovedPermanently, http.StatusFound,
	http.StatusTemporaryRedirect, http.StatusPermanentRedirect, http.StatusNotFound, http.StatusGone,
}

// Storable reports whether an answer to a GET may be kept for others at all, by its
// header, and for how long. asked is when the request left, now when the answer came.
// Whether it may be kept of a request that showed credentials, Term.Open says.
//
// It must say so itself: by public or by a lifetime. A lifetime is not guessed.
func Storable(status int, h http.Header, asked, now time.Time) (t Term, ok bool) {
	c := ParseControl(h["Cache-Control"])
	switch {
	case !slices.Contains(statuses, status), c.Broken, c.NoStore, c.NoCache, c.Private, len(h["Set-Cookie"]) > 0, len(h["Set-Cookie2"]) > 0:
		return t, false
	case len(h["Cache-Control"]) == 0 && strings.Contains(strings.ToLower(strings.Join(h["Pragma"], ",")), "no-cache"):
		return t, false
	case !targeted(h):
		return t, false
	}
	age, ok := ages(h)
	if !ok {
		return t, false
	}
	date := now
	if d, err := http.ParseTime(h.Get("Date")); err == nil {
		date = d
	}
	t.Open = c.Public || c.SMaxAge >= 0
	t.born = now.Add(-max(now.Sub(date), age+now.Sub(asked), 0)) // RFC 9111, 4.2.3
	switch expires := h["Expires"]; {
	case c.SMaxAge >= 0:
		t.fresh = c.SMaxAge
	case c.MaxAge >= 0:
		t.fresh = c.MaxAge
	case len(expires) == 1:
		if e, err := http.ParseTime(expires[0]); err == nil {
			t.fresh = min(max(e.Sub(date), 0), mostAge)
		}
	}
	t.stale = max(c.StaleIfError, c.StaleWhileRevalidate)
	if c.Revalidate || c.SMaxAge >= 0 && t.stale == unsaid { // RFC 9111, 4.2.4 and 5.2.2.10
		t.stale = 0
	}
	return t, t.Open || t.fresh > 0 || t.stale > 0
}

// ages is what a cache before us says of the answer's age (RFC 9111, 5.1).
func ages(h http.Header) (age time.Duration, ok bool) {
	switch lines := h["Age"]; len(lines) {
	case 0:
		return 0, true
	case 1:
		age = seconds(strings.TrimSpace(lines[0]))
		return age, age >= 0
	}
	return 0, false
}

// targeted reports whether no header for some other cache (RFC 9213) forbids what
// Cache-Control may permit.
func targeted(h http.Header) bool {
	for name, lines := range h {
		if strings.HasSuffix(name, "Cdn-Cache-Control") || name == "Surrogate-Control" {
			if c := ParseControl(lines); c.Broken || c.NoStore || c.NoCache || c.Private {
				return false
			}
		}
	}
	return true
}

// maxNames bounds the headers by which an answer may vary.
const maxNames = 16

// Vary lists the request headers on which the answer depends (RFC 9111, 4.1), as it
// says and as it does: one that is encoded, or allows an origin, depends on what was
// asked, though many an app forgets to say so. They are in their canonical form.
// ok: the answer may be given to others whose headers are alike.
func Vary(h http.Header) (names []string, ok bool) {
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, line := range h["Vary"] {
		for name := range strings.SplitSeq(line, ",") {
			switch name = strings.Trim(name, " \t"); {
			case name == "":
			case name == "*", token(name) != len(name), len(names) >= maxNames:
				return nil, false
			default:
				add(http.CanonicalHeaderKey(name))
			}
		}
	}
	if len(h["Content-Encoding"]) > 0 {
		add("Accept-Encoding")
	}
	if origin := h.Get("Access-Control-Allow-Origin"); origin != "" && origin != "*" {
		add("Origin")
	}
	return names, true
}

// NotModified reports whether a client that asked under conditions has the answer
// already, whose header is h: it is told 304 then (RFC 9111, 4.3.2). header returns
// the values of a request header.
func NotModified(header func(string) string, h http.Header) bool {
	if match := header("If-None-Match"); match != "" {
		return strings.TrimSpace(match) == "*" || weakly(match, h.Get("Etag"))
	}
	since, err := http.ParseTime(header("If-Modified-Since"))
	if err != nil {
		return false
	}
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	return err == nil && !modified.After(since)
}

// weakly reports whether tag is one of the list, whether weak or not (RFC 9110, 8.8.3).
func weakly(list, tag string) bool {
	tag = strings.TrimPrefix(tag, "W/")
	if len(tag) < 2 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		return false
	}
	for list != "" {
		list = strings.TrimPrefix(strings.TrimLeft(list, " \t,"), "W/")
		if list == "" || list[0] != '"' {
			return false
		}
		end := strings.IndexByte(list[1:], '"')
		if end < 0 {
			return false
		}
		if list[:end+2] == tag {
			return true
		}
		list = list[end+2:]
	}
	return false
}
