package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// rewrite replaces a file as one should.
func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func hashed(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

func TestKeysOfAFileComeAndGoWithoutAReload(t *testing.T) {
	const one, two, own = "the first key of the file", "the second key of the file", "the key of the configuration"
	path := filepath.Join(t.TempDir(), "keys")
	rewrite(t, path, "# customers\nacme-ci "+hashed(one)+" workspace=acme tier=pro\n")
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, config(func(c *Config) {
			c.KeysFile, c.Keys = path, map[string]Key{"own": {SHA256: hashed(own), Tier: "enterprise"}}
		}), nil)
		who := func(key string) string {
			w := d.Resolve(t.Context(), &Request{Peer: netip.MustParseAddr("192.0.2.1"), Header: func(name string) string {
				if strings.EqualFold(name, "x-api-key") {
					return key
				}
				return ""
			}})
			return fmt.Sprint(w.User, " ", w.Workspace, " ", w.Tier, " ", w.Refused)
		}
		look := func(when string, want [3]string) {
			t.Helper()
			for i, key := range []string{one, two, own} {
				if got := who(key); got != want[i] {
					t.Errorf("%s: key %d is %q, want %q", when, i, got, want[i])
				}
			}
		}
		mine, nobody := "key:own  enterprise ", "   "+string(UnknownAPI)
		look("at first", [3]string{"key:acme-ci acme pro ", nobody, mine})
		rewrite(t, path, "acme-cd "+hashed(two)+" user=bot\n")
		time.Sleep(2 * watchLook)
		look("rotated", [3]string{nobody, "bot   ", mine})
		for _, bad := range []string{"acme-ci abc\n", "a " + strings.Repeat("ab", 33), "a " + hashed(one) + "\na " + hashed(two), "a " + hashed(one) + "\nb " + hashed(one), "a " + hashed(one) + " role=admin", "a"} {
			rewrite(t, path, bad)
			time.Sleep(2 * watchLook)
			look("with a mistake", [3]string{nobody, "bot   ", mine})
		}
		rewrite(t, path, "")
		time.Sleep(2 * watchLook)
		look("emptied", [3]string{nobody, nobody, mine})
	})
}

func TestTrustedProxiesOfAFileAreTakenOverWithoutAReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ranges")
	rewrite(t, path, "173.245.48.0/20\n2400:cb00::/32 # not a comment\n")
	var ps setting.Problems
	if openWatched(&ps, "proxies_file", path, "proxies", "The file", "mend it", readRanges); len(ps) != 1 || !strings.Contains(ps.Error(), "line 2") {
		t.Errorf("%v", ps)
	}
	rewrite(t, path, "173.245.48.0/20\n2400:cb00::/32 2606:4700::/32\n")
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, config(func(c *Config) { c.ProxiesFile = path; c.User = "header:X-User" }), nil)
		client := func(peer string) string {
			w := d.Resolve(t.Context(), &Request{Peer: netip.MustParseAddr(peer), Header: func(name string) string {
				return map[string]string{"X-Forwarded-For": "203.0.113.9", "X-User": "ann"}[name]
			}})
			return w.Address.String() + " " + w.User
		}
		if got := client("173.245.48.7"); got != "203.0.113.9 ann" {
			t.Errorf("a peer of the file: %s", got)
		}
		if got := client("2606:4700::1"); got != "203.0.113.9 ann" {
			t.Errorf("a peer of the file: %s", got)
		}
		if got := client("198.51.100.7"); got != "198.51.100.7 " {
			t.Errorf("a stranger: %s", got)
		}
		rewrite(t, path, "198.51.100.0/24\n")
		time.Sleep(2 * watchLook)
		if got := client("198.51.100.7"); got != "203.0.113.9 ann" {
			t.Errorf("a peer of the new file: %s", got)
		}
		for _, bad := range []string{"0.0.0.0/0", "::/0", "everybody", strings.Repeat("10.0.0.1\n", maxRanges+1)} {
			rewrite(t, path, bad)
			time.Sleep(2 * watchLook)
			if got := client("173.245.48.7"); got != "173.245.48.7 " {
				t.Errorf("a peer of the old file after %.20q: %s", bad, got)
			}
		}
	})
}

func TestAFileThatEverybodyMayWriteIsNotBelieved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	rewrite(t, path, "a "+hashed("a key of twenty characters")+"\n")
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Compile(config(func(c *Config) { c.KeysFile = path })); err == nil || !strings.Contains(err.Error(), "everybody") {
		t.Errorf("got %v", err)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte("acme-ci " + hashed("x") + " workspace=acme tier=pro\n"))
	f.Add([]byte("10.0.0.0/8 ::1\n# no\nuser:7 pro\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if keys, err := readKeys(strings.NewReader(string(text))); err == nil {
			for _, k := range *keys {
				if !validID(k.name) || !validID(k.User) {
					t.Errorf("%+v", k)
				}
			}
		}
		if ranges, err := readRanges(strings.NewReader(string(text))); err == nil {
			for _, p := range *ranges {
				if !p.IsValid() || p.Bits() == 0 {
					t.Errorf("%v", p)
				}
			}
		}
		_, _ = readTiers(strings.NewReader(string(text)))
	})
}
