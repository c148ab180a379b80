package otlp

import (
	"slices"
	"strings"
)

// maxMembers bounds a tracestate's members (https://www.w3.org/TR/trace-context/#list).
const maxMembers = 32

// appendState appends the members of a tracestate header, without the white space around
// them. ok is false, and nothing is appended, if it is none: what cannot be read is left
// out.
func appendState(to []byte, state string) (all []byte, ok bool) {
	all = to
	var keys [maxMembers]string
	for n := 0; state != ""; {
		var member string
		if member, state, _ = strings.Cut(state, ","); member == "" {
			continue
		}
		key, value, found := strings.Cut(member, "=")
		key, value = strings.TrimLeft(key, " \t"), strings.TrimRight(value, " \t")
		if !found || !stateKey(key) || !stateValue(value) || n == maxMembers || slices.Contains(keys[:n], key) {
			return to, false
		}
		if keys[n] = key; n > 0 {
			all = append(all, ',')
		}
		n++
		all = append(all, key...)
		all = append(all, '=')
		all = append(all, value...)
	}
	return all, true
}

// stateKey reports whether s is a key: name, or tenant@system.
func stateKey(s string) bool {
	tenant, system, two := strings.Cut(s, "@")
	if !two {
		return stateName(s, 256) && !digit(s[0])
	}
	return stateName(tenant, 241) && stateName(system, 14) && !digit(system[0])
}

// stateName reports whether s begins with a small letter or a digit and goes on with
// what names hold, up to most bytes in all.
func stateName(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !digit(c) && (c < 'a' || c > 'z') && (i == 0 || c != '_' && c != '-' && c != '*' && c != '/') {
			return false
		}
	}
	return true
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// stateValue reports whether s is a value: up to 256 printable characters, of which the
// last is no space.
func stateValue(s string) bool {
	if s == "" || len(s) > 256 || s[len(s)-1] == ' ' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == ',' || c == '=' {
			return false
		}
	}
	return true
}
