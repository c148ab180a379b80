package directory

import (
	"fmt"
	"os"
	"strings"
)

// ReadList reads a file of users: on each line a name and a secret, both in double
// quotes, as PgBouncer's auth_file has them. A quote inside is doubled; a line that
// begins with ; or # says nothing.
func ReadList(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseList(string(text))
}

func parseList(text string) (map[string]string, error) {
	users := map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == ';' || line[0] == '#' {
			continue
		}
		name, rest, ok1 := unquote(line)
		secret, _, ok2 := unquote(strings.TrimLeft(rest, " \t"))
		if !ok1 || !ok2 || name == "" || secret == "" {
			return nil, fmt.Errorf(`line %d is not "user" "secret"`, i+1)
		}
		users[name] = secret
	}
	return users, nil
}

func unquote(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		return "", "", false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), s[i+1:], true
	}
	return "", "", false
}
