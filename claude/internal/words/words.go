// Package words tells errors in the words of the Claude API
// (https://docs.claude.com/en/api/errors), and reads a few words out of what others say
// in its place. Only the Claude plane may import it.
package words

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"unicode"

	"mainstay.dev/mainstay/claude/internal/peek"
)

// Error is an error in the API's shape (https://docs.claude.com/en/api/errors).
func Error(kind, message, id string) []byte {
	type detail struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	}
	b, err := json.Marshal(struct {
		Type  string `json:"type"`
		Error detail `json:"error"`
		ID    string `json:"request_id"`
	}{"error", detail{kind, message}, id})
	if err != nil {
		panic("words: three strings are no JSON: " + err.Error())
	}
	return b
}

// statuses are those of the API's errors.
var statuses = map[string]int{
	"invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403, "not_found_error": 404,
	"conflict_error": 409, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504, "overloaded_error": 529,
}

// Status is the status of an error of a type; 500 if the type is not known.
func Status(kind string) int {
	if s := statuses[kind]; s != 0 {
		return s
	}
	return http.StatusInternalServerError
}

// IsError reports whether a body is an error in the API's shape.
func IsError(body []byte) (is bool) {
	peek.Members(body, func(key, value []byte) {
		if string(key) == "error" {
			peek.Members(value, func(key, value []byte) {
				is = is || string(key) == "type" && peek.Text(value) != ""
			})
		}
	})
	return is
}

// For is the status with which an error is told, and its type among the API's.
func For(status int) (as int, kind string) {
	switch {
	case status < 400: // a page in place of a message
		status = http.StatusBadGateway
	case status == 522 || status == 524: // Cloudflare: the origin took too long
		status = http.StatusGatewayTimeout
	case status >= 520 && status != 529: // Cloudflare: it said nothing of use
		status = http.StatusBadGateway
	}
	switch status {
	case http.StatusRequestTimeout:
		return status, "timeout_error"
	case http.StatusServiceUnavailable:
		return status, "overloaded_error"
	}
	for kind, of := range statuses {
		if of == status {
			return status, kind
		}
	}
	if status < 500 {
		return status, "invalid_request_error"
	}
	return status, "api_error"
}

// most bounds what is looked at.
const most = 64 << 10

// Plain is a body without its encoding, as far as it may be looked at; false: it
// is in one that is not read here.
func Plain(body []byte, encoding string) ([]byte, bool) {
	switch {
	case encoding == "" || strings.EqualFold(encoding, "identity"):
		return body, true
	case !strings.EqualFold(encoding, "gzip"):
		return nil, false
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, false
	}
	text, err := io.ReadAll(io.LimitReader(z, most))
	return text, err == nil
}

// Excerpt is what a page says in a few words: the message of JSON, the title of HTML,
// or the beginning of a text.
func Excerpt(text []byte) string {
	const most = 120
	said := ""
	if first := []byte(nil); bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) { // Google's errors of streams come in an array
		peek.Elements(text, func(element []byte) {
			if first == nil {
				first = element
			}
		})
		text = first
	}
	peek.Members(text, func(key, value []byte) {
		switch strings.ToLower(string(key)) {
		case "message", "error", "detail":
			if s := peek.Text(value); said == "" && s != "" {
				said = s
			} else if said == "" { // Google's and OpenAI's have it further down
				peek.Members(value, func(key, value []byte) {
					if string(key) == "message" {
						said = peek.Text(value)
					}
				})
			}
		}
	})
	if lower := bytes.ToLower(text); said == "" {
		if _, after, ok := bytes.Cut(lower, []byte("<title>")); ok && len(lower) == len(text) {
			title, _, _ := bytes.Cut(after, []byte("<"))
			at := len(text) - len(after)
			said = string(text[at : at+len(title)])
		} else if !bytes.ContainsRune(text, '<') && !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
			said = string(text[:min(len(text), 4*most)])
		}
	}
	said = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(said, ""), func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if short := []rune(said); len(short) > most {
		said = string(short[:most]) + "…"
	}
	return said
}
