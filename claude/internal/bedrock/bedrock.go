// Package bedrock speaks with Amazon Bedrock in the way of its own
// (https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html):
// it makes requests for it of those for the Messages API, signs them, and makes of its
// answers what the Messages API would have answered. Only the Claude plane may import it.
package bedrock

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"mainstay.dev/mainstay/claude/internal/peek"
)

// version is what stands in place of the header anthropic-version.
const version = `"bedrock-2023-05-31"`

// Body makes the body of a request for Bedrock of one for the Messages API: without the
// model and whether it streams, which stand in the path, and with the betas that the
// header anthropic-beta names. It is the same body, if it is no JSON object.
func Body(request []byte, betas []string) []byte {
	names := split(betas)
	out := append(make([]byte, 0, len(request)+len(version)+64), `{"anthropic_version":`+version...)
	whole := peek.Members(request, func(key, value []byte) {
		switch string(key) {
		case "model", "stream", "anthropic_version":
			return
		case "anthropic_beta":
			if names != nil {
				return
			}
		}
		out = append(append(append(out, `,"`...), key...), `":`...)
		out = append(out, value...)
	})
	if !whole {
		return request
	}
	if list, err := json.Marshal(names); err == nil && names != nil {
		out = append(append(out, `,"anthropic_beta":`...), list...)
	}
	return append(out, '}')
}

// split takes lists of names apart.
func split(lines []string) (names []string) {
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// URL is where a model is asked below base; streams: for a stream.
func URL(base *url.URL, model string, streams bool) *url.URL {
	verb := "/invoke"
	if streams {
		verb = "/invoke-with-response-stream"
	}
	u, below := *base, strings.TrimRight(base.EscapedPath(), "/")+"/model/"
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/")+"/model/"+model+verb, below+escape(model, false)+verb
	return &u
}

// Aim makes of the head of a request for the Messages API that of one for Bedrock.
func Aim(h http.Header) {
	delete(h, "Anthropic-Version")
	delete(h, "Anthropic-Beta") // it stands in the body
	h["Content-Type"], h["Accept"] = []string{"application/json"}, []string{"application/json"}
}

// IsModel reports whether a name can be that of a model, of an inference profile or an
// ARN of one: what a caller calls a model must not lead elsewhere.
func IsModel(name string) bool {
	const most = 2048 // as the API has it
	return len(name) <= most && modelName.MatchString(name)
}

var modelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9][A-Za-z0-9_.:-]*)*$`)

// Region is the one that a host of Bedrock's names; empty: it names none.
func Region(host string) string {
	if m := runtimeHost.FindStringSubmatch(host); m != nil {
		return m[1]
	}
	return ""
}

var runtimeHost = regexp.MustCompile(`(?:^|\.)bedrock-runtime(?:-fips)?\.([a-z]{2}[a-z-]*-[0-9]+)\.`)

// Credentials are what requests are signed with.
type Credentials struct {
	ID      string // of the access key
	Secret  string
	Session string // of temporary ones; empty: they are not
}

// Parse reads credentials: ID:SECRET or ID:SECRET:SESSION, or what AWS's own tools print
// (credential_process, the endpoints of ECS and EC2), which is JSON.
func Parse(text string) (c Credentials, err error) {
	if text = strings.TrimSpace(text); strings.HasPrefix(text, "{") {
		var said struct {
			ID      string `json:"AccessKeyId"`
			Secret  string `json:"SecretAccessKey"` //nolint:gosec // a field's name
			Session string `json:"SessionToken"`
			Token   string `json:"Token"`
		}
		if json.Unmarshal([]byte(text), &said) == nil {
			c = Credentials{said.ID, said.Secret, said.Session}
			if c.Session == "" {
				c.Session = said.Token
			}
		}
	} else {
		c.ID, c.Secret, _ = strings.Cut(text, ":")
		c.Secret, c.Session, _ = strings.Cut(c.Secret, ":")
	}
	blank := func(r rune) bool { return r <= ' ' || r > '~' }
	if c.ID == "" || c.Secret == "" || strings.ContainsFunc(c.ID+c.Secret+c.Session, blank) || strings.Contains(c.ID, "/") {
		return Credentials{}, errors.New("these are no credentials of AWS: neither ACCESS_KEY_ID:SECRET_ACCESS_KEY[:SESSION_TOKEN] nor JSON with these names")
	}
	return c, nil
}
