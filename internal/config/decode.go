package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"mainstay.dev/mainstay/internal/setting"
)

// maxDepth bounds nesting, so that aliases that refer to one another cannot make
// the decoder run away.
const maxDepth = 32

// maxValues bounds what aliases may make of a file, and maxMistakes what is
// worth reading about it.
const (
	maxValues   = 100_000
	maxMistakes = 200
)

// decoder fills structs from a YAML tree. It never stops at a mistake: it notes
// it and goes on, so that all are reported at once.
type decoder struct {
	expand   func(string) (string, error)
	lines    map[string]int // every path that the file mentions
	problems setting.Problems
	unbuilt  bool // inside a section whose feature does not exist yet
	values   int  // decoded so far, those under an alias each time
}

func (d *decoder) mistake(path, what, mend string) { d.problems.Add(path, what, mend) }

// enough counts a value and reports whether to stop.
func (d *decoder) enough() bool {
	d.values++
	return d.values > maxValues || len(d.problems) >= maxMistakes
}

// verdict is every mistake, with a word on what was not looked at.
func (d *decoder) verdict() setting.Problems {
	switch {
	case d.values > maxValues:
		d.mistake("", "holds more than "+strconv.Itoa(maxValues)+" values once its aliases are written out", "use fewer aliases")
	case len(d.problems) >= maxMistakes:
		d.mistake("", "has more mistakes than these", "mend them and check again")
	}
	return d.problems
}

// value decodes n into v, which stands at path.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if depth > maxDepth {
		d.mistake(path, "is nested too deeply", "an alias may refer to itself")
		return
	}
	d.lines[path] = n.Line
	if n.Tag == "!!null" { // `edge:` with nothing below it: the section is there, with its defaults
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, path, "a group of settings", func(key string, val *yaml.Node, line int) { d.field(v, key, val, path, depth) })
	case reflect.Map:
		d.table(n, v, path, depth)
	case reflect.Slice:
		d.list(n, v, path, depth)
	default:
		d.scalar(n, v, path)
	}
}

// mapping calls each for every key of n, once each.
func (d *decoder) mapping(n *yaml.Node, path, wanted string, each func(key string, val *yaml.Node, line int)) {
	if n.Kind != yaml.MappingNode {
		d.mistake(path, "is "+describe(n)+" where "+wanted+" is expected", "write it as key: value lines")
		return
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if d.enough() {
			return
		}
		key, val := n.Content[i], n.Content[i+1]
		at := setting.Join(path, key.Value)
		if key.Kind != yaml.ScalarNode {
			d.mistake(path, "has a key that is not text", "")
			continue
		}
		if line, twice := first[key.Value]; twice {
			d.lines[at] = key.Line
			d.mistake(at, fmt.Sprintf("is given twice, first in line %d", line), "rename or remove one")
			continue
		}
		first[key.Value] = key.Line
		if key.Tag == "!!merge" {
			d.lines[at] = key.Line
			d.mistake(at, "is a merge key, which is not supported", "write the settings out")
			continue
		}
		each(key.Value, val, key.Line)
		d.lines[at] = key.Line
	}
}

func (d *decoder) field(v reflect.Value, key string, n *yaml.Node, path string, depth int) {
	at := setting.Join(path, key)
	f, ok := fieldFor(v.Type(), key)
	if !ok {
		mend := "the keys here are " + strings.Join(keysOf(v.Type()), ", ")
		if near := nearest(key, keysOf(v.Type())); near != "" {
			mend = "did you mean " + near + "?"
		}
		d.mistake(at, "unknown key", mend)
		return
	}
	why := f.Tag.Get("planned")
	if why == "" || d.unbuilt {
		d.value(n, v.FieldByIndex(f.Index), at, depth+1)
		return
	}
	d.unbuilt = true // one message for the section is enough
	d.value(n, v.FieldByIndex(f.Index), at, depth+1)
	d.unbuilt = false
	d.mistake(at, notBuilt+": "+why, "remove it")
}

// notBuilt begins the mistake of a setting whose feature does not exist yet.
const notBuilt = "not built yet"

func (d *decoder) table(n *yaml.Node, v reflect.Value, path string, depth int) {
	v.Set(reflect.MakeMap(v.Type()))
	d.mapping(n, path, "a table of names", func(key string, val *yaml.Node, line int) {
		elem := fresh(v.Type().Elem())
		d.value(val, elem, setting.Join(path, key), depth+1)
		v.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), elem)
	})
}

