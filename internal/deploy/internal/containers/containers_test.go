package containers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
}

func TestAnEngineElsewhereIsRefusedWhoeverNamedIt(t *testing.T) {
	t.Setenv("DOCKER_HOST", "ssh://build@10.0.0.1")
	c := Config{}
	c.SetDefaults()
	var ps setting.Problems
	c.Validate(&ps)
	if _, err := c.Socket(); len(ps) != 0 || err == nil || !strings.Contains(err.Error(), `"ssh://build@10.0.0.1" is not a socket of this machine`) {
		t.Errorf("%v, %v", ps, err)
	}
	t.Setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
	if at, err := c.Socket(); at != "unix:///run/user/1000/docker.sock" || err != nil {
		t.Errorf("%s, %v", at, err)
	}
	t.Setenv("DOCKER_HOST", "")
	if at, err := c.Socket(); at != defaultEngine || err != nil {
		t.Errorf("%s, %v", at, err)
	}
}
