package otlp

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// An environment is what the standard variables say of the exporter
// (https://opentelemetry.io/docs/specs/otel/protocol/exporter/); where there are two,
// OTEL_EXPORTER_OTLP_TRACES_X wins over OTEL_EXPORTER_OTLP_X.
type environment struct {
	headers     map[string]string
	tls         *tls.Config // nil: the system's authorities, and no certificate of ours
	compression string
	protocol    string
}

// readEnvironment reports what cannot be used as mistakes that name the variable, never
// its value.
func readEnvironment(getenv func(string) string, ps *setting.Problems) (e environment) {
	pick := func(name string) (value, variable string) {
		for _, variable := range []string{"OTEL_EXPORTER_OTLP_TRACES_" + name, "OTEL_EXPORTER_OTLP_" + name} {
			if v := strings.TrimSpace(getenv(variable)); v != "" {
				return v, variable
			}
		}
		return "", ""
	}
	e.protocol, _ = pick("PROTOCOL")
	e.compression, _ = pick("COMPRESSION")
	text, variable := pick("HEADERS")
	e.headers = readHeaders(text, variable, ps)
	authorities, variable := pick("CERTIFICATE")
	if authorities != "" {
		pool := x509.NewCertPool()
		if pem, err := os.ReadFile(authorities); err != nil {
			ps.Add(variable, "must name a file that can be read: "+err.Error(), "")
		} else if !pool.AppendCertsFromPEM(pem) {
			ps.Add(variable, "must name a file of certificates in PEM", "look at "+authorities)
		}
		e.tls = &tls.Config{RootCAs: pool}
	}
	cert, variable := pick("CLIENT_CERTIFICATE")
	key, other := pick("CLIENT_KEY")
	switch {
	case cert != "" && key != "":
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			ps.Add(variable, "must be a certificate whose key is in "+other+": "+err.Error(), "")
		}
		if e.tls == nil {
			e.tls = &tls.Config{}
		}
		e.tls.Certificates = []tls.Certificate{pair}
	case cert != "":
		ps.Add(variable, "needs OTEL_EXPORTER_OTLP_CLIENT_KEY beside it", "")
	case key != "":
		ps.Add(other, "needs OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE beside it", "")
	}
	return e
}

// readHeaders reads NAME=VALUE,NAME=VALUE, with values as URLs write them.
func readHeaders(text, variable string, ps *setting.Problems) map[string]string {
	headers := map[string]string{}
	for one := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(one) == "" {
			continue
		}
		name, value, found := strings.Cut(one, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		switch {
		case !found || !headerName(name):
			ps.Add(variable, "must be a list of NAME=VALUE with commas between", "try api-key=secret")
		case err != nil || strings.ContainsAny(value, "\r\n\x00"):
			ps.Add(variable, "has a value for "+name+" that is no text of one line in URL encoding", "write % as %25")
		default:
			headers[name] = value
		}
	}
	return headers
}
