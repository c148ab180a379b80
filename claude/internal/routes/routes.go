// Package routes knows where else a call may go when its upstream is not fit: to
// another upstream with the shape of the Claude API, to another model, or both.
//
// Only the Claude plane may import it.
package routes

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/internal/setting"
)

// Config is one route of claude.routes.
type Config struct {
	Name      string            `yaml:"name" doc:"Name of the route, in the header Mainstay-Claude-Route of the answers that it gave."`
	Upstream  string            `yaml:"upstream" doc:"Base URL of an API in the shape of Claude's; empty: claude.upstream, with the caller's own key."`
	Key       setting.Secret    `yaml:"key" doc:"Key for it; the caller's own goes nowhere but to claude.upstream."`
	Auth      string            `yaml:"auth" doc:"How the key is sent: x-api-key, or bearer (Authorization)."`
	Models    map[string]string `yaml:"models" doc:"What is asked for instead of a model, by the beginning of its name (the longest that fits counts; \"\" fits every one); a model that is not here is not sent this way. Absent: the same model."`
	MaxTokens int64             `yaml:"max_tokens" doc:"Largest max_tokens that is asked for this way; 0: as the call says."`
	Tiers     []string          `yaml:"tiers" doc:"Tiers of callers that are sent this way; absent: all."`
}

// Validate notes every mistake of all routes, of which the first one is routes.0.
func Validate(all []Config, ps *setting.Problems) {
	names := map[string]bool{"claude": true}
	for i, c := range all {
		at := "routes." + strconv.Itoa(i)
		if c.Name == "" || len(c.Name) > 40 || strings.ContainsFunc(c.Name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			ps.Add(at+".name", "must be a short name without spaces", "try backup")
		} else if names[c.Name] {
			ps.Add(at+".name", "stands twice, or is claude, the name of claude.upstream", "give each route its own")
		}
		names[c.Name] = true
		c.validateUpstream(at, ps)
		if c.Upstream == "" && len(c.Models) == 0 {
			ps.Add(at, "leads where the call goes anyway", "name an upstream or models")
		}
		switch c.Auth {
		case "", "x-api-key", "bearer":
		default:
			ps.Add(at+".auth", "must be x-api-key or bearer", "use x-api-key")
		}
		if c.MaxTokens < 0 {
			ps.Add(at+".max_tokens", "must not be negative", "use 0")
		}
		for from, to := range c.Models {
			if to == "" {
				ps.Add(fmt.Sprintf("%s.models.%q", at, from), "must name a model", "try claude-haiku-4-5")
			}
		}
	}
}

func (c Config) validateUpstream(at string, ps *setting.Problems) {
	if c.Upstream == "" {
		if c.Key.Reveal() != "" {
			ps.Add(at+".key", "is for another upstream, and none is named", "name one, or leave the key out")
		}
		return
	}
	u, err := url.Parse(c.Upstream)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		ps.Add(at+".upstream", "must be an http or https URL", "try https://api.anthropic.com")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		ps.Add(at+".upstream", "must have no user, query or fragment", "give the key in "+at+".key")
	}
	if c.Key.Reveal() == "" {
		ps.Add(at+".key", "is missing: the caller's own key must not go to another upstream", "name one")
	}
}

// A Route is a way that a call may go. It is immutable.
type Route struct {
	Name  string
	cfg   Config
	base  *url.URL // nil: the upstream that the call goes to anyway
	froms []string // of the models, the longest first
}

// Compile makes routes of a valid configuration.
func Compile(all []Config) ([]*Route, error) {
	var out []*Route
	for _, c := range all {
		r := &Route{Name: c.Name, cfg: c}
		if c.Upstream != "" {
			u, err := url.Parse(c.Upstream)
			if err != nil {
				return nil, fmt.Errorf("route %s: %w", c.Name, err)
			}
			r.base = u
		}
		for from := range c.Models {
			r.froms = append(r.froms, from)
		}
		slices.SortFunc(r.froms, func(a, b string) int { return len(b) - len(a) })
		out = append(out, r)
	}
	return out, nil
}

// Takes reports whether calls of a tier for a model may go this way, and what model
// they then ask for.
func (r *Route) Takes(tier, model string) (as string, ok bool) {
	if len(r.cfg.Tiers) > 0 && !slices.Contains(r.cfg.Tiers, tier) {
		return "", false
	}
	if len(r.froms) == 0 {
		return model, true
	}
	for _, from := range r.froms {
		if strings.HasPrefix(model, from) {
			return r.cfg.Models[from], r.cfg.Models[from] != model
		}
	}
	return "", false
}

// Owns reports whether the route has a key of its own.
func (r *Route) Owns() bool { return r.base != nil }

// Aim makes the request that goes this way of the one that would go to the upstream,
// whose base path is given.
func (r *Route) Aim(req *http.Request, basePath string) *http.Request {
	out := req.Clone(req.Context())
	if r.base == nil {
		return out
	}
	path := strings.TrimPrefix(req.URL.Path, basePath)
	u := *r.base
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/")+path, ""
	u.RawQuery = req.URL.RawQuery
	out.URL, out.Host = &u, u.Host
	out.Header.Del("Authorization")
	out.Header.Del("X-Api-Key")
	out.Header.Del("Cookie")
	if r.cfg.Auth == "bearer" {
		out.Header.Set("Authorization", "Bearer "+r.cfg.Key.Reveal())
	} else {
		out.Header.Set("X-Api-Key", r.cfg.Key.Reveal())
	}
	return out
}

// Body makes the body that goes this way of the one that the call has.
func (r *Route) Body(text []byte, model string) []byte {
	type change struct {
		at, end int
		with    []byte
	}
	var changes []change
	ok := peek.Members(text, func(key, value []byte) {
		at := cap(text) - cap(value)
		switch string(key) {
		case "model":
			if peek.Text(value) != model {
				changes = append(changes, change{at, at + len(value), strconv.AppendQuote(nil, model)})
			}
		case "max_tokens":
			if n, ok := peek.Count(value); ok && r.cfg.MaxTokens > 0 && n > r.cfg.MaxTokens {
				changes = append(changes, change{at, at + len(value), strconv.AppendInt(nil, r.cfg.MaxTokens, 10)})
			}
		}
	})
	if !ok || len(changes) == 0 {
		return text
	}
	out, from := make([]byte, 0, len(text)+64), 0
	for _, c := range changes {
		out = append(append(out, text[from:c.at]...), c.with...)
		from = c.end
	}
	return append(out, text[from:]...)
}
