package config

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"mainstay.dev/mainstay/internal/setting"
)

// YAML renders the effective configuration: every value that is in force, with
// secrets masked and without the settings whose features are not built yet.
func (c *Config) YAML() ([]byte, error) {
	root := render(reflect.ValueOf(c).Elem())
	for i := 0; i < len(root.Content); i += 2 {
		// These are on when the file has them, so showing what they would be would
		// switch them on in the next file.
		if key := root.Content[i].Value; (key == "limits" || key == "local") && !c.Given(key) {
			root.Content = slices.Delete(root.Content, i, i+2)
			i -= 2
		}
	}
	return yaml.Marshal(root)
}

func render(v reflect.Value) *yaml.Node {
	switch v.Kind() {
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, f := range fieldsOf(v.Type()) {
			if f.Tag.Get("planned") == "" {
				n.Content = append(n.Content, text(keyOf(f)), render(v.FieldByIndex(f.Index)))
			}
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, k := range sortedKeys(v) {
			n.Content = append(n.Content, text(k.String()), render(v.MapIndex(k)))
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for i := range v.Len() {
			n.Content = append(n.Content, render(v.Index(i)))
		}
		return n
	}
	return scalarNode(v)
}

func scalarNode(v reflect.Value) *yaml.Node {
	if v.Kind() == reflect.String {
		if s, ok := reflect.TypeAssert[setting.Secret](v); ok {
			return text(s.String())
		}
		return text(v.String())
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: inWords(v)}
}

func text(s string) *yaml.Node {
	n := new(yaml.Node)
	n.SetString(s)
	return n
}

// inWords writes a scalar as one would write it in the file.
func inWords(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return shortDuration(x)
	case setting.Bytes:
		return x.String()
	case setting.Percent:
		return x.String()
	}
	switch v.Kind() {
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	}
	return v.String()
}

// shortDuration drops the zero parts of Go's form: 2m0s is 2m.
func shortDuration(d time.Duration) string {
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return strconv.Itoa(int(d/(24*time.Hour))) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
