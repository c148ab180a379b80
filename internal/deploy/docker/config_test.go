package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/setting"
)

func defaults(change func(*Config)) Config {
	var c Config
	c.SetDefaults()
	c.Engine = defaultEngine
	change(&c)
	return c
}

func TestTheDefaultsHaveNoMistake(t *testing.T) {
	var ps setting.Problems
	defaults(func(*Config) {}).Validate(&ps)
	if err := ps.Err(); err != nil {
		t.Error(err)
	}
}

func TestEveryMistakeIsNamedWithItsMend(t *testing.T) {
	for want, change := range map[string]func(*Config){
		`engine: "tcp://10.0.0.1:2375" is not a socket of this machine; write it as unix:///var/run/docker.sock`: func(c *Config) { c.Engine = "tcp://10.0.0.1:2375" },
		`pull: "sometimes" is no policy`:                                   func(c *Config) { c.Pull = "sometimes" },
		`pull_timeout: must be positive`:                                   func(c *Config) { c.PullTimeout = 0 },
		`registry: needs server, username and password`:                    func(c *Config) { c.Registry.Username = "bot" },
		`registry.server: must be a host alone`:                            func(c *Config) { c.Registry = Registry{"https://ghcr.io", "bot", "x"} },
		`port: must be between 1 and 65535`:                                func(c *Config) { c.Port = 70000 },
		`port: cannot be fixed on the network host`:                        func(c *Config) { c.Port, c.Network = 3000, "host" },
		`network: nobody could reach the app on the network "none"`:        func(c *Config) { c.Network = "none" },
		`network: nobody could reach the app on the network "container:x"`: func(c *Config) { c.Network = "container:x" },
		`memory: must be at least 6MiB, or 0 for no limit; try 512MB`:      func(c *Config) { c.Memory = 1 << 20 },
		`cpus: must be at least 0.01`:                                      func(c *Config) { c.CPUs = -1 },
		`processes: must not be negative`:                                  func(c *Config) { c.Processes = -1 },
		`env: "A B" is no name of a variable`:                              func(c *Config) { c.Env = map[string]setting.Secret{"A B": "x"} },
		`mounts[0].source: is missing`:                                     func(c *Config) { c.Mounts = []Mount{{Target: "/data"}} },
		`mounts[1].source: must be an absolute path or the name of`: func(c *Config) {
			c.Mounts = []Mount{{Source: "/srv", Target: "/srv"}, {Source: "./here", Target: "/data"}}
		},
		`mounts[0].target: must be an absolute path other than /`: func(c *Config) { c.Mounts = []Mount{{Source: "data", Target: "/"}} },
	} {
		var ps setting.Problems
		defaults(change).Validate(&ps)
		if len(ps) != 1 || !strings.HasPrefix(ps[0].Error(), want) || ps[0].Mend == "" {
			t.Errorf("want %s, got %v", want, ps)
		}
	}
}

func TestNoMountShowsTheSocketToTheApp(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "run"), 0o700),
		os.WriteFile(filepath.Join(dir, "run", "d.sock"), nil, 0o600),
		os.Symlink(filepath.Join(dir, "run"), link),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for source, refused := range map[string]bool{
		dir + "/run/d.sock":     true,
		dir + "/run":            true,
		dir + "/run/../run/":    true,
		dir:                     true,
		"/":                     true,
		link:                    true,
		link + "/d.sock":        true,
		dir + "/run/other.sock": false,
		dir + "/ru":             false,
		"run":                   false, // a volume
	} {
		for _, engine := range []string{"unix://" + dir + "/run/d.sock", "unix://" + link + "/d.sock"} {
			var ps setting.Problems
			defaults(func(c *Config) {
				c.Engine, c.Mounts = engine, []Mount{{Source: source, Target: "/data"}}
			}).Validate(&ps)
			if (len(ps) == 1) != refused {
				t.Errorf("%s with the Engine at %s: %v", source, engine, ps)
			}
		}
	}
}

