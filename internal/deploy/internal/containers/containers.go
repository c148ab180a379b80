// Package containers is the part of the app section that the docker driver obeys.
// It is apart from the driver because the section's own package, internal/deploy,
// holds it too, and must not import its drivers.
package containers

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"mainstay.dev/mainstay/internal/setting"
)

// Config is the app.docker section: how the containers of app.image are run.
type Config struct {
	Engine      string                    `yaml:"engine" doc:"The Engine's socket; absent, what DOCKER_HOST names, or unix:///var/run/docker.sock. Whoever may write to it is as good as root on this machine, Mainstay included; it is never given to the app. Engines on other machines are not supported."`
	Pull        Policy                    `yaml:"pull" doc:"When the image is pulled: missing (if it is not on this machine), always (at every deploy) or never."`
	PullTimeout time.Duration             `yaml:"pull_timeout" doc:"How long a pull may take."`
	Registry    Registry                  `yaml:"registry" doc:"Whom to be at a registry that asks."`
	Port        int                       `yaml:"port" doc:"The port on which the app in the image serves; absent, it must read the environment variable PORT."`
	Env         map[string]setting.Secret `yaml:"env" doc:"Variables for the app, beside those that the image and Mainstay set. Of Mainstay's own environment it gets nothing by itself."`
	Mounts      []Mount                   `yaml:"mounts" doc:"Folders of this machine, or volumes, that the app sees."`
	Memory      setting.Bytes             `yaml:"memory" doc:"How much memory a copy may take, without swap, before the kernel kills it; 0 is no limit. During a deploy two copies run."`
	CPUs        float64                   `yaml:"cpus" doc:"How many CPUs a copy may use, as 1.5; 0 is no limit."`
	Processes   int                       `yaml:"processes" doc:"How many processes and threads a copy may have; 0 is no limit."`
	Network     string                    `yaml:"network" doc:"The Docker network of the containers: bridge, the name of another, or host. On any but host they cannot reach what listens on this machine's loopback, and reach its other addresses as host.docker.internal."`
	User        string                    `yaml:"user" doc:"Whom the app runs as, as 1000, 1000:1000 or a name that the image knows; absent, as the image says."`
	Init        bool                      `yaml:"init" doc:"Puts a tiny init in front of the app, for one that as the first process of its container ignores SIGTERM or leaves zombies. A program that does not exist is then told by exit code 127 alone."`
}

// Policy says when an image is pulled.
type Policy string

// The policies.
const (
	PullMissing Policy = "missing"
	PullAlways  Policy = "always"
	PullNever   Policy = "never"
)

// Registry is an account at a registry.
type Registry struct {
	Server   string         `yaml:"server" doc:"The registry's host, as ghcr.io or docker.io; the account is shown to no other."`
	Username string         `yaml:"username" doc:"The name of the account."`
	Password setting.Secret `yaml:"password" doc:"Its password or access token."`
}

// Mount is something outside that the app sees in its container.
type Mount struct {
	Source   string `yaml:"source" doc:"An absolute path of this machine, which must exist, or the name of a volume, which is made if it does not."`
	Target   string `yaml:"target" doc:"The absolute path at which the app sees it."`
	ReadOnly bool   `yaml:"read_only" doc:"Keeps the app from writing to it."`
}

// SetDefaults fills c before the file is read into it.
func (c *Config) SetDefaults() {
	c.Pull = PullMissing
	c.PullTimeout = 10 * time.Minute
	c.Network = networkBridge
}

const (
	networkBridge = "bridge"
	networkHost   = "host"

	defaultEngine = "unix:///var/run/docker.sock"
)

// HostAlias is the name by which a container reaches the machine it runs on.
const HostAlias = "host.docker.internal"

// Shared reports whether containers have this machine's network as their own.
func (c Config) Shared() bool { return c.Network == networkHost }

