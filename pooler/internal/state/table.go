package state

import (
	"runtime"
	"sync"
	"weak"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// A Table makes equal settings the same, as long as somebody has them, so that many
// clients with equal settings keep one copy. Its methods may be called from several
// goroutines.
type Table struct {
	mu    sync.Mutex
	by    map[string]weak.Pointer[Settings]
	texts map[string]*Settings
}

// Intern returns the one that equals s.
func (t *Table) Intern(s *Settings) *Settings {
	if s.key == "" {
		return None
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.by[s.key].Value(); known != nil {
		return known
	}
	if t.by == nil {
		t.by = map[string]weak.Pointer[Settings]{}
	}
	t.by[s.key] = weak.Make(s)
	runtime.AddCleanup(s, t.forget, s.key)
	return s
}

func (t *Table) forget(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.by[key]; ok && p.Value() == nil {
		delete(t.by, key)
	}
}

// maxTexts bounds how many welcomes are known.
const maxTexts = 64

// OfWelcome takes the settings from ParameterStatus messages, as a client gets them
// at login.
func (t *Table) OfWelcome(messages []byte) *Settings {
	t.mu.Lock()
	known := t.texts[string(messages)]
	t.mu.Unlock()
	if known != nil {
		return known
	}
	var list []pgwire.Param
	for rest := messages; len(rest) >= pgwire.HeaderSize; {
		_, n, body := pgwire.Split(rest)
		if name, value, _, ok := pgwire.Strings(body); ok {
			list = append(list, pgwire.Param{Name: string(name), Value: string(value)})
		}
		rest = rest[n:]
	}
	s := t.Intern(Of(list))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.texts == nil || len(t.texts) >= maxTexts {
		t.texts = map[string]*Settings{}
	}
	t.texts[string(messages)] = s
	return s
}
