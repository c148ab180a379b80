package keep

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/claude/internal/peek"
)

// redacted stands for what was taken out.
const redacted = "[redacted]"

// A pattern finds what must not be kept.
type pattern struct {
	re    *regexp.Regexp
	hints []string // in lower case; a text without any of them has no match. None: it may have one
}

// secrets are what is taken out of every text, whatever the file says: what looks like
// a key, a token or a password and nothing else.
var secrets = []pattern{
	find(`sk-[A-Za-z0-9_-]{20,}`, "sk-"), // Claude, and others who write their keys so
	find(`\b(?:AKIA|ASIA)[0-9A-Z]{16}\b`, "akia", "asia"),
	find(`\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}`, "gh", "github_pat_"),
	find(`\bglpat-[A-Za-z0-9_-]{20,}`, "glpat-"),
	find(`\bxox[abeprs]-[A-Za-z0-9-]{10,}`, "xox"),
	find(`\bAIza[0-9A-Za-z_-]{35}`, "aiza"),
	find(`\b[rsp]k_(?:live|test)_[A-Za-z0-9]{16,}|\bwhsec_[A-Za-z0-9]{16,}`, "k_live_", "k_test_", "whsec_"),
	find(`\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`, "eyj"),
	find(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`, "private key-----"),
	find(`(?i)\b(?:bearer|basic) +[A-Za-z0-9._~+/=-]{16,}`, "bearer ", "basic "),
	find(`\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s/:@"']*:[^\s/@"']+@`, "://"),
	find(`(?i)\b(?:password|passwd|secret|api[_-]?key|access[_-]?token|client[_-]?secret)["']?\s*[:=]\s*["']?[^\s"',;}]{6,}`, "passw", "secret", "key", "token"),
}

func find(expr string, hints ...string) pattern { return pattern{regexp.MustCompile(expr), hints} }

// may reports whether a text in lower case may have a match.
func (p *pattern) may(lower string) bool {
	return len(p.hints) == 0 || slices.ContainsFunc(p.hints, func(h string) bool { return strings.Contains(lower, h) })
}

// secretNames are members whose text is taken out wherever they stand, in lower case.
var secretNames = []string{
	"authorization", "authorization_token", "access_token", "refresh_token", "id_token", "api_key", "apikey", "x-api-key",
	"password", "passwd", "secret", "client_secret", "private_key", "secret_access_key",
}

// A Redaction takes out of a request what must not be kept. It is immutable.
type Redaction struct {
	paths    [][]string
	patterns []pattern
}

// ParseRedaction reads the list of the file: a path such as messages.*.content or
// metadata.user_id, in which * is any member or element, or a regular expression
// between slashes (https://pkg.go.dev/regexp/syntax). fail is told which are wrong.
func ParseRedaction(list []string, fail func(i int, what, mend string)) *Redaction {
	r := &Redaction{patterns: slices.Clone(secrets)}
	for i, entry := range list {
		inner, slashed := strings.CutPrefix(entry, "/")
		if expr, ok := strings.CutSuffix(inner, "/"); slashed && ok && expr != "" {
			re, err := regexp.Compile(expr)
			if err != nil {
				fail(i, "is no regular expression: "+err.Error(), `try "/\\bACME-[0-9]+/"`)
				continue
			}
			r.patterns = append(r.patterns, pattern{re: re})
			continue
		}
		path := strings.Split(strings.TrimPrefix(entry, "$."), ".")
		if slashed || slices.Contains(path, "") {
			fail(i, "is neither a path nor a regular expression between slashes", `try metadata.user_id, or "/\\bACME-[0-9]+/"`)
			continue
		}
		r.paths = append(r.paths, path)
	}
	return r
}

var errDeep = errors.New("the request is nested too deeply to be read")

// Apply returns a JSON text without what must not be kept, and in how many places
// something was taken out. All else is as it was, to the byte. It fails on what is no
// JSON.
func (r *Redaction) Apply(text []byte) (out []byte, places int, err error) {
	if !json.Valid(text) {
		return nil, 0, errors.New("the request is no JSON")
	}
	w := &walk{Redaction: r, out: make([]byte, 0, len(text))}
	w.value(text, nil, false)
	return w.out, w.places, w.err
}

// walk is one pass over a valid JSON text.
type walk struct {
	*Redaction
	out    []byte
	places int
	err    error
}

// deepest is how far values may lie in one another.
const deepest = 200

// value copies one value, with the space around it. named: its member's name alone says
// that its text is a secret.
func (w *walk) value(text []byte, path []string, named bool) {
	begin := 0
	for begin < len(text) && strings.IndexByte(" \t\r\n", text[begin]) >= 0 {
		begin++
	}
	if len(path) > deepest {
		w.err = errDeep
	}
	if w.err != nil || begin == len(text) {
		return
	}
	w.out = append(w.out, text[:begin]...)
	text = text[begin:]
	switch first := text[0]; {
	case w.matches(path) || named && first == '"':
		w.put(redacted)
		w.out = append(w.out, trailing(text)...)
	case first == '{':
		w.members(text, path)
	case first == '[':
		w.elements(text, path)
	case first == '"':
		w.string(text)
	default:
		w.out = append(w.out, text...)
	}
}

// put writes a string instead of what was there.
func (w *walk) put(s string) {
	w.places++
	w.out = append(w.out, quote(s)...)
}

// trailing is the space at the end of a text.
func trailing(text []byte) []byte { return text[len(bytes.TrimRight(text, " \t\r\n")):] }

func (w *walk) members(text []byte, path []string) {
	at := 0 // in text, up to where it has been copied
	peek.Members(text, func(key, value []byte) {
		from := cap(text) - cap(value)
		w.out = append(w.out, text[at:from]...)
		name := peek.Text(text[cap(text)-cap(key)-1 : cap(text)-cap(key)+len(key)+1])
		w.value(value, append(slices.Clip(path), name), slices.Contains(secretNames, strings.ToLower(name)))
		at = from + len(value)
	})
	w.out = append(w.out, text[at:]...)
}

func (w *walk) elements(text []byte, path []string) {
	at, n := 0, 0
	peek.Elements(text, func(value []byte) {
		from := cap(text) - cap(value)
		w.out = append(w.out, text[at:from]...)
		w.value(value, append(slices.Clip(path), strconv.Itoa(n)), false)
		at = from + len(value)
		n++
	})
	w.out = append(w.out, text[at:]...)
}

// string copies a string, without what looks like a secret.
func (w *walk) string(text []byte) {
	end := len(text) - len(trailing(text))
	said := peek.Text(text[:end])
	found, lower := 0, strings.ToLower(said)
	for _, p := range w.patterns {
		if !p.may(lower) {
			continue
		}
		said = p.re.ReplaceAllStringFunc(said, func(string) string {
			found++
			return redacted
		})
	}
	if found == 0 {
		w.out = append(w.out, text...)
		return
	}
	w.put(said)
	w.places += found - 1
	w.out = append(w.out, text[end:]...)
}

func (w *walk) matches(path []string) bool {
	for _, p := range w.paths {
		if len(p) == len(path) && fits(p, path) {
			return true
		}
	}
	return false
}

func fits(pattern, path []string) bool {
	for i, want := range pattern {
		if want != "*" && want != path[i] {
			return false
		}
	}
	return true
}

func quote(s string) []byte {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(fmt.Sprint("keep: a string is no JSON: ", err))
	}
	return []byte(strings.TrimSuffix(b.String(), "\n"))
}