// Reach returns what address, host:port of a listener on this machine, is called
// from inside a container; false says that containers cannot reach it, because it
// is on loopback and they have a network of their own.
func (c Config) Reach(address string) (string, bool) {
	if c.Shared() {
		return address, true
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "localhost" {
		return "", false
	}
	ip := net.ParseIP(host)
	switch {
	case ip == nil && host != "":
		return address, true // a name: the container asks the same DNS
	case ip != nil && ip.IsLoopback():
		return "", false
	}
	return net.JoinHostPort(HostAlias, port), true
}

// Socket is where the Engine listens, as unix://…. An error says that it is not on
// this machine.
func (c Config) Socket() (string, error) {
	at := c.socket()
	if socket, ok := strings.CutPrefix(at, "unix://"); !ok || !path.IsAbs(socket) {
		return "", setting.Problem{Path: "engine", What: fmt.Sprintf("%q is not a socket of this machine", at), Mend: "write it as " + defaultEngine}
	}
	return at, nil
}

func (c Config) socket() string {
	if c.Engine != "" {
		return c.Engine
	}
	if env := os.Getenv("DOCKER_HOST"); env != "" {
		return env
	}
	return defaultEngine
}

// Validate reports every mistake in c.
func (c Config) Validate(ps *setting.Problems) {
	if _, err := c.Socket(); err != nil && c.Engine != "" { // what DOCKER_HOST says matters to the driver alone
		*ps = append(*ps, setting.Of(err)...)
	}
	if !slices.Contains([]Policy{PullMissing, PullAlways, PullNever}, c.Pull) {
		ps.Add("pull", fmt.Sprintf("%q is no policy", c.Pull), "write missing, always or never")
	}
	if c.PullTimeout <= 0 {
		ps.Add("pull_timeout", "must be positive", "try 10m")
	}
	c.Registry.validate(ps)
	for name := range c.Env {
		if name == "" || strings.ContainsAny(name, "=\x00 ") {
			ps.Add("env", fmt.Sprintf("%q is no name of a variable", name), "write the entry as NAME: value")
		}
	}
	for i, m := range c.Mounts {
		m.validate(fmt.Sprintf("mounts[%d]", i), c.socket(), ps)
	}
	c.validateLimits(ps)
	c.validateNetwork(ps)
}

func (c Config) validateLimits(ps *setting.Problems) {
	const least = 6 << 20 // the Engine's own
	if c.Memory < 0 || 0 < c.Memory && c.Memory < least {
		ps.Add("memory", "must be at least 6MiB, or 0 for no limit", "try 512MB")
	}
	if c.CPUs < 0 || 0 < c.CPUs && c.CPUs < 0.01 {
		ps.Add("cpus", "must be at least 0.01, or 0 for no limit", "try 1")
	}
	if c.Processes < 0 {
		ps.Add("processes", "must not be negative", "try 512, or 0 for no limit")
	}
}

func (c Config) validateNetwork(ps *setting.Problems) {
	switch {
	case c.Network == "" || c.Network == "none" || strings.HasPrefix(c.Network, "container:"):
		ps.Add("network", fmt.Sprintf("nobody could reach the app on the network %q", c.Network), "write bridge, host or the name of a network")
	case c.Shared() && c.Port != 0:
		ps.Add("port", "cannot be fixed on the network host, where both colors need one of their own", "make the app read PORT, or use the network bridge")
	}
	if c.Port < 0 || c.Port > 65535 {
		ps.Add("port", "must be between 1 and 65535", "leave it out if the app reads PORT")
	}
}

func (r Registry) validate(ps *setting.Problems) {
	set := 0
	for _, s := range []string{r.Server, r.Username, r.Password.Reveal()} {
		if s != "" {
			set++
		}
	}
	if set != 0 && set != 3 {
		ps.Add("registry", "needs server, username and password", "set all three, or none for a public registry")
	}
	if strings.Contains(r.Server, "/") {
		ps.Add("registry.server", "must be a host alone", "write it as ghcr.io")
	}
}

func (m Mount) validate(at, engine string, ps *setting.Problems) {
	if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
		ps.Add(at+".target", "must be an absolute path other than /", "try /data")
	}
	switch {
	case m.Source == "":
		ps.Add(at+".source", "is missing", "name a path of this machine or a volume")
	case !path.IsAbs(m.Source) && strings.ContainsAny(m.Source, "/\\"):
		ps.Add(at+".source", "must be an absolute path or the name of a volume", "write the whole path")
	case path.IsAbs(m.Source) && holds(m.Source, strings.TrimPrefix(engine, "unix://")):
		ps.Add(at+".source", "would give the app the Engine's socket, and with it the whole machine", "mount a folder that does not hold it")
	}
}

// holds reports whether file is dir or below it, symbolic links followed.
func holds(dir, file string) bool {
	for _, d := range []string{path.Clean(dir), resolved(dir)} {
		for _, f := range []string{path.Clean(file), resolved(file)} {
			if d == f || strings.HasPrefix(f, strings.TrimSuffix(d, "/")+"/") {
				return true
			}
		}
	}
	return false
}

// resolved is p without symbolic links, as far as it exists.
func resolved(p string) string {
	p = path.Clean(p)
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	if p == "/" {
		return p
	}
	return path.Join(resolved(path.Dir(p)), path.Base(p))
}

// CheckImage says what is wrong with the name of an image, or returns nil.
func CheckImage(name string) error {
	if IsID(name) {
		return nil
	}
	if _, err := reference.ParseNormalizedNamed(name); err != nil {
		return errors.New("is not the name of an image (" + err.Error() + ")")
	}
	return nil
}

// IsID reports whether name is the id of an image of this machine.
func IsID(name string) bool { return strings.HasPrefix(name, "sha256:") }
