// Package routes knows where a call to Claude may go: in order, each way with its keys,
// its models and its limit of tokens; which of the keys are fit, and how a request is
// changed to go that way.
//
// Only the Claude plane may import it.
package routes

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// Config is one route of claude.routes.
type Config struct {
	Name      string            `yaml:"name" doc:"Name of the route, in the header Mainstay-Claude-Route of the answers that it gave."`
	Upstream  string            `yaml:"upstream" doc:"Base URL of an API in the shape of Claude's; absent: claude.upstream, with the keys that it is called with."`
	Kind      string            `yaml:"kind" doc:"How the upstream speaks. claude: the Messages API. vertex: Google's Vertex AI; upstream is then https://REGION-aiplatform.googleapis.com/v1/projects/PROJECT/locations/REGION/publishers/anthropic/models, and its keys are access tokens, which keys[].file renews. bedrock: Amazon Bedrock's InvokeModel; upstream is then https://bedrock-runtime.REGION.amazonaws.com, auth says what its keys are, and models have Bedrock's names."`
	Keys      []Key             `yaml:"keys" doc:"Keys for it; the caller's own goes nowhere but to claude.upstream."`
	Auth      string            `yaml:"auth" doc:"How the key is sent: x-api-key, or bearer (Authorization). Kind bedrock: bearer (an API key of Bedrock's), or sigv4: requests are signed, and a key is ACCESS_KEY_ID:SECRET_ACCESS_KEY, for temporary ones :SESSION_TOKEN after them, or, in keys[].file, also JSON as credential_process prints it. Absent: x-api-key; bearer for vertex and bedrock."`
	Region    string            `yaml:"region" doc:"Auth sigv4: AWS region that requests are signed for; absent: the one in upstream's name."`
	Models    map[string]string `yaml:"models" doc:"What is asked for instead of a model, by the beginning of its name (the longest that fits counts; * fits every one); a model that is not here is not sent this way. Absent: the same model."`
	MaxTokens int64             `yaml:"max_tokens" doc:"Largest max_tokens that is asked for this way, beside the budget that the call gives to thinking; 0: as the call says."`
	Tiers     []string          `yaml:"tiers" doc:"Tiers of callers that are sent this way; absent: all."`
}

// A Key is one of several for the same upstream.
type Key struct {
	Name   string         `yaml:"name" doc:"What answers, logs and metrics call it."`
	Key    setting.Secret `yaml:"key" doc:"The key itself."`
	File   string         `yaml:"file" doc:"Instead of key: a file that holds it and is read again whenever it has changed, for tokens that somebody renews."`
	Owner  string         `yaml:"organisation" doc:"Name of the organisation, or the workspace with limits of its own, that it belongs to: keys of the same one share their line for the rate limits from the first call on. Absent: Mainstay learns it from the answers."`
	Weight int            `yaml:"weight" doc:"Its share of the prompts, beside the others' weights; absent: 1."`
}

// First is the name of the way that every call takes while it is fit: claude.upstream.
const First = "claude"

const (
	mostRoutes = 16
	mostKeys   = 64
	mostName   = 40
	mostModel  = 128 // bytes of a model's name
)

// Validate notes every mistake of all routes, of which the first one is routes[0], and of
// the keys of claude.upstream. listen is the plane's own address.
func Validate(all []Config, keys []Key, listen string, ps *setting.Problems) {
	validateKeys(keys, "keys", ps)
	if len(all) > mostRoutes {
		ps.Add("routes", fmt.Sprintf("has more than %d entries", mostRoutes), "name fewer")
	}
	names := map[string]bool{First: true}
	for i, c := range all {
		at := "routes[" + strconv.Itoa(i) + "]"
		if checkName(c.Name, at, ps); names[c.Name] {
			ps.Add(at+".name", "stands twice, or is claude, the name of claude.upstream", "give each route its own")
		}
		names[c.Name] = true
		c.validateUpstream(at, listen, ps)
		validateKeys(c.Keys, at+".keys", ps)
		switch c.Kind {
		case "", "claude":
		case vertex:
			if c.Upstream == "" {
				ps.Add(at+".kind", "is of another upstream, and none is named", "name one")
			}
			if c.Auth == "x-api-key" {
				ps.Add(at+".auth", "must be bearer for vertex", "leave it out")
			}
		case amazon:
			c.validateBedrock(at, ps)
		default:
			ps.Add(at+".kind", "must be claude, vertex or bedrock", "leave it out for an upstream in the shape of the Messages API")
		}
		switch c.Auth {
		case "", "x-api-key", "bearer":
		case sigv4:
			if c.Kind != amazon {
				ps.Add(at+".auth", "is sigv4, which only kind bedrock knows", "use bearer or x-api-key")
			}
		default:
			ps.Add(at+".auth", "must be x-api-key, bearer or sigv4", "use x-api-key")
		}
		if c.Region != "" && c.Auth != sigv4 {
			ps.Add(at+".region", "is of no use without auth sigv4", "leave it out")
		}
		validateModels(c.Models, at+".models", ps)
		if c.MaxTokens < 0 {
			ps.Add(at+".max_tokens", "must not be negative", "use 0")
		}
	}
}

