// Package docker runs copies of the app as containers of the Docker Engine on this
// machine. The Engine's API has been stable in what is used here since 20.10 (API
// 1.41), the oldest that is tested.
//
// A copy outlives a kill -9 of Mainstay: it is the Engine's child. By its
// container's id and labels the next Mainstay finds it again ([Driver.Adopt]); what
// nobody takes back is removed ([Driver.Sweep]). A container that has ended is
// removed too, once its last output has been read: restarts are deploy's business.
//
// Whoever may write to the Engine's socket is as good as root on its machine. So
// Mainstay needs that right, and never hands it on: a mount that would show the
// socket to the app is refused.
//
// Only app imports it.
package docker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/internal/containers"
	"mainstay.dev/mainstay/internal/deploy/internal/sockets"
	"mainstay.dev/mainstay/internal/setting"
)

// Config is the app.docker section: how the containers are run.
type Config = containers.Config

// Options says where and how copies are run.
type Options struct {
	Config  Config
	Image   string // app.image: what to run where a Spec names no image
	Service string // a label of the containers
	// Dir is the state folder. It holds the file docker-owner, by which the
	// containers of this Mainstay are told from those of another.
	Dir string
	// Log gets every line that a copy writes, as message "app". Required.
	Log *slog.Logger
	// Lines, if it is not nil, gets the color and the level of every line.
	Lines func(color string, level slog.Level)
}

// callTimeout bounds every call of the Engine but pulls and those that stream.
const callTimeout = 30 * time.Second

// Driver is a deploy.Driver. Its methods may be called from several goroutines at
// once.
type Driver struct {
	engine *client.Client
	at     string // where the Engine listens
	policy atomic.Pointer[Config]
	byFile string // app.image

	service string
	owner   string
	log     *slog.Logger
	lines   func(color string, level slog.Level)
	ports   sockets.Ports

	mu   sync.Mutex
	held map[string]int // containers that this life started or adopted, by name
}

var _ deploy.Driver = (*Driver)(nil)

// New checks o and finds out who owns the state folder; it does not talk to the
// Engine yet. The account in o.Config is shown to its registry alone.
func New(o Options) (*Driver, error) {
	d := &Driver{service: o.Service, byFile: o.Image, log: o.Log, lines: o.Lines, held: map[string]int{}}
	var err error
	if d.at, err = compile(o.Config, o.Image); err != nil {
		return nil, err
	}
	d.policy.Store(&o.Config)
	if d.owner, err = ownerOf(o.Dir); err != nil {
		return nil, err
	}
	if d.engine, err = client.New(client.WithHost(d.at)); err != nil {
		return nil, fmt.Errorf("prepare to talk to the Docker Engine at %s: %w", d.at, err)
	}
	return d, nil
}

// compile reports every mistake, with paths relative to the app section, or where
// the Engine listens.
func compile(c Config, image string) (socket string, err error) {
	var ps, below setting.Problems
	c.Validate(&below)
	if socket, err = c.Socket(); err != nil && c.Engine == "" {
		below = append(below, setting.Of(err)...) // what DOCKER_HOST says
	}
	ps.Below("docker", below)
	if image != "" {
		if err := containers.CheckImage(image); err != nil {
			ps.Add("image", err.Error(), "write it as ghcr.io/acme/app:1.4")
		}
	}
	return socket, ps.Err()
}

// Prepare checks what a copy that is started from now on would be run with;
// nothing changes before commit. The Engine cannot be changed for another.
// Problems have paths relative to the app section.
func (d *Driver) Prepare(c Config) (commit func(), err error) {
	at, err := compile(c, "")
	if err != nil {
		return nil, err
	}
	if at != d.at {
		return nil, setting.Problem{Path: "docker.engine", What: "cannot change while Mainstay runs", Mend: "restart it"}
	}
	return func() { d.policy.Store(&c) }, nil
}

// ownerOf reads or makes the file that names the state folder for good.
func ownerOf(dir string) (string, error) {
	path := filepath.Join(dir, "docker-owner")
	b, err := os.ReadFile(path)
	if err == nil {
		id := strings.TrimSpace(string(b))
		if raw, herr := hex.DecodeString(id); herr != nil || len(raw) != 16 {
			return "", fmt.Errorf("%s is damaged; remove it, and the containers labelled %s that nobody uses any more", path, labelOwner)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read whose containers are ours: %w", err)
	}
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails
	id := hex.EncodeToString(raw)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("note whose containers are ours: %w", err)
	}
	// A half-written file is refused at the next start, with the mend; nothing
	// has been started by then.
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("note whose containers are ours: %w", err)
	}
	return id, nil
}

// Start starts a copy, pulling its image first if it must; ctx ends a pull.
func (d *Driver) Start(ctx context.Context, s deploy.Spec) (deploy.Instance, error) {
	if s.Image == "" {
		s.Image = d.byFile
	}
	c := d.policy.Load()
	image, err := d.image(ctx, c, s.Image)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.ID, err)
	}
	name := d.name(s.ID)
	d.hold(name)
	var i *instance
	for range 5 { // between our look at a port and the Engine's use of it another may take it
		if i, err = d.launch(ctx, c, s, image.ID); !errors.Is(err, errPortTaken) {
			break
		}
	}
	if err != nil {
		d.release(name)
		return nil, fmt.Errorf("start %s (%s): %w", s.ID, s.Image, err)
	}
	return i, nil
}

func (d *Driver) launch(ctx context.Context, c *Config, s deploy.Spec, image string) (*instance, error) {
	port, err := d.ports.Claim()
	if err != nil {
		return nil, err
	}
	i, err := d.run(ctx, d.options(c, s, image, port))
	if err != nil {
		d.ports.Release(port)
		return nil, mend(err, s, c)
	}
	i.spec, i.where.Port, i.where.Inner, i.where.Shared = s, port, inner(c, port), c.Shared()
	i.begin()
	return i, nil
}

