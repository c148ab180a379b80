package docker

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy/internal/containers"
)

// Resolve finds an image by its name, pulling it as the policy says, and returns a
// name that means this very image forever: with its digest if a registry gave it
// one, else its id on this machine. A deploy that resolves first and starts what
// it got runs the same image again after a crash, though the tag has moved on.
func (d *Driver) Resolve(ctx context.Context, name string) (pinned string, err error) {
	got, err := d.image(ctx, d.policy.Load(), name)
	if err != nil {
		return "", err
	}
	if containers.IsID(name) {
		return got.ID, nil
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	for _, digest := range got.RepoDigests {
		if r, err := reference.ParseNormalizedNamed(digest); err == nil && r.Name() == named.Name() {
			return digest, nil
		}
	}
	return got.ID, nil
}

// image looks an image up, and pulls it before or after if it must.
func (d *Driver) image(ctx context.Context, cfg *Config, name string) (client.ImageInspectResult, error) {
	if err := containers.CheckImage(name); err != nil {
		return client.ImageInspectResult{}, fmt.Errorf("%q %w", name, err)
	}
	fixed := containers.IsID(name) || strings.Contains(name, "@sha256:") // can only ever be one image
	var got client.ImageInspectResult
	err := error(errdefs.ErrNotFound)
	if cfg.Pull != containers.PullAlways || fixed {
		if got, err = d.inspectImage(ctx, name); err == nil {
			return got, nil
		}
	}
	switch {
	case !errdefs.IsNotFound(err):
		return got, d.unreachable(err)
	case containers.IsID(name):
		return got, fmt.Errorf("the image %s is no longer on this machine; deploy it by its name", name)
	case cfg.Pull == containers.PullNever:
		return got, fmt.Errorf("the image %s is not on this machine, and app.docker.pull is never; pull or build it", name)
	}
	if err := d.pull(ctx, cfg, name); err != nil {
		return got, err
	}
	if got, err = d.inspectImage(ctx, name); err != nil {
		return got, fmt.Errorf("look at the image %s: %w", name, d.unreachable(err))
	}
	return got, nil
}

func (d *Driver) inspectImage(ctx context.Context, name string) (client.ImageInspectResult, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return d.engine.ImageInspect(ctx, name)
}

func (d *Driver) pull(ctx context.Context, cfg *Config, name string) error {
	auth, err := account(cfg.Registry, name)
	if err != nil {
		return err
	}
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, cfg.PullTimeout)
	defer cancel()
	began := time.Now()
	d.log.Info("pulling the image", "image", name)
	resp, err := d.engine.ImagePull(ctx, name, client.ImagePullOptions{RegistryAuth: auth})
	if err == nil {
		err = resp.Wait(ctx)
	}
	switch {
	case err == nil:
		d.log.Info("pulled the image", "image", name, "took", time.Since(began).Round(time.Millisecond))
		return nil
	case whole.Err() != nil:
		return fmt.Errorf("pull %s: %w", name, context.Cause(whole))
	case ctx.Err() != nil: // whatever the client makes of it
		return fmt.Errorf("pull %s: not done within %v; try a longer app.docker.pull_timeout", name, cfg.PullTimeout)
	case client.IsErrConnectionFailed(err):
		return d.unreachable(err)
	}
	mend := "check its name"
	if auth == "" {
		mend += ", or give app.docker.registry an account"
	}
	return fmt.Errorf("pull %s: %w; %s", name, err, mend)
}

// account is what to show to the registry of an image: nothing to any but the one
// in the file.
func account(r containers.Registry, name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil || r.Server == "" || reference.Domain(named) != r.Server {
		return "", err
	}
	return authconfig.Encode(registry.AuthConfig{Username: r.Username, Password: r.Password.Reveal(), ServerAddress: r.Server})
}
