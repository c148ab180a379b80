package claude_test

import (
	"net/http"
	"testing"

	"mainstay.dev/mainstay/claude/claudetest"
	"mainstay.dev/mainstay/identity"
)

func TestACallIsInTheNameOfWhomTheAppForwardsAndClaudeIsNotTold(t *testing.T) {
	var c identity.Config
	c.SetDefaults()
	desk, err := identity.New(c, identity.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	fake := claudetest.New(claudetest.Options{Keep: 1})
	url := fake.Start(t)
	user := identity.Who{User: "u1", Workspace: "w1", Tier: "free", By: identity.ByToken}
	for _, tc := range []struct {
		name, sealed string
		who          identity.Opener
		user, tier   string
	}{
		{"forwarded", desk.Seal(&user, ""), desk, "u1", "free"},
		{"forged", "v1.eyJ1c2VyIjoicm9vdCIsImV4cCI6OTk5OTk5OTk5OX0.AAAAAAAAAAAAAAAAAAAAAA", desk, "", ""},
		{"nobody to ask", desk.Seal(&user, ""), nil, "", ""},
	} {
		st := start(t, setup{upstream: url, who: tc.who})
		if r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Identity", tc.sealed) }); r.status != 200 {
			t.Fatalf("%s: %+v", tc.name, r)
		}
		if got := fake.Requests()[0].Header.Get("Mainstay-Identity"); got != "" {
			t.Errorf("%s: Claude was told %s", tc.name, got)
		}
		if x := st.book.pages(t, 1)[0]; x.User != tc.user || x.Tier != tc.tier {
			t.Errorf("%s: recorded %q %q", tc.name, x.User, x.Tier)
		}
	}
}
