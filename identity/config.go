// Package identity says who is asking: the user, the workspace and the tier for
// whom a verified token, an API key, a signed cookie, a client certificate or a
// trusted proxy vouches, and else the client's address. The planes and limits/check
// share it, so that all of them name a caller alike; a [Seal] carries what one of
// them found out to another through the app.
//
// Anyone may import it. It knows no plane.
package identity

import (
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// Config is the identity section.
type Config struct {
	TrustedProxies []string `yaml:"trusted_proxies" doc:"Peers whose forwarding headers are believed: addresses, CIDR ranges, or the names loopback, private and cloudflare."`
	ProxiesFile    string   `yaml:"proxies_file" doc:"File with more of them, an address or range a line. It is read again when it changes, so that a list such as Cloudflare's can be kept fresh by a timer."`
	Rewriting      []string `yaml:"rewriting_proxies" doc:"Of the trusted proxies, those that write X-Forwarded-Host, X-Forwarded-Prefix, X-Original-URL and their like themselves, whatever the client sent; given as trusted_proxies. From all others, such as Cloudflare, those headers are the client's own words, and the app is not shown them."`
	ClientHeader   string   `yaml:"client_header" doc:"The one header in which a trusted proxy tells the client's address: x-forwarded-for, forwarded or cf-connecting-ip. The others are not believed, since a proxy passes on what it does not write."`

	JWT          JWT            `yaml:"jwt" doc:"Tokens: where they stand and who vouches for them. They are looked for in Authorization: Bearer and in the cookie."`
	Keys         map[string]Key `yaml:"keys" doc:"API keys by name. Only their hashes are kept."`
	KeysFile     string         `yaml:"keys_file" doc:"File with more of them, one a line: NAME SHA256, and after it user=ID, workspace=ID and tier=NAME where they are wanted. It is read again when it changes. What stands in keys goes before."`
	KeyHeader    string         `yaml:"key_header" doc:"Header in which API keys are shown. Authorization: Bearer is looked at too."`
	CookieSecret setting.Secret `yaml:"cookie_secret" doc:"Secret with which the app signs its cookies, as express and cookie-signature do; for cookie: below."`

	User      string `yaml:"user" doc:"Where the user's id stands: jwt:CLAIM (dots lead into objects), header:NAME (from a trusted proxy only), cookie:NAME (signed), certificate:cn, o, ou, dns, uri or email. Several, with commas between: the first that is there."`
	Workspace string `yaml:"workspace" doc:"Where the workspace's id stands; written as user."`
	Tier      string `yaml:"tier" doc:"Where the tier stands; written as user. Never in a claim that users may write themselves, such as user_metadata."`

	Tiers     map[string]string `yaml:"tiers" doc:"Tier by user:ID or workspace:ID; goes before what the token says, and the user before the workspace."`
	TiersFile string            `yaml:"tiers_file" doc:"File with more of them, one a line: user:7 pro. It is read again when it changes. What stands in tiers goes before."`

	OnRefusal string         `yaml:"on_refusal" doc:"What becomes of a request whose bearer token or API key is not believed: anonymous (it is its address) or refuse (401). A cookie never leads to a refusal, since the app must be able to renew it."`
	Names     string         `yaml:"names" doc:"How users and workspaces stand in logs, traces and the dashboard's records: plain, hashed or none."`
	Secret    setting.Secret `yaml:"secret" doc:"Secret that Mainstay-Identity and hashed names are made with, the same on all nodes; at least 32 bytes. Absent: one that this installation keeps for itself."`
	TellApp   time.Duration  `yaml:"tell_app" doc:"How long the signed header Mainstay-Identity is valid, and half of that at least, that tells the app who asks, and that the app may forward to the Claude plane. 0s: no header."`
}

// JWT says how tokens are found and verified.
type JWT struct {
	JWKS     string         `yaml:"jwks" doc:"Address of the key set of whoever issues the tokens (RS256, PS256, ES256, EdDSA and their longer kin)."`
	Secret   setting.Secret `yaml:"secret" doc:"Secret of tokens that are signed with HS256; at least 32 bytes."`
	Previous setting.Secret `yaml:"previous_secret" doc:"The secret before this one, while tokens with it are still about."`
	Cookie   string         `yaml:"cookie" doc:"Name of the cookie that holds the token, or a session of Supabase; * matches any run of characters. Chunks (.0, .1) are put together."`
	Issuer   string         `yaml:"issuer" doc:"What iss must be; anything if empty."`
	Audience []string       `yaml:"audience" doc:"What aud must hold one of; anything if empty."`
	Leeway   time.Duration  `yaml:"leeway" doc:"How far the clocks may be apart when exp and nbf are judged."`
	Refresh  time.Duration  `yaml:"refresh" doc:"How often the key set is fetched again. A token with a key that is not in it leads to a fetch too, every 10s at most. While the set cannot be had, the last one stays in force."`
}

// SetDefaults fills in what the file leaves out.
func (j *JWT) SetDefaults() { *j = JWT{Leeway: 30 * time.Second, Refresh: 10 * time.Minute} }

// Key is an API key.
type Key struct {
	SHA256    string `yaml:"sha256" doc:"The key's SHA-256 in hexadecimal: printf %s \"$KEY\" | sha256sum. The key must be random, of 20 characters or more."`
	User      string `yaml:"user" doc:"User in whose name it is shown; key:NAME if empty."`
	Workspace string `yaml:"workspace" doc:"Workspace in whose name it is shown."`
	Tier      string `yaml:"tier" doc:"Its tier."`
}

// The names of Config.ClientHeader.
const (
	XForwardedFor  = "x-forwarded-for"
	Forwarded      = "forwarded"
	CFConnectingIP = "cf-connecting-ip"
)

// The words of Config.OnRefusal and Config.Names.
const (
	onRefusalAnonymous = "anonymous"
	onRefusalRefuse    = "refuse"

	namesPlain  = "plain"
	namesHashed = "hashed"
	namesNone   = "none"
)

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() {
	*c = Config{
		ClientHeader: XForwardedFor, KeyHeader: "x-api-key", User: defaultUser,
		OnRefusal: onRefusalAnonymous, Names: namesPlain, TellApp: 10 * time.Minute,
	}
	c.JWT.SetDefaults()
}

const defaultUser = "jwt:sub"

// Validate reports every mistake.
func (c *Config) Validate(ps *setting.Problems) {
	_, err := Compile(*c)
	*ps = append(*ps, setting.Of(err)...)
}
