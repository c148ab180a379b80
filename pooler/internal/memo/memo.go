// Package memo remembers what is known of SQL texts by what stays of them without their
// constants, so that the same statement with other numbers need not be read again.
//
// Only the pooler imports it. A [Table] may be used from many goroutines at once.
package memo

import (
	"bytes"
	"hash/maphash"
	"sync/atomic"
)

// MaxText bounds the texts that have a key, in bytes: longer ones are worth being read.
const MaxText = 1 << 10

// Marks in a key, of constants and comments. Texts that hold such bytes have none.
const (
	number  = 1
	text    = 2
	comment = 3

	marks = "\x01\x02\x03"
)

// What a byte is to [Key].
const (
	plain   = iota // stands for itself
	letter         // begins a word
	digit          // begins a number, where no word goes on
	quote          // begins a string
	name           // begins a name in quotes
	sign           // may begin a comment, or a parameter
	unclear        // begins what is not worth being understood here
)

var class = func() (c [256]uint8) {
	for i := range c {
		switch b := byte(i); {
		case 'a' <= b|0x20 && b|0x20 <= 'z', b == '_', b >= 0x80:
			c[i] = letter
		case '0' <= b && b <= '9':
			c[i] = digit
		case b == '\'':
			c[i] = quote
		case b == '"':
			c[i] = name
		case b == '$', b == '-', b == '/':
			c[i] = sign
		case b == '\\', b < ' ' && (b < '\t' || b > '\r'):
			c[i] = unclear
		}
	}
	return c
}()

// goesOn tells of each byte whether a word may go on with it.
var goesOn = func() (is [256]bool) {
	for i, c := range class {
		is[i] = c == letter || c == digit || i == '$'
	}
	return is
}()

// Key appends to dst the text with a mark in place of each constant and comment: texts with
// the same key have the same tokens, but for the digits of whole numbers and what stands in
// strings. ok is false for a text that has none, because it is long, or holds what would
// have to be read to know that: backslashes, strings with a prefix, in dollars or with
// quotes in them, comments to the line's end or with others in them.
func Key(dst, sql []byte) (key []byte, ok bool) {
	if len(sql) > MaxText {
		return dst, false
	}
	copied := 0 // so much of the text is in the key
	for i := 0; i < len(sql); {
		from, c := i, sql[i]
		i++
		switch class[c] {
		case plain:
		case letter:
			for i < len(sql) && goesOn[sql[i]] {
				i++
			}
			if i < len(sql) && sql[i] == '\'' {
				return dst, false
			}
		case digit:
			for i < len(sql) && class[sql[i]] == digit {
				i++
			}
			if whole(sql, from, i) {
				dst = append(append(dst, sql[copied:from]...), number)
				copied = i
			}
		case quote:
			n := bytes.IndexByte(sql[i:], '\'')
			if n < 0 || bytes.IndexByte(sql[i:i+n], '\\') >= 0 || from > 0 && sql[from-1] == '&' || i+n+1 < len(sql) && sql[i+n+1] == '\'' {
				return dst, false
			}
			i += n + 1
			dst = append(append(dst, sql[copied:from]...), text)
			copied = i
		case name:
			n := bytes.IndexByte(sql[i:], '"')
			if n < 0 || bytes.ContainsAny(sql[i:i+n], marks) {
				return dst, false
			}
			i += n + 1
		case unclear:
			return dst, false
		case sign:
			switch {
			case c == '$': // a parameter is the same only with its number
				if i == len(sql) || class[sql[i]] != digit {
					return dst, false
				}
				for i < len(sql) && class[sql[i]] == digit {
					i++
				}
			case c == '-' && i < len(sql) && sql[i] == '-':
				return dst, false
			case c == '/' && i < len(sql) && sql[i] == '*':
				n := bytes.Index(sql[i+1:], []byte("*/"))
				if n < 0 || bytes.Contains(sql[i+1:i+1+n], []byte("/*")) || n > 0 && sql[i+n] == '/' {
					return dst, false
				}
				i += n + 3
				dst = append(append(dst, sql[copied:from]...), comment)
				copied = i
			}
		}
	}
	return append(dst, sql[copied:]...), true
}

// Commented reports whether the text of this key has a comment.
func Commented(key []byte) bool { return bytes.IndexByte(key, comment) >= 0 }

// whole reports whether the digits there are a number, and all of it.
func whole(sql []byte, from, to int) bool {
	if from > 0 && sql[from-1] == '.' {
		return false
	}
	return to == len(sql) || class[sql[to]] != letter && sql[to] != '.' && sql[to] != '$'
}

// slots is how many texts are remembered at most; each that comes may take another's place.
const slots = 1 << 10

// A Table is what is known of texts, by their keys.
type Table[T any] struct {
	seed  maphash.Seed
	slots [slots]atomic.Pointer[entry[T]]
}

type entry[T any] struct {
	key   string
	value T
}

// New returns an empty table.
func New[T any]() *Table[T] { return &Table[T]{seed: maphash.MakeSeed()} }

func (t *Table[T]) slot(key []byte) *atomic.Pointer[entry[T]] {
	return &t.slots[maphash.Bytes(t.seed, key)%slots]
}

// Get returns what is known of the texts with this key.
func (t *Table[T]) Get(key []byte) (value T, ok bool) {
	if e := t.slot(key).Load(); e != nil && e.key == string(key) {
		return e.value, true
	}
	return value, false
}

// Put remembers it. The key may be used again afterwards.
func (t *Table[T]) Put(key []byte, value T) { t.slot(key).Store(&entry[T]{string(key), value}) }
