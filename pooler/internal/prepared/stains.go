package prepared

import (
	"bytes"

	"mainstay.dev/mainstay/pooler/internal/scan"
)

// Stains knows of which statements, that clients share, PostgreSQL may have made something else on one server since they were
// prepared: when a table has changed, or has been analysed, it looks into their texts once more, under the settings of whoever uses them
// then. The zero value is ready for use, by one goroutine at a time.
type Stains[S comparable] struct {
	Loose bool // the open transaction may have changed settings that decide what constants mean

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

// Loosen notes that what a Parse prepares by this body, which may be nil, or a text, may change settings in these ways.
func (s *Stains[S]) Loosen(e scan.Effect, body []byte, backslash bool) {
	if e == 0 || s.Loose {
		return
	}
	text, _, _ := bytes.Cut(body, []byte{0})
	s.Loose = e&^(scan.Setting|scan.Local) != 0 || scan.Reinterprets(text) || e&^scan.Effects(text, backslash) != 0 // what it calls does so
}