// run makes a container and starts it, or leaves nothing behind. Once the Engine
// has been asked to make it, ctx no longer cuts in: only an answer tells what there
// is to remove.
func (d *Driver) run(ctx context.Context, o client.ContainerCreateOptions) (*instance, error) {
	whole := context.WithoutCancel(ctx)
	id, err := d.create(whole, o)
	if err != nil {
		return nil, d.unreachable(err)
	}
	err = ctx.Err()
	if err == nil {
		call, cancel := context.WithTimeout(whole, 2*callTimeout)
		_, err = d.engine.ContainerStart(call, id, client.ContainerStartOptions{})
		cancel()
	}
	var i *instance
	if err == nil {
		i, err = d.look(whole, id)
	}
	if err != nil {
		if rerr := d.remove(whole, id); rerr != nil {
			err = fmt.Errorf("%w (and its container %s could not be removed: %w)", err, id[:12], rerr)
		}
		return nil, d.unreachable(err)
	}
	return i, nil
}

// create makes the container. One of the same name that carries our labels is left
// over from a life that was killed before it could write it down.
func (d *Driver) create(ctx context.Context, o client.ContainerCreateOptions) (id string, err error) {
	for range 2 {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		var made client.ContainerCreateResult
		made, err = d.engine.ContainerCreate(call, o)
		cancel()
		if err == nil {
			for _, w := range made.Warnings {
				d.log.Warn("the Docker Engine warns", "target", o.Config.Labels[labelID], "warning", w)
			}
			return made.ID, nil
		}
		if !errdefs.IsConflict(err) {
			return "", err
		}
		if rerr := d.removeLeftover(ctx, o.Name); rerr != nil {
			return "", errors.Join(err, rerr)
		}
	}
	return "", err
}

func (d *Driver) removeLeftover(ctx context.Context, name string) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	got, err := d.engine.ContainerInspect(call, name, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !d.ours(got.Container.Config.Labels) {
		return fmt.Errorf("the container %s is not Mainstay's; rename or remove it", name)
	}
	if d.holds(name) > 1 { // once is by the start at work
		return fmt.Errorf("a copy named %s runs already", got.Container.Config.Labels[labelID])
	}
	d.log.Info("removing a container that an earlier mainstay left behind", "container", got.Container.ID[:12], "target", got.Container.Config.Labels[labelID])
	return d.remove(ctx, got.Container.ID)
}

// ours reports whether labels are those of a container of this state folder.
func (d *Driver) ours(labels map[string]string) bool { return labels[labelOwner] == d.owner }

// Adopt takes back the container that h names, if it still runs and is ours.
func (d *Driver) Adopt(ctx context.Context, s deploy.Spec, h deploy.Handle) (deploy.Instance, error) {
	var w where
	if err := json.Unmarshal(h.Private, &w); err != nil || len(w.Container) != 64 || w.Port == 0 {
		return nil, fmt.Errorf("the handle of %s names no container", s.ID)
	}
	i, err := d.look(ctx, w.Container)
	if errdefs.IsNotFound(err) {
		return nil, deploy.ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("look at the container of %s: %w", s.ID, d.unreachable(err))
	}
	switch {
	case !d.ours(i.labels):
		return nil, deploy.ErrGone
	case !i.running:
		if err := d.remove(ctx, w.Container); err != nil {
			d.log.Warn("a container that has ended could not be removed", "target", s.ID, "err", err)
		}
		return nil, deploy.ErrGone
	}
	i.spec, i.where = s, w
	i.spec.Image = i.labels[labelImage]
	d.hold(d.name(i.labels[labelID]))
	d.ports.Take(w.Port)
	i.feed.recall(ctx)
	i.begin()
	return i, nil
}

// Sweep stops and removes the containers of earlier lives that this one has not
// adopted. It is for the time when all that is wanted has been.
func (d *Driver) Sweep(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	list, err := d.engine.ContainerList(call, client.ContainerListOptions{
		All: true, Filters: client.Filters{}.Add("label", labelOwner+"="+d.owner),
	})
	cancel()
	if err != nil {
		return fmt.Errorf("list what earlier lives left behind: %w", d.unreachable(err))
	}
	var errs []error
	for _, left := range list.Items {
		if d.holds(d.name(left.Labels[labelID])) > 0 {
			continue
		}
		d.log.Info("removing a container that an earlier mainstay left behind", "container", left.ID[:12], "target", left.Labels[labelID])
		grace := 10
		call, cancel := context.WithTimeout(ctx, callTimeout)
		_, _ = d.engine.ContainerStop(call, left.ID, client.ContainerStopOptions{Timeout: &grace}) // if it will not, remove kills it
		cancel()
		if err := d.remove(ctx, left.ID); err != nil {
			errs = append(errs, fmt.Errorf("remove %s, which an earlier mainstay left behind: %w", left.Labels[labelID], err))
		}
	}
	return errors.Join(errs...)
}

// remove kills what runs in a container and removes it with its unnamed volumes.
// That it is gone already is no error.
func (d *Driver) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	_, err := d.engine.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if errdefs.IsNotFound(err) || err != nil && strings.Contains(err.Error(), "already in progress") {
		return nil
	}
	return err
}

func (d *Driver) hold(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[name]++
}

// holds counts how many of this life hold a name.
func (d *Driver) holds(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held[name]
}

func (d *Driver) release(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held[name]--; d.held[name] <= 0 {
		delete(d.held, name)
	}
}
