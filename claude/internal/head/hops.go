package head

import (
	"net/http"
	"strings"
)

// Upgrades is the protocol to which one side asks to go over (RFC 9110, section 7.8);
// empty: it does not.
func Upgrades(h http.Header) string {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if to := h.Get("Upgrade"); strings.EqualFold(strings.TrimSpace(name), "Upgrade") && !strings.EqualFold(to, "h2c") { // that is between two neighbours
				return to
			}
		}
	}
	return ""
}

// Readable asks for no encoding of an answer that can't be read here, where what the
// answer tells has to be: its usage, and how it ended.
func Readable(h http.Header) {
	var kept []string
	dropped := false
	for _, line := range h["Accept-Encoding"] {
		for coding := range strings.SplitSeq(line, ",") {
			coding = strings.TrimSpace(coding)
			name, weight, _ := strings.Cut(coding, ";")
			switch name = strings.ToLower(strings.TrimSpace(name)); {
			case name == "identity" && strings.Trim(strings.ReplaceAll(weight, " ", ""), "q=0.") == "" && weight != "":
				return // it takes nothing else, and is on its own
			case name == "gzip" || name == "identity":
				kept = append(kept, coding)
			default:
				dropped = true
			}
		}
	}
	if !dropped {
		return
	}
	if kept == nil {
		kept = []string{"identity"}
	}
	h["Accept-Encoding"] = []string{strings.Join(kept, ", ")}
}

var hops = [...]string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

// DropHops removes the headers that are between two neighbours only (RFC 9110,
// section 7.6.1).
func DropHops(h http.Header) {
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
