package docker

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/internal/containers"
)

// The labels that a container of ours carries.
const (
	labelService = "dev.mainstay.service"
	labelOwner   = "dev.mainstay.owner" // the state folder's own id: services of one name may share an Engine
	labelID      = "dev.mainstay.id"
	labelColor   = "dev.mainstay.color"
	labelImage   = "dev.mainstay.image" // as it was asked for
	labelStart   = "dev.mainstay.start" // when it was made, by Mainstay's clock
	labelPort    = "dev.mainstay.port"  // on this machine's loopback
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// name is what a copy's container is called. Ids never repeat in the life of a
// state folder but for those that a kill -9 kept from being written down.
func (d *Driver) name(id string) string {
	return "mainstay-" + plain(d.service) + "-" + d.owner[:8] + "-" + plain(id)
}

// plain makes s fit for the name of a container.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, s)
}

// inner is the port on which the app serves inside its container.
func inner(c *Config, port int) int {
	if c.Port != 0 {
		return c.Port
	}
	return port
}

// options describe the container of a copy that is reached on port.
func (d *Driver) options(c *Config, s deploy.Spec, image string, port int) client.ContainerCreateOptions {
	cfg := &container.Config{
		Image: image, User: c.User, Env: environ(c, s, port),
		Labels: map[string]string{
			labelService: d.service, labelOwner: d.owner, labelID: s.ID, labelColor: s.Color, labelImage: s.Image,
			labelStart: time.Now().UTC().Format(time.RFC3339Nano), labelPort: strconv.Itoa(port),
		},
	}
	if len(s.Command) > 0 {
		// In place of both of the image's own: a command must not mean
		// different things for different images.
		cfg.Entrypoint, cfg.Cmd = s.Command[:1], s.Command[1:]
	}
	host := &container.HostConfig{
		NetworkMode:   container.NetworkMode(c.Network),
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled}, // restarts are deploy's business
		LogConfig:     container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "4m", "max-file": "4"}},
		SecurityOpt:   []string{"no-new-privileges"},
		Init:          &c.Init,
		Resources:     limits(c),
	}
	for _, m := range c.Mounts {
		kind := mount.TypeVolume
		if strings.HasPrefix(m.Source, "/") {
			kind = mount.TypeBind
		}
		host.Mounts = append(host.Mounts, mount.Mount{Type: kind, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	if !c.Shared() {
		served, _ := network.PortFrom(uint16(inner(c, port)), network.TCP)
		cfg.ExposedPorts = network.PortSet{served: {}}
		host.PortBindings = network.PortMap{served: {{HostIP: loopback, HostPort: strconv.Itoa(port)}}}
		host.ExtraHosts = []string{containers.HostAlias + ":host-gateway"}
	}
	return client.ContainerCreateOptions{Config: cfg, HostConfig: host, Name: d.name(s.ID)}
}

// limits are of one copy: during a deploy there are two.
func limits(c *Config) container.Resources {
	r := container.Resources{
		Memory: int64(c.Memory), MemorySwap: int64(c.Memory), // the same: no swap on top
		NanoCPUs: int64(c.CPUs * 1e9),
	}
	if n := int64(c.Processes); n > 0 {
		r.PidsLimit = &n
	}
	return r
}

// environ is what the app sees: the file's variables, over them the color's, over
// them PORT. Each name is there once, since which of two counts differs from
// program to program.
func environ(c *Config, s deploy.Spec, port int) []string {
	var env []string
	for name, value := range c.Env {
		env = append(env, name+"="+value.Reveal())
	}
	slices.Sort(env)
	env = append(env, s.Env...)
	env = append(env, fmt.Sprintf("PORT=%d", inner(c, port)))
	seen := map[string]bool{}
	once := env[:0:0]
	for _, e := range slices.Backward(env) {
		name, _, _ := strings.Cut(e, "=")
		if name != "" && !seen[name] {
			seen[name] = true
			once = append(once, e)
		}
	}
	slices.Reverse(once)
	return once
}
