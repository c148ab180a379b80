// Package hba decides by rules how a client has to prove who it is, as PostgreSQL's
// pg_hba.conf does: the first rule that fits decides.
//
// Only the pooler imports it. It is pure.
package hba

import (
	"fmt"
	"net/netip"
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
	Database string `yaml:"database" doc:"The database that the rule is about, or all."`
	User     string `yaml:"user" doc:"The user that the rule is about, or all."`
	From     string `yaml:"from" doc:"Where clients come from: all, local (this machine), an address or a network such as 10.0.0.0/8."`
	TLS      string `yaml:"tls" doc:"Whether the rule is about encrypted connections: any, required or none."`
	Method   string `yaml:"method" doc:"How they prove it: scram-sha-256 (also with channel binding), md5, password (in the clear: only with TLS or from this machine), cert (a client certificate whose common name is the user), trust (not at all) or reject."`
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
	if p, err := netip.ParsePrefix(r.From); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(r.From)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Prefix(a.BitLen())
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

// Find returns the method of the first rule that fits; ok is false if none does.
func Find(rules []Rule, v Visitor) (method string, ok bool) {
	for i := range rules {
		if rules[i].fits(v) {
			return rules[i].Method, true
		}
	}
	return "", false
}

func (r *Rule) fits(v Visitor) bool {
	switch {
	case r.Database != "all" && r.Database != v.Database, r.User != "all" && r.User != v.User:
		return false
	case r.TLS == "required" && !v.TLS, r.TLS == "none" && v.TLS:
		return false
	case r.From == "all":
		return true
	case r.From == "local":
		return v.Local()
	}
	network, err := r.network()
	return err == nil && v.Address.IsValid() && network.Contains(v.Address.Unmap())
}
