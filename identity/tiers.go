package identity

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// tierTable says who has which tier, whatever a token says.
type tierTable struct{ users, workspaces map[string]string }

func newTierTable() *tierTable {
	return &tierTable{map[string]string{}, map[string]string{}}
}

// add notes one line of it: user:7 or workspace:acme, and the tier.
func (t *tierTable) add(who, tier string) bool {
	kind, id, _ := strings.Cut(who, ":")
	if !validID(id) || !validTier(tier) {
		return false
	}
	switch kind {
	case "user":
		t.users[id] = tier
	case "workspace":
		t.workspaces[id] = tier
	default:
		return false
	}
	return true
}

// of is the tier of w, the user's own before the workspace's; empty: none is noted.
func (t *tierTable) of(w *Who) string {
	if w.User != "" {
		if tier, ok := t.users[w.User]; ok {
			return tier
		}
	}
	if w.Workspace != "" {
		return t.workspaces[w.Workspace]
	}
	return ""
}

const maxTierLines = 4 << 20

// readTiers reads the file of tiers.
func readTiers(r io.Reader) (*tierTable, error) {
	t := newTierTable()
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		if n > maxTierLines {
			return nil, errors.New("has more than 4 million lines")
		}
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.LastIndexAny(line, " \t") // an id may hold blanks, a tier may not
		if i < 0 || !t.add(strings.TrimSpace(line[:i]), line[i+1:]) {
			return nil, fmt.Errorf("line %d is not written as: user:7 pro", n)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return t, nil
}
