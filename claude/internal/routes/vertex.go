package routes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/claude/internal/peek"
)

// vertex is the kind of a route that speaks as Google's Vertex AI does
// (https://docs.claude.com/en/api/claude-on-vertex-ai): the model stands in the path, the
// API's version in the body, and the key is a token that somebody renews.
const vertex = "vertex"

// vertexVersion is what stands in place of the header anthropic-version.
const vertexVersion = `"vertex-2023-10-16"`

// vertexBase is how the path of an upstream of the kind ends.
const vertexBase = "/publishers/anthropic/models"

// vertexBody makes the body of such a request of one for the Messages API; the same, if
// it is no JSON object.
func vertexBody(request []byte) []byte {
	out := append(make([]byte, 0, len(request)+Slack), `{"anthropic_version":`+vertexVersion...)
	whole := peek.Members(request, func(key, value []byte) {
		switch string(key) {
		case "model", "anthropic_version":
			return
		}
		out = append(append(append(out, `,"`...), key...), `":`...)
		out = append(out, value...)
	})
	if !whole {
		return request
	}
	return append(out, '}')
}

// vertexURL is where a model is asked; streams: for a stream.
func vertexURL(base *url.URL, model string, streams bool) *url.URL {
	verb := ":rawPredict"
	if streams {
		verb = ":streamRawPredict"
	}
	u := *base
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/")+"/"+model+verb, ""
	return &u
}

// isModel reports whether a name can be a model's: what a caller calls a model must not
// lead elsewhere.
func isModel(name string) bool {
	return name != "" && len(name) <= mostModel && strings.Trim(name, letters+"-_.:@") == "" && strings.Trim(name, ".") != ""
}

// A token is a key in a file that somebody else renews.
type token struct {
	path string
	good func(text string) bool // what the file may hold

	mu     sync.Mutex
	text   string
	looked time.Time // when the file was looked at last
	is     time.Time // when what was read was written
}

// mostToken is the largest key that is read from a file, in bytes.
const mostToken = 16 << 10

// read returns the token, and whether it is another one than before. The file is looked
// at once a second at most; what was read before stays if it can't be read any more.
func (t *token) read() (text string, fresh bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.text != "" && now.Sub(t.looked) < time.Second {
		return t.text, false, nil
	}
	t.looked = now
	info, err := os.Stat(t.path)
	if err != nil || t.text != "" && info.ModTime().Equal(t.is) {
		return t.text, false, t.unless(err)
	}
	f, err := os.Open(t.path)
	if err != nil {
		return t.text, false, t.unless(err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, mostToken+1))
	text = string(bytes.TrimSpace(raw))
	switch {
	case err != nil:
	case len(raw) > mostToken || !t.good(text):
		err = errors.New("the file of a key holds no key") // half of one, while it is being written
	default:
		fresh = t.text != "" && t.text != text
		t.text, t.is = text, info.ModTime()
	}
	return t.text, fresh, t.unless(err)
}

// isToken reports whether a text can be sent as a key.
func isToken(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}

// unless is err, where there is nothing to go on with.
func (t *token) unless(err error) error {
	if err == nil || t.text != "" {
		return nil
	}
	return fmt.Errorf("read a key: %w", err)
}

// now is the key as it is now; empty: it can't be read. A new one is fit again.
func (k *Access) now() string {
	if k.token == nil {
		return k.secret
	}
	text, fresh, err := k.token.read()
	if err != nil {
		return ""
	}
	if fresh {
		k.out.Store(0)
	}
	return text
}

// Again is req, which the key has signed, or, if the key has been renewed since, its like
// with the new one. The nil Access signs nothing.
func (k *Access) Again(req *http.Request) *http.Request {
	if k == nil || k.token == nil {
		return req
	}
	h := http.Header{}
	if k.sign(h); h.Get("Authorization") == req.Header.Get("Authorization") && h.Get("X-Api-Key") == req.Header.Get("X-Api-Key") {
		return req
	}
	out := req.Clone(req.Context())
	k.sign(out.Header)
	return out
}

// sign gives a request the key.
func (k *Access) sign(h http.Header) {
	delete(h, "Authorization")
	delete(h, "X-Api-Key")
	switch {
	case k == nil, k.signs:
	case k.bearer:
		h["Authorization"] = []string{"Bearer " + k.now()}
	default:
		h["X-Api-Key"] = []string{k.now()}
	}
}
