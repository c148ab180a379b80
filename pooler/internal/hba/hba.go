// Package hba decides by rules how a client has to prove who it is, as PostgreSQL's
// pg_hba.conf does: the first rule that fits decides.
//
// Only the pooler imports it. It is pure.
package hba

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// The methods.
const (
	Trust    = "trust"
	Reject   = "reject"
	Password = "password"
	MD5      = "md5"
	SCRAM    = "scram-sha-256"
	Cert     = "cert"
)

var methods = []string{Trust, Reject, Password, MD5, SCRAM, Cert}

// A Rule says how the clients that it fits have to prove who they are.
type Rule struct {
	Database string `yaml:"database" doc:"The database that the rule is about, or all. As in pg_hba.conf: several with commas, and /x for a regular expression."`
	User     string `yaml:"user" doc:"The user that the rule is about, or all. As in pg_hba.conf: several with commas, +x for the members of pooler.groups.x or, where there is none, of PostgreSQL's role x, and /x for a regular expression."`
	From     string `yaml:"from" doc:"Where clients come from: all, local (this machine), an address or a network such as 10.0.0.0/8."`
	TLS      string `yaml:"tls" doc:"Whether the rule is about encrypted connections: any, required or none."`
	Method   string `yaml:"method" doc:"How they prove it: scram-sha-256 (also with channel binding), md5, password (in the clear: only with TLS or from this machine), cert (a client certificate whose common name is the user, unless map says otherwise), trust (not at all) or reject."`
	Map      []Name `yaml:"map" doc:"With cert: which certificates may log in as whom; the first that fits both decides. None: the common name is the user's."`
}

// A Name says who may log in with a certificate, as a line of pg_ident.conf does.
type Name struct {
	Cert string `yaml:"cert" doc:"The certificate's common name, or /x for a regular expression."`
	User string `yaml:"user" doc:"The user, or all; \\1 stands for what the expression's first parentheses hold."`
}

// SetDefaults fills in what the file leaves out.
func (r *Rule) SetDefaults() {
	*r = Rule{Database: "all", User: "all", From: "all", TLS: "any", Method: SCRAM}
}

// Validate reports every mistake.
func (r *Rule) Validate(ps *setting.Problems) {
	if r.Database == "" || r.User == "" {
		ps.Add("", "names no database or no user", "write all, or a name")
	}
	for _, list := range []struct{ key, text string }{{"database", r.Database}, {"user", r.User}} {
		if _, err := patterns(list.text, nil); err != nil {
			ps.Add(list.key, err.Error(), "write a regular expression behind the slash")
		}
	}
	for i, n := range r.Map {
		if _, err := commonName(n.Cert); err != nil || n.Cert == "" || n.User == "" {
			ps.Add(fmt.Sprintf("map[%d]", i), "needs a cert, a name or an expression behind a slash, and a user", `write {cert: "/^(.*)@example\\.com$", user: "\\1"}`)
		}
	}
	if len(r.Map) > 0 && r.Method != Cert {
		ps.Add("map", "means nothing without certificates", "write method: cert")
	}
	if _, err := r.network(); err != nil {
		ps.Add("from", fmt.Sprintf("%q is neither an address nor a network", r.From), "write all, local, 10.1.2.3 or 10.0.0.0/8")
	}
	if !slices.Contains([]string{"any", "required", "none"}, r.TLS) {
		ps.Add("tls", fmt.Sprintf("%q is unknown", r.TLS), "write any, required or none")
	}
	switch {
	case !slices.Contains(methods, r.Method):
		ps.Add("method", fmt.Sprintf("%q is unknown", r.Method), "write "+strings.Join(methods, ", "))
	case r.Method == Cert && r.TLS != "required":
		ps.Add("tls", "must be required where clients show a certificate", "write tls: required")
	case r.Method == Password && r.TLS != "required" && r.From != "local":
		ps.Add("tls", "must be required where the password is sent in the clear", "write tls: required, or method: scram-sha-256")
	}
}