// A scalarDecoder is a list that may also be written as one scalar, such as a
// command written as a shell line.
type scalarDecoder interface{ DecodeScalar(s string) error }

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string, depth int) {
	if sd, ok := reflect.TypeAssert[scalarDecoder](v.Addr()); ok && n.Kind == yaml.ScalarNode {
		s, ok := d.text(n, path)
		if !ok {
			return
		}
		if err := sd.DecodeScalar(s); err != nil {
			d.mistake(path, err.Error(), "")
		}
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.mistake(path, "is "+describe(n)+" where a list is expected", "write it as [a, b]")
		return
	}
	list := reflect.MakeSlice(v.Type(), 0, len(n.Content))
	for i, item := range n.Content {
		if d.enough() {
			return
		}
		elem := fresh(v.Type().Elem())
		d.value(item, elem, fmt.Sprintf("%s[%d]", path, i), depth+1)
		list = reflect.Append(list, elem)
	}
	v.Set(list)
}

// text returns a scalar's text with its references expanded.
func (d *decoder) text(n *yaml.Node, path string) (string, bool) {
	s, err := d.expand(n.Value)
	if err != nil {
		d.mistake(path, err.Error(), "")
		return "", false
	}
	return s, true
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode {
		d.mistake(path, "is "+describe(n)+" where "+kindName(v.Type())+" is expected", "")
		return
	}
	s, ok := d.text(n, path)
	if !ok {
		return
	}
	if v.Kind() == reflect.String && n.Tag != "!!str" && n.Style == 0 {
		mend := "put it in quotes"
		if _, secret := reflect.TypeAssert[setting.Secret](v); !secret {
			mend += fmt.Sprintf(": %q", n.Value)
		}
		d.mistake(path, "is "+describe(n)+" where text is expected", mend)
		return
	}
	if err := setScalar(v, s); err != nil {
		// The text may have come from a secret, so a bad one is not repeated when
		// it is not literally in the file.
		what := err.Error()
		if s != n.Value {
			what = "the value of " + n.Value + " is not " + kindName(v.Type())
		}
		d.mistake(path, what, "")
	}
}

func setScalar(v reflect.Value, s string) error {
	switch v.Interface().(type) {
	case time.Duration:
		t, err := parseDuration(s)
		if err != nil {
			return err
		}
		v.SetInt(int64(t))
		return nil
	case setting.Bytes:
		b, err := setting.ParseBytes(s)
		if err != nil {
			return err
		}
		v.SetInt(int64(b))
		return nil
	case setting.Percent:
		p, err := setting.ParsePercent(s)
		if err != nil {
			return err
		}
		v.SetFloat(float64(p))
		return nil
	}
	wrong := fmt.Errorf("%q is not %s", s, kindName(v.Type()))
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return wrong
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return wrong
		}
		v.SetInt(i)
	case reflect.Float64:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return wrong
		}
		v.SetFloat(f)
	default:
		panic("config: a field of kind " + v.Kind().String() + " has no form in YAML")
	}
	return nil
}

// parseDuration reads 250ms, 30s, 5m, 1h30m and, beyond time.ParseDuration, 14d.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 && n <= 36500 {
			return time.Duration(n * float64(24*time.Hour)), nil
		}
	}
	t, err := time.ParseDuration(s)
	if err != nil || t < 0 {
		return 0, fmt.Errorf("%q is not a length of time; write it as 250ms, 30s, 5m or 14d", s)
	}
	return t, nil
}

// fresh returns a settable value of type t with its defaults.
func fresh(t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	setDefaults(v)
	return v
}

// setDefaults asks v and then the structs inside it for their defaults.
func setDefaults(v reflect.Value) {
	if v.Kind() != reflect.Struct {
		return
	}
	if s, ok := reflect.TypeAssert[interface{ SetDefaults() }](v.Addr()); ok {
		s.SetDefaults()
	}
	for _, f := range fieldsOf(v.Type()) {
		setDefaults(v.FieldByIndex(f.Index))
	}
}

// fieldsOf lists the fields that have a key in the file, in order.
func fieldsOf(t reflect.Type) (fs []reflect.StructField) {
	for f := range t.Fields() {
		if f.IsExported() && keyOf(f) != "" {
			fs = append(fs, f)
		}
	}
	return fs
}

func keyOf(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if key == "-" {
		return ""
	}
	return key
}

func fieldFor(t reflect.Type, key string) (reflect.StructField, bool) {
	fs := fieldsOf(t)
	i := slices.IndexFunc(fs, func(f reflect.StructField) bool { return keyOf(f) == key })
	if i < 0 {
		return reflect.StructField{}, false
	}
	return fs[i], true
}

func keysOf(t reflect.Type) (keys []string) {
	for _, f := range fieldsOf(t) {
		keys = append(keys, keyOf(f))
	}
	return keys
}
