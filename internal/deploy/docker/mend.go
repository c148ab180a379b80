package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy"
)

// errPortTaken is for launch and Start alone: another port may do.
var errPortTaken = errors.New("the port was taken meanwhile")

// mend says what to do about a container that could not be started. The Engine's
// errors have no codes, so it looks for the words that they have had for years;
// what it does not know is told as it is.
func mend(err error, s deploy.Spec, c *Config) error {
	text := err.Error()
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("port is already allocated", "address already in use"):
		return fmt.Errorf("%w: %w", errPortTaken, err)
	case has("executable file not found", `": no such file or directory`, `": stat `) && len(s.Command) > 0:
		return fmt.Errorf("there is no program %q in the image; mend app.run, or leave it out to run what the image says (%w)", s.Command[0], err)
	case has("No command specified", "no command specified"):
		return fmt.Errorf("the image does not say what to run; give app.run a command (%w)", err)
	case has("permission denied") && has("exec:"):
		return fmt.Errorf("the program may not be run; try chmod +x where the image is built (%w)", err)
	case has("bind source path does not exist"):
		return fmt.Errorf("a folder of app.docker.mounts does not exist; make it, or mend the path (%w)", err)
	case has("network " + c.Network + " not found"):
		return fmt.Errorf("there is no Docker network %q; try docker network create %s, or mend app.docker.network", c.Network, c.Network)
	case has("unable to find user"):
		return fmt.Errorf("the image knows no user %q; mend app.docker.user, or write a number (%w)", c.User, err)
	}
	return err
}

// unreachable says what to do about an Engine that could not be talked to; any
// other error it leaves alone.
func (d *Driver) unreachable(err error) error {
	switch {
	case errors.Is(err, syscall.EACCES) || client.IsErrConnectionFailed(err) && strings.Contains(err.Error(), "permission denied"):
		return fmt.Errorf("the Docker Engine at %s does not let this user in; run Mainstay as root or in the group docker", d.at)
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("no Docker Engine answers at %s; start it (systemctl start docker), or mend app.docker.engine", d.at)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the Docker Engine at %s did not answer in time; look at its log (journalctl -u docker): %w", d.at, err)
	}
	return err
}
