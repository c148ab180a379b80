package prepared

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// Prefix begins the names by which servers know statements of the pooler's. It is another one in each process, so that no client
// has such a name by chance. Who has read one is still not to use, drop or replace by it what others use: in SQL, a client's own
// names that begin so are others on the servers.
var Prefix = fmt.Sprintf("_ms%08d", rand.N(100_000_000))

// What stands there in place of it. It is as long, so that errors point to the right place.
var (
	prefix = []byte(Prefix)
	chance = []byte(Prefix[3:]) // which is the same in upper case
	apart  = "_xs" + Prefix[3:]
)

// Apart is what a client's statement by this name goes by here, and on the servers, where SQL has made it.
func Apart(name string) string {
	if rest, ok := strings.CutPrefix(name, Prefix); ok {
		return apart + rest
	}
	return name
}

// apartFrom is that for a name that is only looked at.
func apartFrom(name []byte) []byte {
	if bytes.HasPrefix(name, prefix) {
		return []byte(Apart(string(name)))
	}
	return name
}

// Shared reports whether a name is one of those by which servers know what clients share. What else is ours has a "_" there.
func Shared(name []byte) bool {
	rest, ok := bytes.CutPrefix(name, prefix)
	return ok && !bytes.HasPrefix(rest, []byte{'_'})
}

// Borrows reports whether a text may use names that begin so.
func Borrows(text []byte) bool { return bytes.Contains(text, chance) }

// Disown puts other names in the place of those in a text.
func Disown(text []byte, backslash bool) {
	for _, u := range scan.Uses(text, backslash) {
		if name := text[u.From:u.To]; strings.HasPrefix(u.Name, Prefix) {
			name[bytes.Index(name, chance)-2] = 'x'
		}
	}
}

// DisownName does so with the name that a message of the protocol's gives a statement, or has of it.
func DisownName(typ byte, body []byte) {
	switch typ {
	case pgwire.Parse:
	case pgwire.Bind:
		body = body[bytes.IndexByte(body, 0)+1:]
	case pgwire.Describe, pgwire.Close:
		if !bytes.HasPrefix(body, []byte{'S'}) {
			return
		}
		body = body[1:]
	default:
		return
	}
	if bytes.HasPrefix(body, prefix) {
		body[1] = 'x'
	}
}

// Tell puts the client's names in an error of PostgreSQL's.
func Tell(body []byte) {
	for {
		_, rest, found := bytes.Cut(body, []byte(apart))
		if !found {
			return
		}
		body[len(body)-len(rest)-len(apart)+1] = 'm'
		body = rest
	}
}
