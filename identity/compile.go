package identity

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// policy is a compiled Config. It is immutable.
type policy struct {
	cfg     Config
	proxies *Proxies
	fields  [3]field // user, workspace, tier
	slots   []string // the claims that fields read, as paths
	vouched []string // headers that only a trusted proxy may set
	keys    apiKeys
	keyName string // canonical name of the header for API keys
	cookie  glob
	secrets [][]byte // for HS256
	tiers   *tierTable

	// Nil where the configuration names no file.
	tierFile *watched[tierTable]
	keyFile  *watched[apiKeys]
}

type apiKey struct {
	name string
	Key
}

// field is where one part of a Who is looked for, in order.
type field []place

// place is one source of a value.
type place struct {
	by   Source
	name string // of the header, cookie or part of the certificate
	slot int    // of the claim
}

// The fields of a policy.
const (
	fieldUser = iota
	fieldWorkspace
	fieldTier
)

// Compile checks c and returns what obeys it. It is pure.
func Compile(c Config) (*policy, error) {
	var ps setting.Problems
	p := &policy{cfg: c, keyName: http.CanonicalHeaderKey(c.KeyHeader), cookie: glob(c.JWT.Cookie)}
	p.proxies = compileProxies(c, &ps)
	p.compileJWT(&ps)
	for i, f := range [...]struct{ key, value string }{{"user", c.User}, {"workspace", c.Workspace}, {"tier", c.Tier}} {
		p.fields[i] = p.compileField(&ps, f.key, f.value)
	}
	p.compileKeys(&ps)
	p.tiers = newTierTable()
	for who, tier := range c.Tiers {
		if !p.tiers.add(who, tier) {
			ps.Add("tiers."+who, "names no caller, or no tier", "write user:ID: pro or workspace:ID: pro")
		}
	}
	p.tierFile = openWatched(&ps, "tiers_file", c.TiersFile, "tiers", "The table of tiers", "give a file with lines such as: user:7 pro", readTiers)
	if n := len(c.Secret.Reveal()); n > 0 && n < minSecret {
		ps.Add("secret", "is shorter than 32 bytes", "make one with: openssl rand -hex 32")
	}
	oneOf(&ps, "on_refusal", c.OnRefusal, onRefusalAnonymous, onRefusalRefuse)
	oneOf(&ps, "names", c.Names, namesPlain, namesHashed, namesNone)
	if c.TellApp < 0 || c.TellApp > 24*time.Hour {
		ps.Add("tell_app", "must be between 0s and 24h", "try 10m")
	}
	if len(ps) > 0 {
		return nil, ps
	}
	return p, nil
}

func oneOf(ps *setting.Problems, path, value string, words ...string) {
	if !slices.Contains(words, value) {
		ps.Add(path, "must be "+strings.Join(words, " or "), "try "+words[0])
	}
}

// minSecret is what RFC 7518, 3.2 asks of a secret for HS256.
const minSecret = 32

func (p *policy) compileJWT(ps *setting.Problems) {
	j := &p.cfg.JWT
	for _, s := range [...]struct {
		path   string
		secret setting.Secret
	}{{"jwt.secret", j.Secret}, {"jwt.previous_secret", j.Previous}} {
		switch n := len(s.secret.Reveal()); {
		case n == 0:
		case n < minSecret:
			ps.Add(s.path, "is shorter than the 32 bytes that HS256 needs", "have the issuer make a longer one")
		default:
			p.secrets = append(p.secrets, []byte(s.secret.Reveal()))
		}
	}
	if j.JWKS != "" && !fetchable(j.JWKS) {
		ps.Add("jwt.jwks", "must be an https address (http only to loopback, to private addresses and to names without a dot)", "try https://PROJECT.supabase.co/auth/v1/.well-known/jwks.json")
	}
	if j.Cookie != "" && (strings.HasSuffix(j.Cookie, "*") || // or a chunk would look like a whole one
		strings.ContainsAny(j.Cookie, " \t;,=\"")) {
		ps.Add("jwt.cookie", "is no name of a cookie", "try sb-*-auth-token")
	}
	if j.Cookie != "" && !p.tokens() {
		ps.Add("jwt.cookie", "needs somebody who vouches for the token", "add jwt.jwks or jwt.secret")
	}
	if j.Leeway < 0 || j.Leeway > 10*time.Minute {
		ps.Add("jwt.leeway", "must be between 0s and 10m", "try 30s")
	}
	if j.Refresh < time.Second {
		ps.Add("jwt.refresh", "must be 1s or more", "try 10m")
	}
}

// tokens reports whether any token can be verified.
func (p *policy) tokens() bool { return p.cfg.JWT.JWKS != "" || len(p.secrets) > 0 }

