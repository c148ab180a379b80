// Package prepared knows what a Parse message says of the statement that it prepares: what stands behind its
// name is called its body here, the text and the types of its parameters.
//
// Only the pooler imports it. It is pure.
package prepared

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// split splits a body: its text, and the oids of the types that it names; 0 is one that PostgreSQL is to find out.
func split(body []byte) (text []byte, oids []uint32) {
	text, rest, _ := pgwire.String(body)
	return text, pgwire.ParameterTypes(rest)
}

// Describable reports whether what PostgreSQL says of a statement is known from its body: it returns
// no rows, and its parameters have the types that it was prepared with.
func Describable(body []byte) bool {
	text, declared := split(body)
	return scan.Rowless(text) && scan.Parameters(text, false) <= len(declared) && !slices.Contains(declared, 0)
}

// Nameless reports whether it lacks only the types.
func Nameless(body []byte) bool {
	text, _ := split(body)
	return scan.Rowless(text) && !Describable(body)
}

// Types are those that it names.
func Types(body []byte) []uint32 {
	_, oids := split(body)
	return oids
}

// Typed is the body with these types of its parameters.
func Typed(body []byte, oids []uint32) []byte {
	text, _ := split(body)
	typed := binary.BigEndian.AppendUint16(append(slices.Clone(text), 0), uint16(len(oids)))
	for _, oid := range oids {
		typed = binary.BigEndian.AppendUint32(typed, oid)
	}
	return typed
}

// Columns is a mark of the columns that a RowDescription tells, as far as PostgreSQL holds a statement to them: their names and
// types, and neither tables nor formats. It is 0 if the body is cut short.
func Columns(body []byte) (mark uint64) {
	const fixed = 18
	mark = 14695981039346656037 // FNV-1a
	add := func(p []byte) {
		for _, c := range p {
			mark = (mark ^ uint64(c)) * 1099511628211
		}
	}
	if len(body) < 2 {
		return 0
	}
	n, rest := binary.BigEndian.Uint16(body), body[2:]
	for range n {
		end := bytes.IndexByte(rest, 0) + 1
		if end == 0 || len(rest) < end+fixed {
			return 0
		}
		add(rest[:end])
		add(rest[end+6 : end+16])
		rest = rest[end+fixed:]
	}
	return max(mark, 1)
}

// Misfits reports whether a Bind, what follows its names being rest, certainly has another number of values than the
// statement with this body has parameters. PostgreSQL finds that before anything else: before a table that is gone.
func Misfits(body, rest []byte) bool {
	text, declared := split(body)
	takes, certain := scan.Takes(text, len(declared))
	n, ok := pgwire.Bound(rest)
	return certain && ok && n != takes
}

// textType is the oid of PostgreSQL's type text.
const textType = 25

// Empty is the body of an empty statement with the same parameters.
func Empty(body []byte, backslash bool) []byte {
	text, oids := split(body)
	for n := scan.Parameters(text, backslash); len(oids) < n; {
		oids = append(oids, textType)
	}
	empty := binary.BigEndian.AppendUint16([]byte{0}, uint16(len(oids)))
	for _, oid := range oids {
		empty = binary.BigEndian.AppendUint32(empty, cmp.Or(oid, textType))
	}
	return empty
}

// Uses yields the names of the statements that the first of a client's cycles uses, as far as it does not give them a
// meaning itself; in SQL too, if inSQL. "" is the unnamed one.
func Uses(cycle []byte, backslash, inSQL bool, yield func(name []byte)) {
	own := map[string]bool{}
	for rest := cycle; pgwire.Holds(rest); {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		var name, text []byte
		switch typ {
		case pgwire.Sync, pgwire.FunctionCall:
			return
		case pgwire.Query:
			text, rest = bytes.TrimSuffix(body, []byte{0}), nil
		case pgwire.Parse:
			name, text, _, _ = pgwire.Strings(body)
		case pgwire.Bind:
			_, name, _, _ = pgwire.Strings(body)
		case pgwire.Describe, pgwire.Close:
			if len(body) < 2 || body[0] != 'S' {
				continue
			}
			name = body[1 : len(body)-1]
		default:
			continue
		}
		if inSQL && len(text) > 0 {
			for _, use := range scan.Uses(text, backslash) {
				if !own[use.Name] && !use.Drops && !use.Makes {
					yield(apartFrom([]byte(use.Name)))
				}
			}
		}
		switch typ {
		case pgwire.Parse, pgwire.Close:
			own[string(name)] = true
		case pgwire.Bind, pgwire.Describe:
			if !own[string(name)] {
				yield(apartFrom(name))
			}
		}
	}
}

// UsedBehind yields the names of the statements that a cycle uses behind something that it executes, as far as it does not give them a
// meaning itself, until that returns false.
func UsedBehind(cycle []byte, yield func(name []byte) bool) {
	var own [][]byte
	behind := false
	for rest := cycle; pgwire.Holds(rest); {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		var name []byte
		switch typ {
		case pgwire.Execute:
			behind = true
			continue
		case pgwire.Parse:
			name, _, _ = pgwire.String(body)
			own = append(own, name)
			continue
		case pgwire.Bind:
			_, name, _, _ = pgwire.Strings(body)
		case pgwire.Describe:
			if len(body) < 2 || body[0] != 'S' {
				continue
			}
			name = body[1 : len(body)-1]
		case pgwire.Close:
			continue
		default:
			return
		}
		if behind && !slices.ContainsFunc(own, func(o []byte) bool { return bytes.Equal(o, name) }) && !yield(name) {
			return
		}
	}
}

// Names reports whether a message of PostgreSQL's, in whatever language, names this.
func Names(message []byte, name string) bool {
	for {
		_, rest, found := bytes.Cut(message, []byte(name))
		if !found {
			return false
		}
		if goesOn := len(rest) > 0 && ('0' <= rest[0] && rest[0] <= '9' || 'a' <= rest[0] && rest[0] <= 'z' || rest[0] == '_'); !goesOn {
			return true
		}
		message = rest
	}
}

// Changed is the body of PostgreSQL's error for a statement whose columns are not those any more that it had when it was
// prepared. Drivers know it by what is not its text, too.
func Changed(severity []byte) []byte {
	return slices.Concat([]byte("S"), severity, []byte("\x00VERROR\x00C0A000\x00Mcached plan must not change result type\x00Fplancache.c\x00RRevalidateCachedQuery\x00\x00"))
}

// Unnamed is the body of an ErrorResponse for the unnamed statement, where it cannot be made again as it was.
var Unnamed = []byte("SERROR\x00VERROR\x00C26000\x00Munnamed prepared statement does not exist\x00" +
	"HIt was prepared behind a change of settings in its transaction, and the server that has it serves others now: send its Parse again.\x00\x00")
