package claude

import (
	"net"
	"net/http"
	"net/url"
	"strings"

	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/telemetry"
)

// BaseURL returns the base URL that leads an app of this color to a plane that
// listens on listenAddr: http://127.0.0.1:8700/@blue. An empty color gives the
// plain address, whose calls have no known color.
func BaseURL(listenAddr, color string) string {
	host, port, err := net.SplitHostPort(listenAddr)
	if err != nil {
		host, port = listenAddr, "80"
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	u := "http://" + net.JoinHostPort(host, port)
	if color != "" {
		u += "/@" + url.PathEscape(color)
	}
	return u
}

// uncolor takes the color's segment off a path. A first segment that names no known
// color belongs to the path.
func uncolor(path, escaped string, colors map[string]bool) (color, rest, escapedRest string) {
	if !strings.HasPrefix(path, "/@") {
		return telemetry.ColorUnknown, path, escaped
	}
	color, _, _ = strings.Cut(path[2:], "/")
	if !colors[color] {
		return telemetry.ColorUnknown, path, escaped
	}
	rest = path[2+len(color):]
	if i := strings.IndexByte(escaped[1:], '/'); i >= 0 {
		escapedRest = escaped[1+i:]
	}
	if rest == "" || escapedRest == "" {
		rest, escapedRest = "/", "/"
	}
	return color, rest, escapedRest
}

// Routes, as metric labels.
const (
	routeMessages = "/v1/messages"
	routeCount    = "/v1/messages/count_tokens"
	routeComplete = "/v1/complete"
	routeBatches  = "/v1/messages/batches"
	routeFiles    = "/v1/files"
	routeOther    = "other"
)

// templates are the paths that have a label of their own; {id} stands for any
// segment.
var templates = [...]string{
	routeMessages, routeCount, routeComplete,
	routeBatches, "/v1/messages/batches/{id}", "/v1/messages/batches/{id}/cancel", "/v1/messages/batches/{id}/results",
	"/v1/models", "/v1/models/{id}",
	routeFiles, "/v1/files/{id}", "/v1/files/{id}/content",
}

// template returns the low-cardinality name of a path.
func template(path string) string {
	if path == routeMessages {
		return routeMessages
	}
	for _, t := range templates {
		if fits(path, t) {
			return t
		}
	}
	return routeOther
}

func fits(path, template string) bool {
	for template != "" || path != "" {
		var want, got string
		want, template = segment(template)
		got, path = segment(path)
		if want != got && (want != "/{id}" || len(got) < 2) {
			return false
		}
	}
	return true
}

// segment splits "/a/b" into "/a" and "/b".
func segment(path string) (first, rest string) {
	if path == "" {
		return "", ""
	}
	if i := strings.IndexByte(path[1:], '/'); i >= 0 {
		return path[:i+1], path[i+1:]
	}
	return path, ""
}

// shape is what the route tells of the answers that come.
type shape struct {
	// message: a generation, streamed or not. Its stream begins with its first event,
	// so nothing is lost if its head waits for that; and it ends with message_stop.
	message bool
	// whole: its JSON is short enough, and of use only when it is whole.
	whole bool
}

func shapeOf(method, route string) shape {
	return shape{
		message: method == http.MethodPost && (route == routeMessages || route == routeComplete),
		whole:   route != routeOther,
	}
}

// aim makes the request that goes upstream of the one that came in. It takes over
// the header, which nobody else needs after this.
func aim(r *http.Request, to target, path, escaped string) *http.Request {
	dropHops(r.Header)
	delete(r.Header, identity.Header)
	r.Header.Del("Expect") // the plane itself has told the client to continue
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = []string{""} // or net/http would put in its own
	}
	return &http.Request{
		Method: r.Method,
		URL:    to.url(path, escaped, r.URL),
		Host:   to.host,
		Header: r.Header,
	}
}

// url returns the address of a path, to the byte as the client wrote it.
func (t target) url(path, escaped string, from *url.URL) *url.URL {
	u := &url.URL{
		Scheme: t.scheme, Host: t.host, Path: t.path + path, RawPath: t.base + escaped,
		RawQuery: from.RawQuery, ForceQuery: from.ForceQuery,
	}
	if u.EscapedPath() != u.RawPath {
		u.Opaque = u.RawPath // holds what net/url would write in another way
	}
	return u
}

// asWritten returns the path of r as the client wrote it.
func asWritten(r *http.Request) string {
	if !strings.HasPrefix(r.RequestURI, "/") {
		return r.URL.EscapedPath() // the absolute form, or a request made in this process
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return path
}

var hops = [...]string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

// dropHops removes the headers that are between two neighbours only (RFC 9110,
// section 7.6.1).
func dropHops(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hops {
		delete(h, name)
	}
}
