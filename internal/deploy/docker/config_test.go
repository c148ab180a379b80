package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/internal/containers"
	"mainstay.dev/mainstay/internal/setting"
)

func TestEachVariableIsThereOnceAndTheNarrowerCounts(t *testing.T) {
	c := Config{Env: map[string]setting.Secret{"A": "file", "B": "file", "PORT": "file"}}
	env := environ(&c, deploy.Spec{Env: []string{"B=color", "C=color", "C=release", "PORT=1", "=odd"}}, 4711)
	if diff := cmp.Diff([]string{"A=file", "B=color", "C=release", "PORT=4711"}, env); diff != "" {
		t.Error(diff)
	}
}

func TestTheAccountIsShownToItsRegistryAlone(t *testing.T) {
	r := containers.Registry{Server: "ghcr.io", Username: "bot", Password: "hunter2"}
	for name, shown := range map[string]bool{"ghcr.io/acme/app:1": true, "acme/app": false, "evil.io/ghcr.io/app": false, "ghcr.io.evil.io/app": false} {
		if auth, err := account(r, name); err != nil || (auth != "") != shown {
			t.Errorf("%s: %q, %v", name, auth, err)
		}
	}
	if auth, err := account(containers.Registry{Server: "docker.io", Username: "bot", Password: "x"}, "acme/app"); err != nil || auth == "" {
		t.Errorf("docker.io: %q, %v", auth, err)
	}
}

func TestWhatCannotChangeLiveIsNamed(t *testing.T) {
	var c Config
	c.SetDefaults()
	c.Engine = "unix:///var/run/docker.sock"
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
	if _, err := d.Prepare(Config{Engine: "unix:///var/run/docker.sock"}); err == nil {
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

func TestNewNamesEveryMistake(t *testing.T) {
	t.Setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
	_, err := New(Options{Config: Config{Pull: "no", PullTimeout: 1, Network: "bridge"}, Image: "UPPER", Dir: t.TempDir()})
	var paths []string
	for _, p := range setting.Of(err) {
		paths = append(paths, p.Path)
	}
	if diff := cmp.Diff([]string{"docker.pull", "docker.engine", "image"}, paths); diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}
