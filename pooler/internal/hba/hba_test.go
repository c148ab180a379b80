package hba

import (
	"net/netip"
	"testing"

	"mainstay.dev/mainstay/internal/setting"
)

func TestTheFirstRuleThatFitsDecides(t *testing.T) {
	rules := []Rule{
		{"app", "root", "all", "any", Reject},
		{"all", "all", "local", "any", Trust},
		{"all", "robot", "10.0.0.0/8", "required", Cert},
		{"all", "all", "10.0.0.0/8", "required", SCRAM},
		{"app", "old", "192.168.1.7", "none", MD5},
	}
	at := netip.MustParseAddr
	for want, v := range map[string]Visitor{
		Reject: {"root", "app", at("127.0.0.1"), true},
		Trust:  {"ann", "app", at("::ffff:127.0.0.1"), false},
		Cert:   {"robot", "x", at("10.9.9.9"), true},
		SCRAM:  {"ann", "x", at("::ffff:10.1.1.1"), true},
		MD5:    {"old", "app", at("192.168.1.7"), false},
	} {
		if got, ok := Find(rules, v); !ok || got != want {
			t.Errorf("%+v: %q, want %q", v, got, want)
		}
	}
	for _, v := range []Visitor{
		{"ann", "x", at("10.1.1.1"), false}, {"old", "app", at("192.168.1.7"), true}, {"old", "app", at("192.168.1.8"), false},
		{"ann", "app", at("2001:db8::1"), true},
	} {
		if got, ok := Find(rules, v); ok {
			t.Errorf("%+v: %q, and none should fit", v, got)
		}
	}
	if got, _ := Find(rules, Visitor{User: "ann", Database: "app"}); got != Trust { // a Unix socket
		t.Error(got)
	}
}

func TestAMistakeInARuleIsNamed(t *testing.T) {
	for path, r := range map[string]Rule{
		"":       {"", "all", "all", "any", SCRAM},
		"from":   {"all", "all", "10.0.0.0/99", "any", SCRAM},
		"method": {"all", "all", "all", "any", "kerberos"},
		"tls":    {"all", "all", "all", "any", Cert},
	} {
		var ps setting.Problems
		if r.Validate(&ps); len(ps) != 1 || ps[0].Path != path {
			t.Errorf("%+v: %v", r, ps)
		}
	}
	var ps setting.Problems
	r := Rule{"all", "all", "all", "any", Password}
	if r.Validate(&ps); len(ps) != 1 {
		t.Errorf("a password in the clear over the network: %v", ps)
	}
	var ok setting.Problems
	r.SetDefaults()
	if r.Validate(&ok); len(ok) != 0 {
		t.Error(ok)
	}
}