// fetchable reports whether keys may come from raw: nobody on the way may change
// them.
func fetchable(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	if u.Scheme == "https" {
		return true
	}
	return u.Scheme == "http" && near(u.Hostname())
}

// near reports whether host is on this machine or its own network.
func near(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.IsLoopback() || a.IsPrivate()
	}
	return host == "localhost" || !strings.Contains(host, ".")
}

// written by users themselves in Supabase and Auth0.
var byUsers = regexp.MustCompile(`(^|[./])(user_metadata|raw_user_meta_data|unsafe_metadata|unsafeMetadata)($|\.)`)

// token is RFC 9110's: a header's or cookie's name.
var token = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")

func (p *policy) compileField(ps *setting.Problems, key, value string) (f field) {
	for entry := range strings.SplitSeq(value, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		kind, name, _ := strings.Cut(entry, ":")
		at := place{name: name}
		switch {
		case kind == "jwt" && name != "" && len(name) <= 256:
			at.by, at.slot = ByToken, len(p.slots)
			p.slots = append(p.slots, name)
			if !p.tokens() && entry != defaultUser {
				ps.Add(key, entry+" needs somebody who vouches for the token", "add jwt.jwks or jwt.secret")
			}
			if key != "user" && byUsers.MatchString(name) {
				ps.Add(key, "stands in a claim that users may write themselves", "keep it where only the server writes, such as app_metadata")
			}
		case kind == "header" && token.MatchString(name):
			at.by, at.name = ByHeader, http.CanonicalHeaderKey(name)
			p.vouched = append(p.vouched, at.name)
			if len(p.cfg.TrustedProxies) == 0 && p.cfg.ProxiesFile == "" {
				ps.Add(key, entry+" is believed from a trusted proxy only, and there is none", "name it in trusted_proxies")
			}
		case kind == "cookie" && token.MatchString(name):
			at.by = ByCookie
			if key == "tier" {
				ps.Add(key, entry+" would be any value that the app has signed in any cookie", "keep the tier in a token, or in tiers")
			}
			if p.cfg.CookieSecret == "" {
				ps.Add(key, entry+" is believed if the app has signed it", "add cookie_secret; for a token in a cookie, write jwt.cookie and jwt:sub")
			}
		case kind == "certificate" && certificateParts[name] != nil:
			at.by = ByCertificate
		default:
			ps.Add(key, entry+" is no place to look", "try jwt:sub, header:X-User-Id, cookie:uid or certificate:cn")
			continue
		}
		f = append(f, at)
	}
	return f
}

func (p *policy) compileKeys(ps *setting.Problems) {
	if (len(p.cfg.Keys) > 0 || p.cfg.KeysFile != "") && !token.MatchString(p.cfg.KeyHeader) {
		ps.Add("key_header", "is no name of a header", "try x-api-key")
	}
	p.keys = make(apiKeys, len(p.cfg.Keys))
	for name, k := range p.cfg.Keys {
		switch err := p.keys.add(name, k); {
		case errors.Is(err, errNoID):
			ps.Add("keys."+name, err.Error(), "use 1 to 256 printable characters, and 64 for a tier")
		case err != nil:
			ps.Add("keys."+name+".sha256", err.Error(), `make one with: printf %s "$KEY" | sha256sum`)
		}
	}
	p.keyFile = openWatched(ps, "keys_file", p.cfg.KeysFile, "keys", "The file of API keys", "give a file with lines such as: acme-ci SHA256 workspace=acme tier=pro", readKeys)
}

var errNoID = errors.New("names somebody by what is no id")

// add takes a key in.
func (keys apiKeys) add(name string, k Key) error {
	raw, err := hex.DecodeString(k.SHA256)
	if err != nil || len(raw) != sha256.Size {
		return errors.New("has no SHA-256 in hexadecimal")
	}
	sum := [sha256.Size]byte(raw)
	if other := keys[sum]; other != nil {
		return fmt.Errorf("has the SHA-256 of %s", other.name)
	}
	if !validID(name) || k.User != "" && !validID(k.User) || k.Workspace != "" && !validID(k.Workspace) || k.Tier != "" && !validTier(k.Tier) {
		return errNoID
	}
	k.User = cmp.Or(k.User, "key:"+name)
	keys[sum] = &apiKey{name, k}
	return nil
}

// glob is a name in which * stands for any run of characters.
type glob string

// match reports whether name is one that g means.
func (g glob) match(name string) bool {
	pattern := string(g)
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return name == pattern
	}
	if !strings.HasPrefix(name, head) {
		return false
	}
	name = name[len(head):]
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return strings.HasSuffix(name, rest)
		}
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name, rest = name[i+len(part):], more
	}
}
