package routes

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/claude/internal/bedrock"
	"mainstay.dev/mainstay/internal/setting"
)

// amazon is the kind of a route that speaks as Amazon Bedrock does: the model stands in
// the path, betas in the body, and a stream comes in AWS's frames.
const amazon = "bedrock"

// sigv4: the requests of a route are signed, not given a key.
const sigv4 = "sigv4"

var regionName = regexp.MustCompile(`^[a-z]{2}[a-z-]*-[0-9]+$`)

// validateBedrock notes what is wrong with a route of the kind.
func (c Config) validateBedrock(at string, ps *setting.Problems) {
	u, err := url.Parse(c.Upstream)
	switch {
	case c.Upstream == "":
		ps.Add(at+".kind", "is of another upstream, and none is named", "name one")
		return
	case err != nil:
		return // which is noted already
	case strings.Contains(u.Path, "/model"):
		ps.Add(at+".upstream", "must not name a model: each call names its own", "try https://bedrock-runtime.us-east-1.amazonaws.com")
	}
	switch c.Auth {
	case "x-api-key":
		ps.Add(at+".auth", "must be bearer or sigv4 for bedrock", "leave it out for an API key of Bedrock's")
	case sigv4:
		if c.Region == "" && bedrock.Region(u.Hostname()) == "" {
			ps.Add(at+".region", "is missing, and upstream names none", "try us-east-1")
		} else if c.Region != "" && !regionName.MatchString(c.Region) {
			ps.Add(at+".region", "must be a region of AWS", "try us-east-1")
		}
		for i, k := range c.Keys {
			if key := k.Key.Reveal(); key != "" {
				if _, err := bedrock.Parse(key); err != nil {
					ps.Add(at+".keys["+strconv.Itoa(i)+"].key", "must be ACCESS_KEY_ID:SECRET_ACCESS_KEY for auth sigv4, with :SESSION_TOKEN after them if they are temporary", "try ${AWS_ACCESS_KEY_ID}:${AWS_SECRET_ACCESS_KEY}")
				}
			}
		}
	}
	for from, to := range c.Models {
		if to != "" && !bedrock.IsModel(to) {
			ps.Add(fmt.Sprintf("%s.models.%q", at, from), "must lead to a model, an inference profile or an ARN of Bedrock's", "try us.anthropic.claude-sonnet-4-5-20250929-v1:0")
		}
	}
}

// isCredentials reports whether a file holds what requests can be signed with.
func isCredentials(text string) bool {
	_, err := bedrock.Parse(text)
	return err == nil
}

// Signs reports whether requests that go this way are signed. The nil Route's are not.
func (r *Route) Signs() bool { return r != nil && r.cfg.Auth == sigv4 }

// Sign signs a request as it is sent, with that body.
func (r *Route) Sign(req *http.Request, body []byte, key *Access) error {
	c, err := bedrock.Parse(key.now())
	if err != nil {
		return fmt.Errorf("sign a request to %s: %w", req.URL.Host, err)
	}
	region := r.cfg.Region
	if region == "" {
		region = bedrock.Region(r.base.Hostname())
	}
	req.Header = req.Header.Clone() // other attempts have it too
	bedrock.Sign(req, body, c, region, time.Now())
	return nil
}

// Read makes of an answer that came this way one of the Messages API. The nil Route's
// are such.
func (r *Route) Read(res *http.Response) {
	if r != nil && r.cfg.Kind == amazon {
		bedrock.Answer(res)
	}
}

// Pings reports whether streams that come this way say that they are alive while the
// model thinks. The nil Route's do.
func (r *Route) Pings() bool { return r == nil || r.cfg.Kind != amazon }
