package state

import (
	"fmt"
	"slices"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// OfStartup takes the run-time settings from a startup packet, those inside
// "options" included (-c name=value, --name=value). As in PostgreSQL the last options
// count, and a setting's own parameter goes before what they say.
func OfStartup(start *pgwire.Startup) (*Settings, error) {
	chosen := map[string]string{}
	for _, p := range slices.Backward(start.Parameters) {
		if strings.EqualFold(p.Name, "options") {
			if err := parseOptions(p.Value, chosen); err != nil {
				return nil, err
			}
			break
		}
	}
	for _, p := range start.Parameters {
		switch name := strings.ToLower(p.Name); {
		case name == "user" || name == "database" || name == "options" || strings.HasPrefix(name, "_pq_."):
		case name == "replication":
			if !slices.Contains([]string{"false", "off", "no", "0", ""}, p.Value) {
				return nil, refuse("0A000", "replication does not go through the pooler; connect to PostgreSQL directly")
			}
		default:
			if err := choose(chosen, name, p.Value); err != nil {
				return nil, err
			}
		}
	}
	list := make([]pgwire.Param, 0, len(chosen))
	for name, value := range chosen {
		list = append(list, pgwire.Param{Name: name, Value: value})
	}
	slices.SortFunc(list, func(a, b pgwire.Param) int { return strings.Compare(a.Name, b.Name) })
	return seal(list), nil
}

// A Refusal is why a startup packet cannot be obeyed.
type Refusal struct{ SQLState, Message string }

func (r *Refusal) Error() string { return r.Message }

func refuse(sqlstate, message string) error { return &Refusal{sqlstate, message} }

func choose(chosen map[string]string, name, value string) error {
	ok := name != ""
	for i, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || c == '_'
		ok = ok && (letter || i > 0 && (c == '.' || '0' <= c && c <= '9'))
	}
	if !ok {
		return refuse("42704", fmt.Sprintf("unrecognized configuration parameter %q", name))
	}
	if name == "seed" { // which no RESET takes back
		return refuse("0A000", "seed cannot be chosen at login; SET it in the session, or call setseed")
	}
	chosen[name] = value
	return nil
}

// parseOptions reads command-line switches as PostgreSQL does: words split at white
// space, a backslash taking the next byte as it is.
func parseOptions(text string, chosen map[string]string) error {
	words := optionWords(text)
	for i := 0; i < len(words); i++ {
		assignment, ok := strings.CutPrefix(words[i], "--")
		if !ok {
			assignment, ok = strings.CutPrefix(words[i], "-c")
			if ok && assignment == "" && i+1 < len(words) {
				i++
				assignment = words[i]
			}
		}
		name, value, found := strings.Cut(assignment, "=")
		if !ok || !found {
			return refuse("0A000", fmt.Sprintf("option %q is not understood; write -c name=value", words[i]))
		}
		name = strings.ToLower(strings.ReplaceAll(name, "-", "_"))
		if err := choose(chosen, name, value); err != nil {
			return err
		}
	}
	return nil
}

func optionWords(text string) (words []string) {
	var word []byte
	for i, begun := 0, false; i <= len(text); i++ {
		switch {
		case i == len(text) || strings.IndexByte(" \t\n\v\f\r", text[i]) >= 0:
			if begun {
				words = append(words, string(word))
			}
			word, begun = word[:0], false
		case text[i] == '\\' && i+1 < len(text):
			i++
			word, begun = append(word, text[i]), true
		default:
			word, begun = append(word, text[i]), true
		}
	}
	return words
}
