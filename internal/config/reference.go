package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// Reference renders the configuration's reference page, in Markdown, from the
// structs themselves.
func Reference() string {
	var b strings.Builder
	b.WriteString("# Configuration reference\n\n" +
		"One file, `mainstay.yaml`. Unknown keys are errors; absent means default; zero means zero.\n" +
		"Lengths of time are written `250ms`, `30s`, `5m`, `14d`; sizes `64KB`, `32MB` (powers of ten) or `64KiB`, `32MiB`\n" +
		"(powers of two); shares `5%`. In any value, `${NAME}` is an environment variable, `${NAME:-default}` one with a\n" +
		"default, and `file:path` as the whole value is a file's content, which keeps secrets out of the file. `$${` is a\n" +
		"literal `${`.\n\n" +
		"`mainstay check` validates a file, `mainstay config` prints what is in force.\n" +
		"Generated from the code by `make docs`; do not edit.\n")
	root := reflect.New(reflect.TypeFor[Config]()).Elem()
	setDefaults(root)
	var later []string
	section(&b, root, "", &later)
	b.WriteString("\n## Not built yet\n\nThese keys are understood, and refused until their feature exists.\n\n| key | comes with |\n|---|---|\n")
	for _, row := range later {
		b.WriteString(row)
	}
	return b.String()
}

// section writes the rows of one struct and then its groups, each under a heading.
func section(b *strings.Builder, v reflect.Value, path string, later *[]string) {
	head := "## `" + path + "`"
	if path == "" {
		head = "## Top level"
	}
	fmt.Fprintf(b, "\n%s\n\n| key | takes | default | what it is |\n|---|---|---|---|\n", head)
	type group struct {
		v    reflect.Value
		path string
	}
	var groups []group
	for _, f := range fieldsOf(v.Type()) {
		at := setting.Join(path, keyOf(f))
		if why := f.Tag.Get("planned"); why != "" {
			*later = append(*later, fmt.Sprintf("| `%s` | %s |\n", at, cell(why)))
			continue
		}
		fv := v.FieldByIndex(f.Index)
		takes, def := kindName(fv.Type()), "`"+defaultOf(fv)+"`"
		switch {
		case fv.Kind() == reflect.Struct:
			groups = append(groups, group{fv, at})
			takes, def = "[a group](#"+anchor(at)+")", ""
		case fv.Kind() == reflect.Map && fv.Type().Elem().Kind() == reflect.Struct:
			below := at + ".<name>"
			groups = append(groups, group{fresh(fv.Type().Elem()), below})
			takes, def = "[a group per name](#"+anchor(below)+")", ""
		case fv.Kind() == reflect.Map:
			takes, def = "a table of names", ""
		case fv.Type() == reflect.TypeFor[setting.Secret]():
			takes, def = "text (secret)", ""
		}
		if def == "``" {
			def = ""
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", keyOf(f), takes, def, cell(f.Tag.Get("doc")))
	}
	for _, g := range groups {
		section(b, g.v, g.path, later)
	}
}

func defaultOf(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		return ""
	}
	return inWords(v)
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

// anchor is the fragment that Markdown renderers give to the heading.
func anchor(path string) string {
	return strings.NewReplacer(".", "", "<", "", ">", "").Replace(path)
}

// Schema renders a JSON Schema (draft 2020-12) for editors. References and units
// are text, so a value that is no text in the end may be written as text too.
func Schema() ([]byte, error) {
	s := schemaOf(reflect.TypeFor[Config](), "")
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "mainstay.yaml"
	return json.MarshalIndent(s, "", "  ")
}

func schemaOf(t reflect.Type, doc string) map[string]any {
	s := map[string]any{}
	if doc != "" {
		s["description"] = doc
	}
	switch {
	case t == reflect.TypeFor[time.Duration](), t == reflect.TypeFor[setting.Bytes](), t == reflect.TypeFor[setting.Percent]():
		s["type"] = []string{"string", "number"}
		return s
	}
	switch t.Kind() {
	case reflect.Struct:
		props := map[string]any{}
		for _, f := range fieldsOf(t) {
			below := schemaOf(f.Type, f.Tag.Get("doc"))
			if why := f.Tag.Get("planned"); why != "" {
				below["description"] = f.Tag.Get("doc") + " Not built yet: " + why + "."
				below["deprecated"] = true
			}
			props[keyOf(f)] = below
		}
		s["type"], s["properties"], s["additionalProperties"] = "object", props, false
	case reflect.Map:
		s["type"], s["additionalProperties"] = "object", schemaOf(t.Elem(), "")
	case reflect.Slice:
		s["type"], s["items"] = "array", schemaOf(t.Elem(), "")
		if reflect.PointerTo(t).Implements(reflect.TypeFor[scalarDecoder]()) {
			s["type"] = []string{"array", "string"}
		}
	case reflect.Bool:
		s["type"] = []string{"boolean", "string"}
	case reflect.Int, reflect.Int64, reflect.Float64:
		s["type"] = []string{"number", "string"}
	default:
		s["type"] = "string"
	}
	return s
}
