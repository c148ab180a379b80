package hba

import (
	"net/netip"
	"testing"

	"mainstay.dev/mainstay/internal/setting"
)

// none are the roles of somebody whom PostgreSQL does not know.
func none() map[string]bool { return nil }

func TestMembersOfRolesAreAskedForWhereItMatters(t *testing.T) {
	rules := compile(t, []Rule{
		{"app", "root", "all", "any", Reject, nil},
		{"app", "+admins", "all", "any", Cert, nil},
		{"app", "+staff", "10.0.0.0/8", "any", SCRAM, nil},
		{"app", "ann,+guests", "all", "any", MD5, nil},
	})
	if !rules.Asks() || compile(t, []Rule{{"all", "+admins", "all", "any", Trust, nil}}).Asks() {
		t.Error("who needs to ask")
	}
	inside, outside := netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("192.168.1.1")
	for _, c := range []struct {
		v     Visitor
		roles map[string]bool
		want  string
		asked int
	}{
		{Visitor{"root", "app", inside, false}, map[string]bool{"staff": true}, Reject, 0},
		{Visitor{"bob", "app", inside, false}, map[string]bool{"staff": true}, Cert, 0}, // of the group in the file
		{Visitor{"carl", "app", inside, false}, map[string]bool{"staff": true}, SCRAM, 1},
		{Visitor{"carl", "app", outside, false}, map[string]bool{"staff": true}, "", 1}, // for the guests
		{Visitor{"carl", "other", inside, false}, map[string]bool{"staff": true}, "", 0},
		{Visitor{"dora", "app", outside, false}, map[string]bool{"guests": true, "dora": true}, MD5, 1},
		{Visitor{"admins", "app", outside, false}, map[string]bool{"admins": true}, "", 1}, // a group in the file is none of PostgreSQL's
	} {
		asked := 0
		got, _ := rules.Find(c.v, func() map[string]bool { asked++; return c.roles })
		if got.Method != c.want || asked != c.asked {
			t.Errorf("%+v: %q, want %q, asked %d times", c.v, got.Method, c.want, asked)
		}
	}
}

func TestTheFirstRuleThatFitsDecides(t *testing.T) {
	rules := []Rule{
		{"app", "root", "all", "any", Reject, nil},
		{"all", "all", "local", "any", Trust, nil},
		{"all", "robot", "10.0.0.0/8", "required", Cert, nil},
		{"all", "all", "10.0.0.0/8", "required", SCRAM, nil},
		{"app", "old", "192.168.1.7", "none", MD5, nil},
	}
	at := netip.MustParseAddr
	for want, v := range map[string]Visitor{
		Reject: {"root", "app", at("127.0.0.1"), true},
		Trust:  {"ann", "app", at("::ffff:127.0.0.1"), false},
		Cert:   {"robot", "x", at("10.9.9.9"), true},
		SCRAM:  {"ann", "x", at("::ffff:10.1.1.1"), true},
		MD5:    {"old", "app", at("192.168.1.7"), false},
	} {
		if got, ok := compile(t, rules).Find(v, none); !ok || got.Method != want {
			t.Errorf("%+v: %q, want %q", v, got.Method, want)
		}
	}
	for _, v := range []Visitor{
		{"ann", "x", at("10.1.1.1"), false}, {"old", "app", at("192.168.1.7"), true}, {"old", "app", at("192.168.1.8"), false},
		{"ann", "app", at("2001:db8::1"), true},
	} {
		if got, ok := compile(t, rules).Find(v, none); ok {
			t.Errorf("%+v: %q, and none should fit", v, got.Method)
		}
	}
	if got, _ := compile(t, rules).Find(Visitor{User: "ann", Database: "app"}, none); got.Method != Trust { // a Unix socket
		t.Error(got)
	}
}

func TestAddressesFitHoweverTheyAreWritten(t *testing.T) {
	for from, visitor := range map[string]string{
		"fe80::/10": "fe80::1%eth0", "fe80::1": "fe80::1%2", // the scope is the listener's side of it
		"::ffff:10.0.0.0/104": "10.1.2.3", "::ffff:10.1.2.3": "10.1.2.3",
	} {
		rules := compile(t, []Rule{{"all", "all", from, "any", Reject, nil}, {"all", "all", "all", "any", Trust, nil}})
		if got, _ := rules.Find(Visitor{"ann", "app", netip.MustParseAddr(visitor), false}, none); got.Method != Reject {
			t.Errorf("%s is not from %s", visitor, from)
		}
	}
	for _, from := range []string{"::ffff:0:0/90", "fe80::1%eth0"} {
		var ps setting.Problems
		r := Rule{"all", "all", from, "any", SCRAM, nil}
		if r.Validate(&ps); len(ps) != 1 || ps[0].Path != "from" {
			t.Errorf("%s: %v", from, ps)
		}
	}
}

