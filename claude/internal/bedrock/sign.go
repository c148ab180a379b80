package bedrock

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"time"
)

const (
	algorithm = "AWS4-HMAC-SHA256"
	service   = "bedrock"
	stamp     = "20060102T150405Z"
)

// Sign signs a request whose URL has no query, for a region, as of now: AWS Signature
// Version 4 (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
// What passes proxies unchanged is signed: host, type, date and session, and the body.
func Sign(req *http.Request, body []byte, c Credentials, region string, now time.Time) {
	h, at := req.Header, now.UTC().Format(stamp)
	h["X-Amz-Date"] = []string{at}
	delete(h, "X-Amz-Security-Token")
	if c.Session != "" {
		h["X-Amz-Security-Token"] = []string{c.Session}
	}
	names, scope := []string{"content-type", "host", "x-amz-date"}, at[:8]+"/"+region+"/"+service+"/aws4_request"
	if c.Session != "" {
		names = append(names, "x-amz-security-token")
	}
	h["Authorization"] = []string{algorithm + " Credential=" + c.ID + "/" + scope + ", SignedHeaders=" + strings.Join(names, ";") +
		", Signature=" + Signature(req, body, names, c.Secret, scope)}
}

// Signature is that of a request over the headers of these names, in lower case and in
// order, by the date that it has.
func Signature(req *http.Request, body []byte, names []string, secret, scope string) string {
	var canonical strings.Builder
	canonical.WriteString(req.Method + "\n" + escape(req.URL.EscapedPath(), true) + "\n" + req.URL.RawQuery + "\n")
	for _, name := range names {
		value := req.Host
		if name != "host" {
			value = strings.Join(req.Header.Values(name), ",")
		}
		canonical.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	canonical.WriteString("\n" + strings.Join(names, ";") + "\n" + digest(body))
	toSign := algorithm + "\n" + req.Header.Get("X-Amz-Date") + "\n" + scope + "\n" + digest([]byte(canonical.String()))
	key := []byte("AWS4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, toSign))
}

func digest(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(text)) // can't fail
	return h.Sum(nil)
}

// escape writes all as %XX but what RFC 3986 calls unreserved; slashes: nor these.
func escape(text string, slashes bool) string {
	const hexadecimal = "0123456789ABCDEF"
	var out strings.Builder
	for i := range len(text) {
		switch b := text[i]; {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '-', b == '_', b == '.', b == '~', b == '/' && slashes:
			out.WriteByte(b)
		default:
			out.Write([]byte{'%', hexadecimal[b>>4], hexadecimal[b&15]})
		}
	}
	return out.String()
}
