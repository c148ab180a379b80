// Package rfc9111 tells what a cache that serves everybody may keep of an answer, for
// how long, and for which requests (RFC 9111, with RFC 5861's stale-if-error and
// stale-while-revalidate). It is pure, and where a header is in doubt it says no.
//
// Edge alone imports it.
package rfc9111

import (
	"strings"
	"time"
)

// Control is what the lines of a Cache-Control header say. Ages are -1 where nothing
// is said of them; one that makes no sense is 0, and of several the smallest counts
// (RFC 9111, 4.2.1).
type Control struct {
	NoStore bool
	NoCache bool // also one that names fields
	Private bool // likewise
	Public  bool
	// Revalidate tells that a stale answer must not be given: must-revalidate or
	// proxy-revalidate.
	Revalidate bool

	MaxAge, SMaxAge, StaleIfError, StaleWhileRevalidate time.Duration

	Broken bool // it is not written as RFC 9111 has it: nothing that it permits counts
}

// unsaid is an age of which nothing is said.
const unsaid time.Duration = -1

// mostAge is what ages beyond it count as (RFC 9111, 1.2.2).
const mostAge = 1 << 31 * time.Second

// ParseControl reads the lines of a Cache-Control header.
func ParseControl(lines []string) Control {
	c := Control{MaxAge: unsaid, SMaxAge: unsaid, StaleIfError: unsaid, StaleWhileRevalidate: unsaid}
	for _, line := range lines {
		for line != "" && !c.Broken {
			var name, value string
			var given bool
			if name, value, given, line, c.Broken = next(line); name != "" {
				c.directive(name, value, given)
			}
		}
	}
	return c
}

func (c *Control) directive(name, value string, given bool) {
	switch strings.ToLower(name) {
	case "no-store":
		c.NoStore = true
	case "no-cache":
		c.NoCache = true
	case "private":
		c.Private = true
	case "must-revalidate", "proxy-revalidate":
		c.Revalidate = true
	case "public":
		c.Public = c.Public || !given // public=x permits nothing
	case "max-age":
		c.MaxAge = least(c.MaxAge, value)
	case "s-maxage":
		c.SMaxAge = least(c.SMaxAge, value)
	case "stale-if-error":
		c.StaleIfError = least(c.StaleIfError, value)
	case "stale-while-revalidate":
		c.StaleWhileRevalidate = least(c.StaleWhileRevalidate, value)
	}
}

func least(before time.Duration, value string) time.Duration {
	age := seconds(value)
	if before == unsaid {
		return max(age, 0)
	}
	return max(min(before, age), 0)
}

// seconds reads delta-seconds (RFC 9111, 1.2.2); -1: it is none.
func seconds(s string) time.Duration {
	if s == "" {
		return unsaid
	}
	n := time.Duration(0)
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return unsaid
		}
		n = min(10*n+time.Duration(s[i]-'0'), mostAge/time.Second)
	}
	return n * time.Second
}

// next takes one directive off a line: a token, or a token, = and a token or a quoted
// string. name is empty for an empty element of the list.
func next(line string) (name, value string, given bool, rest string, broken bool) {
	line = strings.TrimLeft(line, " \t")
	n := token(line)
	name, line = line[:n], line[n:]
	if name != "" && strings.HasPrefix(line, "=") {
		given, line = true, line[1:]
		if strings.HasPrefix(line, `"`) {
			value, line, broken = quoted(line)
		} else {
			n = token(line)
			value, line = line[:n], line[n:]
			broken = n == 0
		}
	}
	line = strings.TrimLeft(line, " \t")
	switch {
	case broken, line != "" && line[0] != ',':
		return name, value, given, "", true
	case line != "":
		line = line[1:]
	}
	return name, value, given, line, false
}

// token is how long the token is with which s begins (RFC 9110, 5.6.2).
func token(s string) int {
	n := 0
	for n < len(s) && isToken(s[n]) {
		n++
	}
	return n
}

func isToken(c byte) bool {
	return c > ' ' && c < 0x7f && !strings.ContainsRune(`"(),/:;<=>?@[\]{}`, rune(c))
}

// quoted reads the quoted string with which s begins (RFC 9110, 5.6.4).
func quoted(s string) (value, rest string, broken bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], false
		case c == '\\' && i+1 < len(s):
			i++
			c = s[i]
			fallthrough
		default:
			if c < ' ' && c != '\t' || c == 0x7f {
				return "", "", true
			}
			b.WriteByte(c)
		}
	}
	return "", "", true
}
