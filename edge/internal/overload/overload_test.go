package overload

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/capacity"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/setting"
)

func config(change ...func(*Config)) Config {
	var c Config
	c.SetDefaults()
	for _, f := range change {
		f(&c)
	}
	return c
}

func TestARequestHasItsClassItsTenantAndItsKind(t *testing.T) {
	p, err := Compile(config(func(c *Config) {
		c.Concurrency = "auto"
		c.Critical = append(c.Critical, "path:/checkout/*", "class:login", "key:ci")
		c.Background = []string{"class:webhooks", "path:/export"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	six := netip.MustParseAddr("2001:db8::1:2:3:4")
	for _, tc := range []struct {
		r      Request
		class  capacity.Class
		tenant string
	}{
		{Request{Who: &identity.Who{Address: six}, Path: "/"}, capacity.Ordinary, "2001:db8::"},
		{Request{Who: &identity.Who{Address: netip.MustParseAddr("192.0.2.1")}, Tier: "free", Path: "/export"}, capacity.Background, "192.0.2.1"},
		{Request{Who: &identity.Who{User: "u", Workspace: "w"}, Tier: "pro", Path: "/export"}, capacity.Critical, "w:w"},
		{Request{Who: &identity.Who{User: "u"}, Tier: "free", Path: "/checkout/1"}, capacity.Critical, "u:u"},
		{Request{Who: &identity.Who{User: "u"}, Class: "login", Path: "/a"}, capacity.Critical, "u:u"},
		{Request{Who: &identity.Who{User: "u", Key: "ci"}, Path: "/a"}, capacity.Critical, "u:u"},
		{Request{Who: &identity.Who{User: "u"}, Class: "webhooks", Path: "/a"}, capacity.Background, "u:u"},
	} {
		if w := p.Work(&tc.r); w.Class != tc.class || w.Tenant != tc.tenant {
			t.Errorf("%+v of %+v: %+v", tc.r, tc.r.Who, w)
		}
	}
	kind := func(method, path string) uint64 {
		return p.Work(&Request{Who: &identity.Who{}, Method: method, Path: path}).Kind
	}
	if kind("GET", "/api/users/7") != kind("GET", "/api/users/8/posts") || kind("GET", "/api/users/7") == kind("POST", "/api/users/7") || kind("GET", "/api/users") == kind("GET", "/api/reports") {
		t.Error("the kind is not the method and two segments")
	}
	for _, path := range []string{"", "/", "*", "//", "///", "a"} {
		kind("GET", path) // does not panic
	}
}

func TestCompileNamesEveryMistake(t *testing.T) {
	_, err := Compile(config(func(c *Config) {
		c.Concurrency, c.Most, c.Reserve, c.Queue = "some", 0, 0.7, Queue{-1, time.Hour}
		c.Critical, c.Background = []string{"tier:"}, []string{"path:x", "?"}
	}))
	var paths []string
	for _, p := range setting.Of(err) {
		paths = append(paths, p.Path)
	}
	if got, want := strings.Join(paths, " "), "concurrency most reserve queue.requests queue.for critical background background"; got != want {
		t.Errorf("got %s", got)
	}
	if p, err := Compile(config(func(c *Config) { c.Concurrency, c.Most = "fixed", 6 })); err != nil || !p.On || p.Rule.Adapt || p.Rule.Max != 6 {
		t.Errorf("%+v %v", p, err)
	}
	if p, err := Compile(config()); err != nil || p.On {
		t.Errorf("%+v %v", p, err)
	}
}

func TestOneCallerCannotFillTheDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Waits
		flood, victim := &identity.Who{User: "flood"}, &identity.Who{User: "victim"}
		results := make(chan error, 20)
		for range 15 {
			go func() { results <- q.Wait(context.Background(), flood, time.Second, 12, 10) }()
		}
		synctest.Wait()
		if n := len(results); n != 5 || q.Now() != 10 {
			t.Errorf("%d of 15 were turned away, %d wait", n, q.Now())
		}
		if err := q.Wait(t.Context(), victim, time.Second, 12, 10); err != nil {
			t.Errorf("the victim: %v", err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := q.Wait(gone, victim, time.Second, 12, 10); !errors.Is(err, context.Canceled) {
			t.Errorf("whoever is gone: %v", err)
		}
		synctest.Wait()
		if q.Now() != 0 || len(q.by) != 0 {
			t.Errorf("%d wait, %v", q.Now(), q.by)
		}
	})
}
