package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// maxSecretFile bounds what a file: reference may hold.
const maxSecretFile = 64 << 10

// expander resolves the references in scalars: "${NAME}", "${NAME:-default}" and,
// where it is the whole scalar, "file:path". "$${" stands for a literal "${".
// References are expanded inside parsed scalars and never in the file's text, so
// a value cannot change the file's structure.
type expander struct {
	lookup func(string) (string, bool)
	dir    string // relative file: references start here
}

func (e expander) expand(s string) (string, error) {
	if path, ok := strings.CutPrefix(s, "file:"); ok {
		return e.file(path)
	}
	var out strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			out.WriteString(s)
			return out.String(), nil
		}
		if i > 0 && s[i-1] == '$' {
			out.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		out.WriteString(s[:i])
		ref, rest, ok := strings.Cut(s[i+2:], "}")
		if !ok {
			return "", fmt.Errorf("a reference is not closed; write it as ${NAME}, or $${ for the characters themselves")
		}
		v, err := e.env(ref)
		if err != nil {
			return "", err
		}
		out.WriteString(v)
		s = rest
	}
}

func (e expander) env(ref string) (string, error) {
	name, fallback, hasFallback := strings.Cut(ref, ":-")
	if !validName(name) {
		// The rest of ref is not repeated: a default may be a secret.
		return "", fmt.Errorf("${%s} does not name an environment variable; write it as ${NAME} or ${NAME:-default}", name)
	}
	if v, ok := e.lookup(name); ok && (v != "" || !hasFallback) {
		return v, nil
	}
	if !hasFallback {
		return "", fmt.Errorf("the environment variable %s is not set; set it, or give a default: ${%s:-…}", name, name)
	}
	return fallback, nil
}

func validName(s string) bool {
	for i, c := range s {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// file reads a secret; one line end at its end is not part of it.
func (e expander) file(path string) (string, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(e.dir, path)
	}
	// A pipe or a device might keep the reader waiting for good.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s, to which it refers, is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("the file it refers to cannot be read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", fmt.Errorf("the file it refers to cannot be read: %w", err)
	}
	if len(b) > maxSecretFile {
		return "", fmt.Errorf("%s is larger than 64 KiB, which no secret is", path)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}
