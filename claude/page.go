package claude

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode"

	"mainstay.dev/mainstay/claude/internal/peek"
)

// errPage says that something between here and Claude answered in Claude's name.
var errPage = errors.New("the answer is not one of the Claude API")

// isPage reports whether a good status came with what no message is: the page of a
// gateway, of a proxy or of a captive network.
func (a *answer) isPage(kind string, c *call) bool {
	if a.events || kind == "" || a.res.StatusCode >= 300 || c.out.Method != http.MethodPost {
		return false
	}
	return (c.shape.message || c.x.Route == routeCount) && !strings.EqualFold(kind, "application/json")
}

// speak makes of a failure that is not told in the API's words one that is: what
// stands in front of the API answers with pages of its own, which no SDK can read.
// Status (but for those that only Cloudflare knows), headers and request id stay.
func (c *call) speak(a *answer) {
	status := a.res.StatusCode
	if c.x.Route == routeOther || c.out.Method == http.MethodHead || status < 400 && !errors.Is(a.verdict.err, errPage) {
		return
	}
	text := a.ahead
	if !a.whole {
		text = nil
	}
	if plain, ok := plainText(text, a.res.Header.Get("Content-Encoding")); !ok {
		if mediaType(a.res.Header) == "application/json" {
			return // in an encoding that is not read here
		}
		text = nil
	} else if text = plain; a.whole && isError(text) {
		return
	}
	status, kind := inWords(status)
	message := fmt.Sprintf("%s answered %d with what is no error of the Claude API", c.out.URL.Host, a.res.StatusCode)
	if said := excerpt(text); said != "" {
		message += ": " + said
	}
	id := a.res.Header.Get("Request-Id")
	if id == "" {
		id = c.x.ID
		a.res.Header["Request-Id"] = []string{id}
	}
	for _, name := range [...]string{"Content-Encoding", "Content-Length", "Content-Language", "Etag", "Last-Modified", "Accept-Ranges", "Trailer"} {
		delete(a.res.Header, name)
	}
	a.res.Header["Content-Type"] = []string{"application/json"}
	a.res.StatusCode, a.res.Status, a.res.Trailer = status, "", nil
	a.ahead, a.whole = errorJSON(kind, message, id), true
	a.res.ContentLength = int64(len(a.ahead))
	a.res.Header["Content-Length"] = []string{fmt.Sprint(len(a.ahead))}
}

// isError reports whether a body is an error in the API's shape.
func isError(body []byte) (is bool) {
	peek.Members(body, func(key, value []byte) {
		if string(key) == "error" {
			peek.Members(value, func(key, value []byte) {
				is = is || string(key) == "type" && peek.Text(value) != ""
			})
		}
	})
	return is
}

// inWords is the status with which an error is told, and its type among the API's.
func inWords(status int) (as int, kind string) {
	switch {
	case status < 400: // a page in place of a message
		status = http.StatusBadGateway
	case status == 522 || status == 524: // Cloudflare: the origin took too long
		status = http.StatusGatewayTimeout
	case status >= 520 && status != 529: // Cloudflare: it said nothing of use
		status = http.StatusBadGateway
	}
	switch {
	case status == http.StatusRequestTimeout:
		return status, "timeout_error"
	case status == http.StatusServiceUnavailable:
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

// plainText is a body without its encoding, as far as it may be looked at; false: it
// is in one that is not read here.
func plainText(body []byte, encoding string) ([]byte, bool) {
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
	text, err := io.ReadAll(io.LimitReader(z, mostKept))
	return text, err == nil
}

func mediaType(h http.Header) string {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

// excerpt is what a page says in a few words: the message of JSON, the title of HTML,
// or the beginning of a text.
func excerpt(text []byte) string {
	const most = 120
	said := ""
	peek.Members(text, func(key, value []byte) {
		switch strings.ToLower(string(key)) {
		case "message", "error", "detail":
			if s := peek.Text(value); said == "" && s != "" {
				said = s
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
