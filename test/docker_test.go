package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// engine starts a Docker Engine of our own and puts an image of the test app into
// it, built FROM scratch.
func engine(t *testing.T) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mse-*") // short: a socket's path may have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("../scripts/docker.sh", "start", dir).Output()
	if err != nil {
		os.RemoveAll(dir)
		if os.Getenv("CI") == "true" {
			t.Fatalf("no Docker Engine can run here: %v", err)
		}
		t.Skipf("no Docker Engine can run here: %v", err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("../scripts/docker.sh", "stop", dir).CombinedOutput(); err != nil {
			t.Errorf("stop the engine: %v\n%s", err, out)
		}
		os.RemoveAll(dir)
	})
	socket = strings.TrimSpace(string(out))
	image := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(image, "testapp"), "./testapp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, tag := range []string{"v1", "v2"} {
		text := "FROM scratch\nCOPY testapp /testapp\nENV VERSION=" + tag + " HOST=0.0.0.0\nENTRYPOINT [\"/testapp\"]\n"
		if err := os.WriteFile(filepath.Join(image, "Dockerfile"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("docker", "-H", socket, "build", "-q", "-t", "acme/app:"+tag, image)
		cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the image: %v\n%s", err, out)
		}
	}
	return socket
}

func TestContainersAreDeployedAndRolledBackLikeProcesses(t *testing.T) {
	socket := engine(t)
	m := setup(t, "")
	text, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "app:\n", "app:\n  image: acme/app:v1\n  docker: {engine: \""+socket+"\", pull: never}\n", 1))
	if err := os.WriteFile(m.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	version := func(want string) {
		t.Helper()
		if status, _, got := m.get("/version"); status != 200 || got != want {
			t.Errorf("%d %q, want %q", status, got, want)
		}
	}
	version("v1")
	if code, out := m.verb("deploy", "--image", "acme/app:v2", "--version", "v2-test"); code != 0 {
		t.Fatalf("deploy: %d\n%s", code, out)
	}
	version("v2")
	if code, out := m.verb("rollback", "--why", "test"); code != 0 {
		t.Fatalf("rollback: %d\n%s", code, out)
	}
	version("v1")
	if code, out := m.verb("history"); code != 0 || !strings.Contains(out, "v2-test") {
		t.Errorf("history: %d\n%s", code, out)
	}
}