func TestAnAddressIsCalledWhatAContainerCanReach(t *testing.T) {
	for _, c := range []struct {
		network, address, want string
		reached                bool
	}{
		{"host", "127.0.0.1:6432", "127.0.0.1:6432", true},
		{"bridge", "127.0.0.1:6432", "", false},
		{"bridge", "[::1]:6432", "", false},
		{"bridge", "localhost:6432", "", false},
		{"bridge", "nonsense", "", false},
		{"bridge", "172.17.0.1:6432", "host.docker.internal:6432", true},
		{"bridge", ":6432", "host.docker.internal:6432", true},
		{"mynet", "0.0.0.0:6432", "host.docker.internal:6432", true},
		{"bridge", "db.internal:6432", "db.internal:6432", true},
	} {
		if got, ok := (Config{Network: c.network}).Reach(c.address); got != c.want || ok != c.reached {
			t.Errorf("%s on %s: %q, %v", c.address, c.network, got, ok)
		}
	}
}

func TestTheNameOfAnImageIsChecked(t *testing.T) {
	for name, good := range map[string]bool{
		"app": true, "ghcr.io/acme/app:1.4": true, "app@sha256:" + strings.Repeat("a", 64): true, "sha256:" + strings.Repeat("a", 64): true,
		"": false, "App": false, "a b": false, "https://ghcr.io/app": false,
	} {
		if err := CheckImage(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
	c := defaults(func(c *Config) { c.Pull = "no" })
	if _, err := New(Options{Config: c, Image: "UPPER", Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "image: is not the name") || !strings.Contains(err.Error(), "docker.pull:") {
		t.Errorf("got %v", err)
	}
}

func TestEachVariableIsThereOnceAndTheNarrowerCounts(t *testing.T) {
	c := Config{Env: map[string]setting.Secret{"A": "file", "B": "file", "PORT": "file"}}
	env := c.environ(deploy.Spec{Env: []string{"B=color", "C=color", "C=release", "PORT=1", "=odd"}}, 4711)
	if diff := cmp.Diff([]string{"A=file", "B=color", "C=release", "PORT=4711"}, env); diff != "" {
		t.Error(diff)
	}
}

func TestTheAccountIsShownToItsRegistryAlone(t *testing.T) {
	r := Registry{"ghcr.io", "bot", "hunter2"}
	for name, shown := range map[string]bool{"ghcr.io/acme/app:1": true, "acme/app": false, "evil.io/ghcr.io/app": false, "ghcr.io.evil.io/app": false} {
		if auth, err := r.account(name); err != nil || (auth != "") != shown {
			t.Errorf("%s: %q, %v", name, auth, err)
		}
	}
	if auth, err := (Registry{"docker.io", "bot", "x"}).account("acme/app"); err != nil || auth == "" {
		t.Errorf("docker.io: %q, %v", auth, err)
	}
}

func TestWhatCannotChangeLiveIsNamed(t *testing.T) {
	c := defaults(func(*Config) {})
	d, err := New(Options{Config: c, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	c.Memory = 1 << 30
	commit, err := d.Prepare(c)
	if err != nil || d.policy.Load().Memory != 0 {
		t.Fatalf("%v, or changed before commit", err)
	}
	commit()
	if d.policy.Load().Memory != 1<<30 {
		t.Error("not changed")
	}
	c.Engine = "unix:///elsewhere.sock"
	if _, err := d.Prepare(c); err == nil || err.Error() != "docker.engine: cannot change while Mainstay runs; restart it" {
		t.Errorf("got %v", err)
	}
	if _, err := d.Prepare(Config{Engine: defaultEngine}); err == nil {
		t.Error("mistakes passed")
	}
}

func TestADamagedOwnerFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	first, err := ownerOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ownerOf(dir); err != nil || again != first {
		t.Errorf("%q, then %q, %v", first, again, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "docker-owner"), []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ownerOf(dir); err == nil || !strings.Contains(err.Error(), "is damaged; remove it") {
		t.Errorf("got %v", err)
	}
}
