package rfc9111

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestWhatACacheControlHeaderSays(t *testing.T) {
	said := func(f func(*Control)) Control {
		c := Control{MaxAge: -1, SMaxAge: -1, StaleIfError: -1, StaleWhileRevalidate: -1}
		f(&c)
		return c
	}
	for lines, want := range map[string]Control{
		"":                             said(func(c *Control) {}),
		"public, max-age=60":           said(func(c *Control) { c.Public, c.MaxAge = true, time.Minute }),
		"PUBLIC , Max-Age=60":          said(func(c *Control) { c.Public, c.MaxAge = true, time.Minute }),
		`max-age="60"`:                 said(func(c *Control) { c.MaxAge = time.Minute }),
		"max-age=60, max-age=10":       said(func(c *Control) { c.MaxAge = 10 * time.Second }),
		"max-age=60\nmax-age=x":        said(func(c *Control) { c.MaxAge = 0 }),
		"max-age":                      said(func(c *Control) { c.MaxAge = 0 }),
		"max-age=1.5":                  said(func(c *Control) { c.MaxAge = 0 }),
		"max-age=-1":                   said(func(c *Control) { c.MaxAge = 0 }),
		"max-age=99999999999999999999": said(func(c *Control) { c.MaxAge = mostAge }),
		"s-maxage=5, stale-if-error=7, stale-while-revalidate=8": said(func(c *Control) {
			c.SMaxAge, c.StaleIfError, c.StaleWhileRevalidate = 5*time.Second, 7*time.Second, 8*time.Second
		}),
		`private="set-cookie", public`:     said(func(c *Control) { c.Private, c.Public = true, true }),
		`no-cache="x, y"`:                  said(func(c *Control) { c.NoCache = true }),
		"no-store=1":                       said(func(c *Control) { c.NoStore = true }),
		"public=1":                         said(func(c *Control) {}),
		`x="a, public"`:                    said(func(c *Control) {}),
		`x="a\", public, y=\"b"`:           said(func(c *Control) {}),
		`x="no-store", immutable`:          said(func(c *Control) {}),
		", ,public,,":                      said(func(c *Control) { c.Public = true }),
		"must-revalidate":                  said(func(c *Control) { c.Revalidate = true }),
		"proxy-revalidate":                 said(func(c *Control) { c.Revalidate = true }),
		"public; max-age=60":               said(func(c *Control) { c.Public, c.Broken = true, true }),
		"max-age =60":                      said(func(c *Control) { c.MaxAge, c.Broken = 0, true }),
		"max-age= 60":                      said(func(c *Control) { c.MaxAge, c.Broken = 0, true }),
		`x="open, no-store`:                said(func(c *Control) { c.Broken = true }),
		"public max-age=60":                said(func(c *Control) { c.Public, c.Broken = true, true }),
		"=1, no-store":                     said(func(c *Control) { c.Broken = true }),
		"x=, no-store":                     said(func(c *Control) { c.Broken = true }),
		"public, \x00":                     said(func(c *Control) { c.Public, c.Broken = true, true }),
		"x=\"\x01\", public":               said(func(c *Control) { c.Broken = true }),
		"publié":                           said(func(c *Control) { c.Broken = true }),
		"no-storepublic, xpublic, publicx": said(func(c *Control) {}),
	} {
		if got := ParseControl(strings.Split(lines, "\n")); got != want {
			t.Errorf("%q: %+v, want %+v", lines, got, want)
		}
	}
}

// element is one element of the list, as RFC 9110, 5.6 writes it.
var element = regexp.MustCompile("^[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:=(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)|\"((?:[^\"\\\\\\x00-\\x08\\x0a-\\x1f\\x7f]|\\\\[^\\x00-\\x08\\x0a-\\x1f\\x7f])*)\"))?)?[ \t]*(?:,|$)")

// byGrammar reads a line by the grammar; ok: all of it is in it.
func byGrammar(line string) (c Control, ok bool) {
	ages := map[string]time.Duration{}
	c = Control{MaxAge: -1, SMaxAge: -1, StaleIfError: -1, StaleWhileRevalidate: -1}
	for line != "" {
		m := element.FindStringSubmatch(line)
		if m == nil || m[0] == "" {
			return c, false
		}
		name, value := strings.ToLower(m[1]), m[2]+regexp.MustCompile(`(?s)\\(.)`).ReplaceAllString(m[3], "$1")
		bare := !strings.Contains(m[0], "=")
		switch name {
		case "no-store":
			c.NoStore = true
		case "no-cache":
			c.NoCache = true
		case "private":
			c.Private = true
		case "must-revalidate", "proxy-revalidate":
			c.Revalidate = true
		case "public":
			c.Public = c.Public || bare
		case "max-age", "s-maxage", "stale-if-error", "stale-while-revalidate":
			age := time.Duration(0)
			if strings.Trim(value, "0123456789") == "" && value != "" {
				age = mostAge
				if n, err := strconv.ParseInt(value, 10, 64); err == nil && n < 1<<31 {
					age = time.Duration(n) * time.Second
				}
			}
			if before, twice := ages[name]; !twice || age < before {
				ages[name] = age
			}
		}
		line = line[len(m[0]):]
	}
	for name, to := range map[string]*time.Duration{"max-age": &c.MaxAge, "s-maxage": &c.SMaxAge, "stale-if-error": &c.StaleIfError, "stale-while-revalidate": &c.StaleWhileRevalidate} {
		if age, said := ages[name]; said {
			*to = age
		}
	}
	return c, true
}

// FuzzControl compares the parser with a slow one that is made of the grammar itself.
func FuzzControl(f *testing.F) {
	for _, seed := range []string{
		"", "public, max-age=60", `private="a, b", s-maxage=0`, `x="a\"b", no-store`, "max-age=007,max-age=\"6\"", ", ,", "a=b=c", `x="`, "stale-if-error=99999999999999", "max-age=\"1\\0\"",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got := ParseControl([]string{line})
		want, ok := byGrammar(line)
		if got.Broken == ok || ok && got != want {
			t.Errorf("%q: %+v, by the grammar %+v, %v", line, got, want, ok)
		}
	})
}
