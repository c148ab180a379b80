package prepared

import (
	"bytes"

	"mainstay.dev/mainstay/pooler/internal/scan"
)

// Stains knows of which statements, that clients share, PostgreSQL may have made something else on one server since they were
// prepared: when a table has changed, or has been analysed, it looks into their texts once more, under the settings of whoever uses them
// then. The zero value is ready for use, by one goroutine at a time.
type Stains[S comparable] struct {
	Doubted bool // the open transaction may have changed settings that decide what constants mean
	Changed bool // it did, by their names, and maybe for itself alone

	by map[S]uint32
}

// Foreign reports whether somebody else may have done so.
func (s *Stains[S]) Foreign(statement S, who uint32) bool {
	by, stained := s.by[statement]
	return stained && by != who
}

// Add notes that somebody may do so.
func (s *Stains[S]) Add(statement S, who uint32) {
	if s.by == nil {
		s.by = map[S]uint32{}
	}
	s.by[statement] = who
}

// Drop notes that the server is to know it no more, or anew.
func (s *Stains[S]) Drop(statement S) { delete(s.by, statement) }

// Clear is that for all.
func (s *Stains[S]) Clear() { clear(s.by) }

// Doubt notes that what a Parse prepares by this body, which may be nil, or a text, may change settings in these ways.
func (s *Stains[S]) Doubt(e scan.Effect, body []byte, backslash bool) {
	if e == 0 || s.Changed {
		return
	}
	text, _, _ := bytes.Cut(body, []byte{0})
	if !s.Change(e, text) && !s.Doubted {
		s.Doubted = e&^(scan.Setting|scan.Local) != 0 || e&^scan.Effects(text, backslash) != 0 // what it calls does so
	}
}

// Change notes a text that changes settings in these ways, or, where that is done, the name of one that has changed. It reports
// whether these may decide what constants mean.
func (s *Stains[S]) Change(e scan.Effect, text []byte) bool {
	may, named := scan.Reinterprets(text)
	s.Doubted = s.Doubted || may
	s.Changed = s.Changed || named && e&(scan.Local|scan.AnyChange) != 0
	return may
}

// Settle forgets what the transaction did, which is over. It reports whether functions may have been analysed under settings that were
// its own.
func (s *Stains[S]) Settle() (changed bool) {
	changed = s.Changed
	s.Doubted, s.Changed = false, false
	return changed
}
