// Package candidates knows where a call to Claude may go: routes in order, each with
// its keys and its names for models, which of the keys are fit, and how a request is
// changed to go there. Only the Claude plane may import it.
package candidates

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// A Route is an entry of claude.routes.
type Route struct {
	Name    string            `yaml:"name" doc:"What answers, logs and metrics call it."`
	BaseURL string            `yaml:"base_url" doc:"Where it leads: an API of the shape of Claude's Messages API. Absent: claude.upstream."`
	Auth    string            `yaml:"auth" doc:"The header in which the key goes: x-api-key (also if absent), bearer (Authorization: Bearer), or another header's name."`
	Keys    []Key             `yaml:"keys" doc:"Keys to use instead of the caller's own. Absent: the caller's own, which only goes to claude.upstream."`
	Models  map[string]string `yaml:"models" doc:"Models to ask for instead of those that callers name, by the beginning of their names (* stands for any): the longest that fits counts."`
	Tries   int               `yaml:"tries" doc:"Tries of one call that may fail here with an overload or an outage before it goes on to the next route. Absent: 2."`
}

// A Key is one of a route's.
type Key struct {
	Name   string         `yaml:"name" doc:"What answers, logs and metrics call it."`
	Key    setting.Secret `yaml:"key" doc:"The key itself."`
	Weight int            `yaml:"weight" doc:"Its share of the prompts, beside the others' weights. Absent: 1."`
}

const (
	mostRoutes = 16
	mostKeys   = 64
	mostName   = 32
	usualTries = 2
)

// Validate notes every mistake in routes; upstream is claude.upstream.
func Validate(routes []Route, upstream string, ps *setting.Problems) {
	if len(routes) > mostRoutes {
		ps.Add("routes", fmt.Sprintf("has more than %d entries", mostRoutes), "name fewer")
	}
	seen := map[string]bool{}
	for i, r := range routes {
		var part setting.Problems
		if seen[r.Name] {
			part.Add("name", "is that of another route", "give it one of its own")
		}
		seen[r.Name] = true
		r.validate(upstream, &part)
		ps.Below(fmt.Sprintf("routes[%d]", i), part)
	}
}

func (r Route) validate(upstream string, ps *setting.Problems) {
	checkName(r.Name, ps)
	if r.BaseURL != "" {
		checkBase(r.BaseURL, ps)
	}
	if len(r.Keys) == 0 && r.BaseURL != "" && origin(r.BaseURL) != origin(upstream) {
		ps.Add("keys", "must be given: the caller's own key must not go to another place than claude.upstream", "add the key of "+origin(r.BaseURL))
	}
	if strings.ContainsFunc(r.Auth, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c) }) {
		ps.Add("auth", "must be x-api-key, bearer or the name of a header", "try bearer")
	}
	if r.Tries < 0 || r.Tries > 10 {
		ps.Add("tries", "must be from 1 to 10", "try 2")
	}
	for from, to := range r.Models {
		if from == "" || to == "" || len(to) > 128 {
			ps.Add("models."+from, "must lead from the beginning of a name to a name", "try claude-opus: claude-sonnet-5")
		}
	}
	if len(r.Keys) > mostKeys {
		ps.Add("keys", fmt.Sprintf("has more than %d entries", mostKeys), "name fewer")
	}
	seen := map[string]bool{}
	for i, k := range r.Keys {
		var part setting.Problems
		if checkName(k.Name, &part); seen[k.Name] {
			part.Add("name", "is that of another key of the route", "give it one of its own")
		}
		seen[k.Name] = true
		switch key := k.Key.Reveal(); {
		case key == "":
			part.Add("key", "must be given", "try ${ANTHROPIC_API_KEY}")
		case strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }):
			part.Add("key", "must have no blanks or control characters", "look for a line break at its end")
		}
		if k.Weight < 0 || k.Weight > 1000 {
			part.Add("weight", "must be from 1 to 1000", "try 1")
		}
		ps.Below(fmt.Sprintf("keys[%d]", i), part)
	}
}

// checkName keeps names fit for headers and metric labels.
func checkName(name string, ps *setting.Problems) {
	if name == "" || len(name) > mostName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
		ps.Add("name", fmt.Sprintf("must be 1 to %d letters, digits, dots, hyphens or underscores", mostName), "try main")
	}
}

func checkBase(base string, ps *setting.Problems) {
	u, err := url.Parse(base)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		ps.Add("base_url", "must be an http or https URL", "try https://api.anthropic.com")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		ps.Add("base_url", "must have no user, query or fragment", "give the key in keys")
	}
}

// origin is what of a URL says whom one speaks with.
func origin(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return strings.ToLower(u.Scheme + "://" + u.Host)
}

// A Rule is an entry of claude.degrade.
type Rule struct {
	Tiers     []string          `yaml:"tiers" doc:"Callers of these tiers. Absent: of any."`
	Step      string            `yaml:"step" doc:"cheaper: only callers that limits.degrade asks to be content with less. Absent: all."`
	Models    map[string]string `yaml:"models" doc:"Models to ask for instead of those that callers name, by the beginning of their names (* stands for any): the longest that fits counts."`
	MaxTokens int64             `yaml:"max_tokens" doc:"The most tokens that such a caller's answer may have, beside what it thinks; 0: as many as it asks for."`
}

// ValidateRules notes every mistake in rules.
func ValidateRules(rules []Rule, ps *setting.Problems) {
	for i, r := range rules {
		at := fmt.Sprintf("degrade[%d]", i)
		if r.Step != "" && r.Step != "cheaper" {
			ps.Add(at+".step", "must be cheaper, or absent", "use cheaper")
		}
		if r.MaxTokens < 0 {
			ps.Add(at+".max_tokens", "must not be negative", "try 1024")
		}
		if len(r.Models) == 0 && r.MaxTokens == 0 {
			ps.Add(at, "changes nothing", "give models or max_tokens")
		}
		if len(r.Tiers) == 0 && r.Step == "" {
			ps.Add(at, "would change every call", "give tiers or step")
		}
		for from, to := range r.Models {
			if from == "" || to == "" || len(to) > 128 {
				ps.Add(at+".models."+from, "must lead from the beginning of a name to a name", "try claude-opus: claude-haiku-4-5")
			}
		}
	}
}

// Degrade returns the first rule for a caller; nil: none.
func Degrade(rules []Rule, tier, step string) *Rule {
	for i := range rules {
		r := &rules[i]
		if (r.Step == "" || r.Step == step) && (len(r.Tiers) == 0 || slices.Contains(r.Tiers, tier)) {
			return r
		}
	}
	return nil
}

// Rename returns the name that models gives model: the longest beginning counts.
func Rename(models map[string]string, model string) string {
	name, best := model, -1
	for from, to := range models {
		length := len(from)
		if from == "*" {
			length = 0
		} else if !strings.HasPrefix(model, from) {
			continue
		}
		if length > best && model != "" {
			name, best = to, length
		}
	}
	return name
}

// header is where a key goes, and what is written before it.
func header(auth string) (name, before string) {
	switch strings.ToLower(auth) {
	case "", "x-api-key":
		return "X-Api-Key", ""
	case "bearer":
		return "Authorization", "Bearer "
	}
	return http.CanonicalHeaderKey(auth), ""
}
