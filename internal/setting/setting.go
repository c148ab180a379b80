// Package setting holds what the configuration structs of all packages are made
// of: secrets that never show themselves, sizes, percentages, and the list of
// mistakes that validation reports all at once.
//
// A configuration struct carries, per field, the tags yaml (its key), doc (one
// sentence for the reference page) and, where the feature is not built yet,
// planned (what will bring it). A struct whose pointer has a SetDefaults method
// gets it called before the file is decoded into it; absent then means default,
// and zero means zero. A struct with a Validate(*Problems) method is asked for
// its mistakes, with paths relative to itself.
package setting

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
)

// A Secret is a value that is never printed, logged or encoded; Reveal is the one
// way to read it.
type Secret string

// Reveal returns the value itself.
func (s Secret) Reveal() string { return string(s) }

// Masked is what stands for a secret wherever one would be shown.
const Masked = "(secret)"

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return Masked
}

// GoString keeps %#v from showing the value.
func (s Secret) GoString() string { return s.String() }

// Format keeps every verb from showing the value, %d too.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalJSON keeps encoding/json from showing the value.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalText keeps text encoders from showing the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps slog from showing the value.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Bytes is a size. In the file it is written 64KB, 32MB or 1GB (powers of ten),
// 64KiB, 32MiB or 1GiB (powers of two), or as a plain number of bytes.
type Bytes int64

var units = []struct {
	name string
	size int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1},
}

// ParseBytes reads a size.
func ParseBytes(s string) (Bytes, error) {
	num, mul := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(num, u.name); ok {
			num, mul = strings.TrimSpace(rest), u.size
			break
		}
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || !(f >= 0 && f*float64(mul) <= 1<<62) || f > 0 && f*float64(mul) < 1 { // NaN is neither; less than a byte is not none
		return 0, fmt.Errorf("%q is not a size; write it as 64KB, 32MB or 1GiB", s)
	}
	return Bytes(f * float64(mul)), nil
}

// String writes the size with the unit that makes the number smallest.
func (b Bytes) String() string {
	best, name := int64(b), ""
	for _, u := range units {
		if int64(b)%u.size == 0 && int64(b)/u.size < best {
			best, name = int64(b)/u.size, u.name
		}
	}
	return strconv.FormatInt(best, 10) + name
}

// Percent is a share, 0.01 for 1%. In the file it is written 1% or 0.01.
type Percent float64

// ParsePercent reads a share.
func ParsePercent(s string) (Percent, error) {
	num, pct := strings.CutSuffix(strings.TrimSpace(s), "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if pct {
		f /= 100
	}
	if err != nil || !(f >= 0 && f <= 1) { // NaN is neither
		return 0, fmt.Errorf("%q is not a share; write it as 5%% or 0.05", s)
	}
	return Percent(f), nil
}

func (p Percent) String() string {
	return strconv.FormatFloat(float64(p)*100, 'g', 6, 64) + "%"
}

// A Problem is one mistake in a configuration.
type Problem struct {
	Path string // "edge.drain", relative to the struct that reported it
	What string // "must be positive"
	Mend string // "try 30s"; may be empty
}

func (p Problem) Error() string {
	s := p.What
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if p.Mend != "" {
		s += "; " + p.Mend
	}
	return s
}

// Problems is every mistake found. The zero value is an empty list.
type Problems []Problem

// Add notes a mistake.
func (ps *Problems) Add(path, what, mend string) {
	*ps = append(*ps, Problem{path, what, mend})
}

// Below notes the mistakes of a part, with its key put before their paths.
func (ps *Problems) Below(key string, part Problems) {
	for _, p := range part {
		p.Path = Join(key, p.Path)
		*ps = append(*ps, p)
	}
}

// Join joins two paths: "databases" and "app" to "databases.app".
func Join(a, b string) string {
	switch {
	case a == "":
		return b
	case b == "" || b[0] == '[':
		return a + b
	}
	return a + "." + b
}

// Err returns the list as an error, or nil if it is empty.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Of returns the problems in err: its own list, or one problem without a path.
func Of(err error) Problems {
	if err == nil {
		return nil
	}
	if ps, ok := errors.AsType[Problems](err); ok {
		return ps
	}
	if p, ok := errors.AsType[Problem](err); ok {
		return Problems{p}
	}
	return Problems{{What: err.Error()}}
}
