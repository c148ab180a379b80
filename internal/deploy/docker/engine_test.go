package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy/deploytest"
)

// testImage runs what a test asks for; without a command it serves.
const testImage = "mainstay.test/app:1"

// theEngine is started once for all tests and ended after them.
var theEngine = engine{}

func TestMain(m *testing.M) {
	superviseIfTold()
	code := m.Run()
	theEngine.stop()
	os.Exit(code)
}

// An engine is a Docker Engine of the tests' own.
type engine struct {
	once sync.Once
	dir  string // short: a socket's path may have 107 bytes
	at   string
	cli  *client.Client
	err  error
	flag []string
}

// need returns an Engine with testImage, or skips the test and says why.
func need(t *testing.T) *engine {
	t.Helper()
	theEngine.once.Do(theEngine.start)
	if theEngine.err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(theEngine.err)
		}
		t.Skip("a Docker Engine of the test's own is needed:", theEngine.err)
	}
	return &theEngine
}

func (e *engine) start() {
	if os.Geteuid() != 0 {
		e.err = fmt.Errorf("it can be started by root alone")
		return
	}
	if e.dir, e.err = os.MkdirTemp("", "msd"); e.err != nil {
		return
	}
	if e.err = e.up(); e.err != nil {
		return
	}
	if e.cli, e.err = client.New(client.WithHost(e.at)); e.err == nil {
		e.err = e.build()
	}
}

// up starts the Engine, also again after it was ended by a signal.
func (e *engine) up() error {
	cmd := exec.Command("../../../scripts/docker.sh", append([]string{"start", e.dir}, e.flag...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", bytes.TrimSpace(said.Bytes()), err)
	}
	e.at = strings.TrimSpace(string(out))
	return nil
}

func (e *engine) stop() {
	if e.dir == "" {
		return
	}
	if out, err := exec.Command("../../../scripts/docker.sh", "stop", e.dir).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "the Engine in %s could not be stopped: %v: %s\n", e.dir, err, out)
	}
	os.RemoveAll(e.dir)
}

// build makes testImage, FROM scratch, with the app where the command of
// deploytest.App expects it.
func (e *engine) build() error {
	app := filepath.Join(e.dir, "app")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", app, "./testdata/app")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the app: %w: %s", err, out)
	}
	binary, err := os.ReadFile(app)
	if err != nil {
		return err
	}
	at := deploytest.App("serve")
	dockerfile := fmt.Sprintf("FROM scratch\nCOPY app %s\nENV LISTEN_HOST=0.0.0.0 FROM_IMAGE=yes\nCMD [%q, %q, %q]\n", at[0], at[0], at[1], at[2])
	return e.buildImage(testImage, map[string][]byte{"Dockerfile": []byte(dockerfile), "app": binary})
}

func (e *engine) buildImage(name string, files map[string][]byte) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	resp, err := e.cli.ImageBuild(context.Background(), &b, client.ImageBuildOptions{Tags: []string{name}, Remove: true})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err == nil && bytes.Contains(said, []byte("errorDetail")) {
		err = fmt.Errorf("build %s: %s", name, said)
	}
	return err
}

// journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// driver makes a driver for the state folder dir, as change wants it configured.
func (e *engine) driver(t *testing.T, dir string, change func(*Options)) (*Driver, *journal) {
	t.Helper()
	var j journal
	o := Options{Image: testImage, Service: "unite hub", Dir: dir, Log: slog.New(slog.NewTextHandler(&j, nil))}
	o.Config.SetDefaults()
	o.Config.Engine = e.at
	if change != nil {
		change(&o)
	}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := e.containers(t, d); len(left) != 0 {
			t.Errorf("containers are left: %v", left)
			d.held = map[string]int{}
			_ = d.Sweep(context.Background())
		}
	})
	return d, &j
}

// containers lists those of d's state folder, whatever their state.
func (e *engine) containers(t *testing.T, d *Driver) (names []string) {
	t.Helper()
	list, err := e.cli.ContainerList(context.Background(), client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", labelOwner+"="+d.owner)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Items {
		names = append(names, c.Names[0]+" "+string(c.State))
	}
	return names
}