// network is what From stands for; the zero value for all and local.
func (r *Rule) network() (netip.Prefix, error) {
	if r.From == "all" || r.From == "local" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(r.From)
	if err != nil {
		a, err := netip.ParseAddr(r.From)
		if err != nil || a.Zone() != "" {
			return p, errors.Join(err, errors.New("an address with a zone"))
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if a := p.Addr(); a.Is4In6() { // visitors are compared as IPv4
		if p.Bits() < 96 {
			return p, errors.New("a network of more than IPv4's addresses")
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// A Visitor is a client that wants to log in. Address is not valid for a socket of
// this machine that has none.
type Visitor struct {
	User, Database string
	Address        netip.Addr
	TLS            bool
}

// Local reports whether the visitor is on this machine.
func (v Visitor) Local() bool { return !v.Address.IsValid() || v.Address.Unmap().IsLoopback() }

// Rules are a list of rules in the form in which they are obeyed. They are immutable.
type Rules struct {
	list []rule
	asks bool
}

// Asks reports whether there are rules for the members of PostgreSQL's roles, for which
// Find needs to know those of the visitor.
func (r *Rules) Asks() bool { return r.asks }

type rule struct {
	Rule
	databases, users []pattern
	network          netip.Prefix
	names            []name
}

type name struct {
	cert pattern
	user string
}

// A pattern is one name of a list.
type pattern struct {
	text  string
	regex *regexp.Regexp  // in the text's place
	group map[string]bool // in the text's place
	role  string          // of PostgreSQL, in the text's place
}

// Compile prepares rules that are valid. groups are users by the name of their group;
// those that are not there are PostgreSQL's roles.
func Compile(rules []Rule, groups map[string][]string) (*Rules, error) {
	compiled := &Rules{}
	for _, r := range rules {
		one := rule{Rule: r}
		var err1, err2, err3 error
		one.databases, err1 = patterns(r.Database, nil)
		one.users, err2 = patterns(r.User, groups)
		one.network, err3 = r.network()
		for _, n := range r.Map {
			p, err := commonName(n.Cert)
			if err != nil {
				return nil, fmt.Errorf("map: %q: %w", n.Cert, err)
			}
			one.names = append(one.names, name{p, n.User})
		}
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, err
		}
		compiled.asks = compiled.asks || slices.ContainsFunc(one.users, func(p pattern) bool { return p.role != "" })
		compiled.list = append(compiled.list, one)
	}
	return compiled, nil
}

// commonName reads what a certificate's common name has to be: one name, in which a comma
// is a letter as others, or an expression.
func commonName(text string) (p pattern, err error) {
	p.text = text
	if expression, ok := strings.CutPrefix(text, "/"); ok {
		p.regex, err = regexp.Compile(expression)
	}
	return p, err
}

// patterns reads a list of names. An expression may hold commas: it is the last.
func patterns(text string, groups map[string][]string) (all []pattern, err error) {
	for text != "" {
		if strings.HasPrefix(text, "/") {
			p, err := commonName(text)
			if err != nil {
				return nil, err
			}
			return append(all, p), nil
		}
		var one string
		one, text, _ = strings.Cut(text, ",")
		p := pattern{text: strings.TrimSpace(one)}
		text = strings.TrimSpace(text)
		if group, ok := strings.CutPrefix(p.text, "+"); ok {
			p.group = map[string]bool{}
			members, known := groups[group]
			for _, member := range members {
				p.group[member] = true
			}
			if !known {
				p.role = group
			}
		}
		all = append(all, p)
	}
	return all, nil
}

func (p *pattern) fits(name string) bool {
	switch {
	case p.regex != nil:
		return p.regex.MatchString(name)
	case p.group != nil:
		return p.group[name]
	}
	return p.text == "all" || p.text == name
}

// Find returns the first rule that fits; ok is false if none does. roles returns those of
// PostgreSQL that the user is or is a member of; it is called if that matters.
func (r *Rules) Find(v Visitor, roles func() map[string]bool) (found Found, ok bool) {
	for i := range r.list {
		if r.list[i].fits(v, roles) {
			return Found{r.list[i].Method, &r.list[i]}, true
		}
	}
	return found, false
}

func (r *rule) fits(v Visitor, roles func() map[string]bool) bool {
	listed := func(all []pattern, name string) bool {
		return slices.ContainsFunc(all, func(p pattern) bool { return p.fits(name) })
	}
	switch {
	case !listed(r.databases, v.Database), !r.admits(v):
		return false
	case r.TLS == "required" && !v.TLS, r.TLS == "none" && v.TLS:
		return false
	case listed(r.users, v.User):
		return true
	}
	// Last, since it may have to be asked for.
	return slices.ContainsFunc(r.users, func(p pattern) bool { return p.role != "" && roles()[p.role] })
}

// admits reports whether the rule is about where the visitor comes from.
func (r *rule) admits(v Visitor) bool {
	switch r.From {
	case "all":
		return true
	case "local":
		return v.Local()
	}
	// As in PostgreSQL, the zone of a link-local address says nothing: no network would hold it.
	return v.Address.IsValid() && r.network.Contains(v.Address.Unmap().WithZone(""))
}

// A Found is a rule that fits a visitor.
type Found struct {
	Method string
	rule   *rule
}

// Names reports whether a certificate with this common name may log in as the user.
func (f Found) Names(cert, user string) bool {
	if f.rule == nil || len(f.rule.names) == 0 {
		return cert == user
	}
	for _, n := range f.rule.names {
		if n.cert.regex == nil {
			if n.cert.text == cert && (n.user == "all" || n.user == user) {
				return true
			}
			continue
		}
		parts := n.cert.regex.FindStringSubmatch(cert)
		if parts == nil {
			continue
		}
		want := n.user
		if len(parts) > 1 {
			want = strings.ReplaceAll(want, `\1`, parts[1])
		}
		if n.user == "all" || want == user {
			return true
		}
	}
	return false
}