func TestACommonNameMayHoldAComma(t *testing.T) {
	rules := compile(t, []Rule{{"all", "all", "all", "required", Cert, []Name{{"Doe, John", "john"}, {"+ops", "ops"}}}})
	found, _ := rules.Find(Visitor{User: "john", Database: "app", TLS: true}, none)
	for cert, user := range map[string]string{"Doe, John": "john", "+ops": "ops"} {
		if !found.Names(cert, user) {
			t.Errorf("%s is not %s", cert, user)
		}
	}
	if found.Names("Doe", "john") || found.Names("John", "john") {
		t.Error("a part of the name is enough")
	}
}

func TestAMistakeInARuleIsNamed(t *testing.T) {
	for path, r := range map[string]Rule{
		"":       {"", "all", "all", "any", SCRAM, nil},
		"from":   {"all", "all", "10.0.0.0/99", "any", SCRAM, nil},
		"method": {"all", "all", "all", "any", "kerberos", nil},
		"tls":    {"all", "all", "all", "any", Cert, nil},
		"user":   {"all", "/(", "all", "any", SCRAM, nil},
		"map[0]": {"all", "all", "all", "required", Cert, []Name{{"/(", "x"}}},
		"map":    {"all", "all", "all", "any", SCRAM, []Name{{"a", "x"}}},
	} {
		var ps setting.Problems
		if r.Validate(&ps); len(ps) != 1 || ps[0].Path != path {
			t.Errorf("%+v: %v", r, ps)
		}
	}
	var ps setting.Problems
	r := Rule{"all", "all", "all", "any", Password, nil}
	if r.Validate(&ps); len(ps) != 1 {
		t.Errorf("a password in the clear over the network: %v", ps)
	}
	var ok setting.Problems
	r.SetDefaults()
	if r.Validate(&ok); len(ok) != 0 {
		t.Error(ok)
	}
}

func compile(t *testing.T, rules []Rule) *Rules {
	t.Helper()
	compiled, err := Compile(rules, map[string][]string{"admins": {"ann", "bob"}})
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func TestListsGroupsAndExpressionsFitAsInPgHba(t *testing.T) {
	rules := []Rule{
		{"postgres, app", "+admins", "all", "any", SCRAM, nil},
		{"/^shop_[0-9]+$", "carl,/^svc_", "all", "any", MD5, nil},
		{"all", "+nobody", "all", "any", Trust, nil},
	}
	for v, want := range map[Visitor]string{
		{User: "ann", Database: "app"}: SCRAM, {User: "bob", Database: "postgres"}: SCRAM, {User: "ann", Database: "other"}: "", {User: "+admins", Database: "app"}: "",
		{User: "svc_x", Database: "shop_12"}: MD5, {User: "carl", Database: "shop_1"}: MD5, {User: "a_svc_x", Database: "shop_1"}: "", {User: "svc_x", Database: "my_shop_1"}: "",
	} {
		if got, _ := compile(t, rules).Find(v, none); got.Method != want {
			t.Errorf("%+v: %q, want %q", v, got.Method, want)
		}
	}
}

func TestACertificateIsMappedToUsers(t *testing.T) {
	plain := compile(t, []Rule{{"all", "all", "all", "required", Cert, nil}})
	mapped := compile(t, []Rule{{"all", "all", "all", "required", Cert, []Name{{"boss", "all"}, {"robot", "batch"}, {`/^(.*)@example\.com$`, `\1`}, {"/^ops-", "admin"}}}})
	for _, c := range []struct {
		rules      *Rules
		cert, user string
		want       bool
	}{
		{plain, "ann", "ann", true}, {plain, "ann", "bob", false}, {mapped, "ann", "ann", false}, {mapped, "boss", "anybody", true}, {mapped, "robot", "batch", true}, {mapped, "robot", "robot", false},
		{mapped, "ann@example.com", "ann", true}, {mapped, "ann@example.com", "bob", false}, {mapped, "ann@example.com.evil", "ann", false}, {mapped, "ops-7", "admin", true}, {mapped, "@example.com", "", true},
	} {
		found, ok := c.rules.Find(Visitor{User: c.user, Database: "app", TLS: true}, none)
		if !ok || found.Names(c.cert, c.user) != c.want {
			t.Errorf("%s as %s: %v", c.cert, c.user, !c.want)
		}
	}
}

func FuzzPatterns(f *testing.F) {
	f.Add("a, +b,/^c", "c")
	f.Fuzz(func(t *testing.T, text, name string) {
		all, err := patterns(text, map[string][]string{"b": {name}})
		if err != nil {
			return
		}
		for _, p := range all {
			p.fits(name)
		}
	})
}
