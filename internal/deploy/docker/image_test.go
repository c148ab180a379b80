package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/deploytest"
	"mainstay.dev/mainstay/internal/deploy/internal/containers"
	"mainstay.dev/mainstay/internal/setting"
)

// A hub is a registry with one image of many versions, as the OCI distribution
// specification wants it: manifests by tag or digest, blobs by digest. The Engine
// trusts one on 127.0.0.1 without TLS.
type hub struct {
	*httptest.Server
	account string // user:password; empty: everybody may pull

	mu    sync.Mutex
	blobs map[string][]byte
	tags  map[string]string // to the digest of a manifest
	pulls int               // manifests that were asked for
	stall chan struct{}     // if not nil, answers wait for its close
}

func newHub(t *testing.T) *hub {
	h := &hub{blobs: map[string][]byte{}, tags: map[string]string{}}
	h.Server = httptest.NewServer(http.HandlerFunc(h.serve))
	t.Cleanup(h.Close)
	return h
}

func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	if user, password, _ := r.BasicAuth(); h.account != "" && user+":"+password != h.account {
		w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`, http.StatusUnauthorized)
		return
	}
	h.mu.Lock()
	stall := h.stall
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	manifest := strings.Contains(r.URL.Path, "/manifests/")
	if digest, ok := h.tags[name]; ok && manifest {
		name = digest
	}
	b, ok := h.blobs[name]
	if manifest && r.Method == http.MethodGet {
		h.pulls++
	}
	h.mu.Unlock()
	if stall != nil {
		select {
		case <-stall:
		case <-r.Context().Done():
		}
	}
	switch {
	case r.URL.Path == "/v2/":
		return
	case !ok:
		http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`, http.StatusNotFound)
		return
	case manifest:
		w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
		w.Header().Set("Docker-Content-Digest", name)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (h *hub) put(b []byte) (digest string) {
	digest = fmt.Sprintf("sha256:%x", sha256.Sum256(b))
	h.blobs[digest] = b
	return digest
}

// push makes a version of the image, whose app answers with color.
func (h *hub) push(t *testing.T, e *engine, tag, color string) (name string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	binary, err := os.ReadFile(e.dir + "/app")
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err = w.WriteHeader(&tar.Header{Name: "app", Mode: 0o755, Size: int64(len(binary))})
	if err == nil {
		_, err = w.Write(binary)
	}
	if err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	words := append([]string{"/app"}, deploytest.App("serve")[1:]...)
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Cmd": words, "Env": []string{"LISTEN_HOST=0.0.0.0", "COLOR=" + color}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	part := func(kind string, b []byte) map[string]any {
		return map[string]any{"mediaType": "application/vnd.docker." + kind, "size": len(b), "digest": h.put(b)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
		"config": part("container.image.v1+json", config),
		"layers": []any{part("image.rootfs.diff.tar", layer.Bytes())},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.tags[tag] = h.put(manifest)
	return h.name(tag)
}

func (h *hub) name(tag string) string {
	return strings.TrimPrefix(h.URL, "http://") + "/acme/app:" + tag
}

func (h *hub) asked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pulls
}

// answer starts a copy of an image, and returns what it answers.
func answer(t *testing.T, d *Driver, image string) string {
	t.Helper()
	in, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1", Color: "blue", Image: image})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Stop(context.Background(), 0)
	return strings.Fields(deploytest.Ask(t, in))[1]
}

func TestAnImageIsPulledAsThePolicySays(t *testing.T) {
	e, h := need(t), newHub(t)
	name := h.push(t, e, "latest", "one")
	with := func(p containers.Policy) *Driver {
		d, _ := e.driver(t, t.TempDir(), func(o *Options) { o.Config.Pull = p })
		return d
	}
	missing := with(containers.PullMissing)
	if got := answer(t, missing, name); got != "one" {
		t.Errorf("missing, not here: %s", got)
	}
	h.push(t, e, "latest", "two")
	before := h.asked()
	if got := answer(t, missing, name); got != "one" {
		t.Errorf("missing, here: %s", got)
	}
	if got := answer(t, with(containers.PullNever), name); got != "one" || h.asked() != before {
		t.Errorf("never: %s, %d pulls", got, h.asked()-before)
	}
	if got := answer(t, with(containers.PullAlways), name); got != "two" || h.asked() == before {
		t.Errorf("always: %s, %d pulls", got, h.asked()-before)
	}
}

