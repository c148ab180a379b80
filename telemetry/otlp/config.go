package otlp

import (
	"net/url"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// Config says where spans go.
type Config struct {
	Endpoint    string                    `yaml:"endpoint" doc:"Base URL of an OTLP/HTTP collector, for example http://localhost:4318; /v1/traces is added to it. Empty: spans are not exported."`
	Headers     map[string]setting.Secret `yaml:"headers" doc:"Headers sent with every export, such as an API key."`
	Compression string                    `yaml:"compression" doc:"How what is exported is compressed: gzip or none. Empty: as OTEL_EXPORTER_OTLP_COMPRESSION says, else gzip, and none to a collector on this machine."`
	Timeout     time.Duration             `yaml:"timeout" doc:"How long one try at an export may take."`
	Queue       int                       `yaml:"queue" doc:"How many exchanges may wait for export; what comes on top is dropped and counted."`
}

// What Compression may be.
const (
	gzipped = "gzip"
	plain   = "none"
)

// SetDefaults fills in what an absent key means.
func (c *Config) SetDefaults() {
	c.Timeout = 10 * time.Second
	c.Queue = 2048
}

// Validate reports every mistake.
func (c Config) Validate(ps *setting.Problems) {
	if c.Endpoint != "" {
		if _, what, mend := tracesURL(c.Endpoint); what != "" {
			ps.Add("endpoint", what, mend)
		}
	}
	for name, value := range c.Headers {
		if !headerName(name) {
			ps.Add("headers", "a header's name holds letters, digits and dashes only", "look at "+strings.ToValidUTF8(name, "?"))
		}
		if strings.ContainsAny(value.Reveal(), "\r\n\x00") {
			ps.Add("headers."+name, "must be one line", "")
		}
	}
	if c.Compression != "" && c.Compression != gzipped && c.Compression != plain {
		ps.Add("compression", "must be gzip or none", "try gzip")
	}
	if c.Timeout <= 0 {
		ps.Add("timeout", "must be positive", "try 10s")
	}
	if c.Queue <= 0 || c.Queue > 1<<16 {
		ps.Add("queue", "must be between 1 and 65536", "try 2048")
	}
}

func headerName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '-' && c != '_' && c != '.' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return s != ""
}

// tracesURL is where traces go for a base URL, as the OTLP specification builds
// it (https://opentelemetry.io/docs/specs/otel/protocol/exporter/). It returns
// what is wrong and the mend if the base is no good.
func tracesURL(base string) (to, what, mend string) {
	u, err := url.Parse(base)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "":
		return "", "must be a URL with http or https and a host", "try http://localhost:4318"
	case u.User != nil:
		return "", "must not hold a password, which would show in logs", "put it into headers"
	case u.RawQuery != "" || u.Fragment != "":
		return "", "must be a base URL, without ? and #", ""
	case strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/v1/traces"):
		return "", "must be a base URL: /v1/traces is added to it", "leave /v1/traces away"
	}
	return u.JoinPath("v1/traces").String(), "", ""
}
