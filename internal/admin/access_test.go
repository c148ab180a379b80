package admin

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

func TestTheTokenIsMadeOnceForItsOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	first, err := loadToken(dir, quiet)
	if err != nil || !wellFormed(first) {
		t.Fatalf("%q, %v", first, err)
	}
	info, err := os.Stat(filepath.Join(dir, tokenFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if again, err := loadToken(dir, quiet); err != nil || again != first {
		t.Errorf("the next start: %v, %v", again == first, err)
	}
	if other, err := loadToken(t.TempDir(), quiet); err != nil || other == first {
		t.Errorf("another folder: the same %v, %v", other == first, err)
	}
}

func TestATokenThatOthersCouldReadIsReplacedAndItIsSaid(t *testing.T) {
	for _, mode := range []os.FileMode{0o644, 0o640, 0o602} {
		dir := t.TempDir()
		first, err := loadToken(dir, quiet)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, tokenFile)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		second, err := loadToken(dir, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil || second == first || !strings.Contains(said.String(), "could be read by others") || strings.Contains(said.String(), second) {
			t.Errorf("%v: the same %v, said %q, %v", mode, second == first, said.String(), err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v: now %v, %v", mode, info.Mode(), err)
		}
	}
}

func TestAWrongTokenFileIsRefusedWithTheMend(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"empty":   func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"damaged": func(p string) error { return os.WriteFile(p, []byte("short\n"), 0o600) },
		"longer":  func(p string) error { return os.WriteFile(p, []byte(newSecret()+newSecret()), 0o600) },
		"a folder": func(p string) error {
			return os.Mkdir(p, 0o700)
		},
		"a link": func(p string) error {
			if err := os.WriteFile(p+".target", []byte(newSecret()), 0o600); err != nil {
				return err
			}
			return os.Symlink(p+".target", p)
		},
	} {
		dir := t.TempDir()
		if err := make(filepath.Join(dir, tokenFile)); err != nil {
			t.Fatal(err)
		}
		if _, err := loadToken(dir, quiet); err == nil || !strings.Contains(err.Error(), "read the admin token") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLinksAndSessionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccess(newSecret(), "9900")
		link := a.links.issue()
		time.Sleep(linkLife)
		if a.links.take(link) {
			t.Error("a link works after its time")
		}
		link = a.links.issue()
		time.Sleep(linkLife - time.Second)
		if !a.links.take(link) || a.links.take(link) {
			t.Error("a link must work once")
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.AddCookie(a.begin())
		time.Sleep(sessionLife - time.Second)
		if a.who(r) != browser {
			t.Error("the session ended too early")
		}
		time.Sleep(time.Second)
		if a.who(r) != nobody {
			t.Error("the session outlived its time")
		}
	})
}

func TestLinksAndSessionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyring{life: time.Hour, max: 4}
		var all []string
		for range 10 {
			all = append(all, k.issue())
			time.Sleep(time.Second)
		}
		for i, s := range all {
			if k.has(s) != (i >= 6) {
				t.Errorf("key %d is good: %v; the oldest should go", i, k.has(s))
			}
		}
		time.Sleep(time.Hour)
		k.issue()
		if len(k.keys) != 1 {
			t.Errorf("%d kept, want the new one alone", len(k.keys))
		}
	})
}

func TestTheProofTellsNothingButThatTheTokenIsKnown(t *testing.T) {
	token, nonce := newSecret(), newSecret()
	p := prove(token, nonce)
	if p != prove(token, nonce) || p == prove(newSecret(), nonce) || p == prove(token, newSecret()) || strings.Contains(p, token) {
		t.Error("the proof does not depend on token and nonce alone")
	}
}

func FuzzTokenFile(f *testing.F) {
	for _, s := range []string{newSecret() + "\n", newSecret(), "", "\n", "short", newSecret() + "\r\n", strings.Repeat("A", 43), strings.Repeat("_", 43)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		token, ok := parseToken(b)
		if ok != (token != "") || ok && (len(token) != 43 || !strings.HasPrefix(string(b), token)) {
			t.Fatalf("%q gave %q, %v", b, token, ok)
		}
	})
}

func FuzzWhoMayEnter(f *testing.F) {
	token := strings.Repeat("A", 43)
	f.Add("Bearer "+token, "", "localhost", "")
	f.Add("bearer "+token[1:], "mainstay_session_1=x", "127.0.0.1:1", "http://127.0.0.1:1")
	f.Add("", "mainstay_session_1="+token, "[::1", "null")
	f.Add("Bearer", ";;=;", "\xff", "http://[::1")
	s := &Server{host: "127.0.0.1"}
	f.Fuzz(func(t *testing.T, authorization, cookie, host, origin string) {
		a := newAccess(token, "1")
		r := httptest.NewRequest("POST", "/", nil)
		r.Host = host
		r.Header = http.Header{"Authorization": {authorization}, "Cookie": {cookie}, "Origin": {origin}}
		if a.who(r) != nobody && !strings.HasSuffix(authorization, token) {
			t.Fatalf("%q and %q let in", authorization, cookie)
		}
		if origin != "" && sameOrigin(r) && !strings.HasSuffix(strings.ToLower(origin), strings.ToLower(host)) && !strings.Contains(origin, "/") {
			t.Fatalf("origin %q passes for host %q", origin, host)
		}
		if s.meantForUs(host) && strings.Contains(host, "evil") {
			t.Fatalf("host %q passes", host)
		}
	})
}

func FuzzHide(f *testing.F) {
	f.Add("postgres://u:p@h/db", "x")
	f.Add("a://b:c@d e://f:g@h sk-ant-api03-abc", "://")
	f.Fuzz(func(t *testing.T, before, after string) {
		const canary = "c4n4ry"
		if strings.ContainsAny(before+after, "c4") {
			return
		}
		if got := hide(before + " postgres://user:" + canary + "@host " + after); strings.Contains(got, canary) {
			t.Fatalf("%q shows", got)
		}
	})
}