func TestAResolvedImageStaysTheSameThoughItsTagMoves(t *testing.T) {
	e, h := need(t), newHub(t)
	name := h.push(t, e, "latest", "one")
	d, _ := e.driver(t, t.TempDir(), func(o *Options) { o.Config.Pull = containers.PullAlways })
	pinned, err := d.Resolve(t.Context(), name)
	if err != nil || !strings.Contains(pinned, "/acme/app@sha256:") {
		t.Fatalf("%s, %v", pinned, err)
	}
	h.push(t, e, "latest", "two")
	before := h.asked()
	if got := answer(t, d, pinned); got != "one" || h.asked() != before {
		t.Errorf("answered %s after %d pulls", got, h.asked()-before)
	}
	if _, err := e.cli.ImageRemove(t.Context(), pinned, client.ImageRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got := answer(t, d, pinned); got != "one" { // the registry has it still
		t.Errorf("answered %s", got)
	}
	local, err := d.Resolve(t.Context(), pinned)
	if err != nil || local != pinned {
		t.Errorf("resolved again: %s, %v", local, err)
	}
	built, _ := e.driver(t, t.TempDir(), nil)
	id, err := built.Resolve(t.Context(), testImage) // no registry has given it a digest
	if err != nil || !containers.IsID(id) {
		t.Errorf("built here: %s, %v", id, err)
	}
	if again, err := built.Resolve(t.Context(), id); err != nil || again != id {
		t.Errorf("by its id: %s, %v", again, err)
	}
}

func TestAPrivateImageIsPulledWithTheAccount(t *testing.T) {
	e, h := need(t), newHub(t)
	h.account = "bot:hunter2"
	name := h.push(t, e, "1", "one")
	server := strings.TrimPrefix(h.URL, "http://")
	d, j := e.driver(t, t.TempDir(), func(o *Options) {
		o.Config.Registry = containers.Registry{Server: server, Username: "bot", Password: "hunter2"}
	})
	if got := answer(t, d, name); got != "one" {
		t.Errorf("answered %s", got)
	}
	if strings.Contains(j.String(), "hunter2") {
		t.Error("the password is in the log")
	}
	for want, account := range map[string]containers.Registry{
		"or give app.docker.registry an account": {},
		"; check its name":                       {Server: server, Username: "bot", Password: setting.Secret("wrong-secret")},
	} {
		d, _ := e.driver(t, t.TempDir(), func(o *Options) { o.Config.Registry, o.Config.Pull = account, containers.PullAlways })
		_, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1", Image: name})
		if err == nil || !strings.Contains(err.Error(), "pull "+name) || !strings.HasSuffix(err.Error(), want) || strings.Contains(err.Error(), "wrong-secret") {
			t.Errorf("got %v", err)
		}
	}
}

func TestAPullThatDoesNotEndIsGivenUp(t *testing.T) {
	e, h := need(t), newHub(t)
	h.stall = make(chan struct{})
	defer close(h.stall)
	d, _ := e.driver(t, t.TempDir(), func(o *Options) { o.Config.PullTimeout = 100 * time.Millisecond })
	_, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1", Image: h.name("1")})
	if err == nil || !strings.Contains(err.Error(), "not done within 100ms; try a longer app.docker.pull_timeout") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(fmt.Errorf("mainstay stops")) })
	d, _ = e.driver(t, t.TempDir(), nil)
	if _, err := d.Start(ctx, deploy.Spec{ID: "blue-1", Image: h.name("1")}); err == nil || !strings.HasSuffix(err.Error(), "mainstay stops") {
		t.Errorf("got %v", err)
	}
}

func TestAnImageThatNobodyHasIsNamed(t *testing.T) {
	e, h := need(t), newHub(t)
	d, _ := e.driver(t, t.TempDir(), nil)
	_, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1", Image: h.name("none")})
	if err == nil || !strings.Contains(err.Error(), "pull "+h.name("none")+": ") || !strings.Contains(err.Error(), "check its name") {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}