func (c Config) validateUpstream(at, listen string, ps *setting.Problems) {
	if c.Upstream == "" {
		if len(c.Keys) > 0 {
			ps.Add(at+".keys", "are for another upstream, and none is named", "name one, or give the keys in claude.keys")
		}
		if len(c.Models) == 0 {
			ps.Add(at, "leads where the call goes anyway", "name an upstream or models")
		}
		return
	}
	CheckUpstream(c.Upstream, at+".upstream", listen, ps)
	if c.Kind == vertex && !strings.HasSuffix(strings.TrimRight(c.Upstream, "/"), vertexBase) {
		ps.Add(at+".upstream", "must end with "+vertexBase, "try https://us-east5-aiplatform.googleapis.com/v1/projects/my-project/locations/us-east5"+vertexBase)
	}
	if len(c.Keys) == 0 {
		ps.Add(at+".keys", "are missing: the caller's own key must not go to another upstream", "name one")
	}
}

// CheckUpstream notes what is wrong with a base URL. listen is the plane's own address,
// to which it must not lead.
func CheckUpstream(raw, at, listen string, ps *setting.Problems) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		ps.Add(at, "must be an http or https URL", "try https://api.anthropic.com")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		ps.Add(at, "must have no user, query or fragment", "try https://api.anthropic.com")
	case leadsTo(u, listen):
		ps.Add(at, "leads back to this plane's own address", "try https://api.anthropic.com")
	}
}

// leadsTo reports whether u is where listen is, as far as one can tell without asking
// for names.
func leadsTo(u *url.URL, listen string) bool {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	other := u.Port()
	if other == "" {
		other = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if port != other || port == "0" {
		return false
	}
	at := u.Hostname()
	return strings.EqualFold(host, at) || here(host) && here(at)
}

// here reports whether a host is this machine, as every one calls itself.
func here(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || strings.EqualFold(host, "localhost") || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

func validateKeys(keys []Key, at string, ps *setting.Problems) {
	if len(keys) > mostKeys {
		ps.Add(at, fmt.Sprintf("has more than %d entries", mostKeys), "name fewer")
	}
	names := map[string]bool{}
	for i, k := range keys {
		at := at + "[" + strconv.Itoa(i) + "]"
		if checkName(k.Name, at, ps); names[k.Name] {
			ps.Add(at+".name", "stands twice", "give each key its own")
		}
		names[k.Name] = true
		switch key := k.Key.Reveal(); {
		case k.File != "":
			if key != "" {
				ps.Add(at+".file", "stands beside a key", "leave one of them out")
			}
		case key == "":
			ps.Add(at+".key", "is missing", "try ${ANTHROPIC_API_KEY}")
		case strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }):
			ps.Add(at+".key", "must have no blanks or control characters", "look for a line break at its end")
		}
		if len(k.Owner) > mostName || strings.Trim(k.Owner, letters+"-_.") != "" {
			ps.Add(at+".organisation", fmt.Sprintf("must be up to %d letters, digits, dots, hyphens or underscores", mostName), "try acme, or leave it out")
		}
		if k.Weight < 0 || k.Weight > 1000 {
			ps.Add(at+".weight", "must be from 1 to 1000", "try 1")
		}
	}
}

// checkName keeps names fit for headers and metric labels.
func checkName(name, at string, ps *setting.Problems) {
	if name == "" || len(name) > mostName || strings.Trim(name, letters+"-_.") != "" {
		ps.Add(at+".name", fmt.Sprintf("must be 1 to %d letters, digits, dots, hyphens or underscores", mostName), "try backup")
	}
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// validateModels checks names as they stand with Claude, Bedrock (us.anthropic.…-v1:0)
// and Vertex (…@20251001).
func validateModels(models map[string]string, at string, ps *setting.Problems) {
	for from, to := range models {
		if from == "" || len(from) > mostModel {
			ps.Add(fmt.Sprintf("%s.%q", at, from), "must be the beginning of a model's name, or *", "try claude-opus")
		}
		if to == "" || len(to) > mostModel || strings.Trim(to, letters+"-_.:/@[]") != "" {
			ps.Add(fmt.Sprintf("%s.%q", at, from), "must lead to a model's name", "try claude-haiku-4-5")
		}
	}
}

// A Rule is an entry of claude.degrade.
type Rule struct {
	Tiers     []string          `yaml:"tiers" doc:"Callers of these tiers; absent: of any."`
	Step      string            `yaml:"step" doc:"cheaper: only callers that limits.degrade asks to be content with less. Absent: all."`
	Models    map[string]string `yaml:"models" doc:"What is asked for instead of a model, by the beginning of its name (the longest that fits counts; * fits every one)."`
	MaxTokens int64             `yaml:"max_tokens" doc:"Largest max_tokens that is asked for, beside the budget that the call gives to thinking; 0: as the call says."`
}

// ValidateRules notes every mistake in rules, of which the first one is degrade[0].
func ValidateRules(rules []Rule, ps *setting.Problems) {
	for i, r := range rules {
		at := "degrade[" + strconv.Itoa(i) + "]"
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
		validateModels(r.Models, at+".models", ps)
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

// Instead returns the model that models names instead of one; false: it names none.
func Instead(models map[string]string, model string) (string, bool) {
	as, best := "", -1
	for from, to := range models {
		length := len(from)
		if from == "*" {
			length = 0
		} else if !strings.HasPrefix(model, from) {
			continue
		}
		if length > best {
			as, best = to, length
		}
	}
	return as, best >= 0
}
