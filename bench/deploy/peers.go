package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A proxy is started before the app's two versions, and told to send all that is
// new to one of them.
type proxy struct {
	name  string
	addr  string
	h2    bool
	start func() error
	flip  func(addr string) error
	stop  func()
}

var errAbsent = errors.New("is not here")

// limit is how long a peer that has a limit for its drain may take.
const limit = "5s"

func freePort() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// program finds a program by its variable or in PATH.
func program(variable, name string) (string, error) {
	path, err := exec.LookPath(cmp.Or(os.Getenv(variable), name))
	if err != nil {
		return "", fmt.Errorf("%s %w: install it, or name it in %s", name, errAbsent, variable)
	}
	return path, nil
}

// launch starts a peer whose output nobody reads but after a failure.
func launch(p *proxy, cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 2 * time.Second // a worker that outlives its master holds the output
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	p.stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // nginx takes its workers along
		select {
		case <-ended:
		case <-time.After(3 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	for range 100 {
		if c, err := net.Dial("tcp", p.addr); err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			return fmt.Errorf("%s ended: %s", p.name, out.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	p.stop()
	return fmt.Errorf("%s does not listen", p.name)
}

func run(path string, env []string, args ...string) error {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(path), err, out)
	}
	return nil
}

func nginx(dir, first string) (*proxy, error) {
	path, err := program("NGINX", "nginx")
	if err != nil {
		return nil, err
	}
	p := &proxy{name: "nginx reload", addr: fmt.Sprintf("127.0.0.1:%d", freePort())}
	conf := filepath.Join(dir, "nginx.conf")
	write := func(addr string) error {
		return os.WriteFile(conf, fmt.Appendf(nil, `user root; daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/error.log; worker_shutdown_timeout %[4]s;
events { worker_connections 4096; }
http { access_log off; client_max_body_size 0; proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 1h; proxy_temp_path %[1]s/t; client_body_temp_path %[1]s/b;
fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
map $http_upgrade $up { default upgrade; "" ""; }
upstream app { server %[3]s; keepalive 64; }
server { listen %[2]s; location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $up; proxy_set_header Host $host; } } }
`, dir, p.addr, addr, limit), 0o600)
	}
	p.start = func() error {
		if err := write(first); err != nil {
			return err
		}
		return launch(p, exec.Command(path, "-p", dir, "-c", conf))
	}
	p.flip = func(addr string) error {
		if err := write(addr); err != nil {
			return err
		}
		return run(path, nil, "-p", dir, "-c", conf, "-s", "reload")
	}
	return p, nil
}

func haproxy(dir, a, b string) (*proxy, error) {
	path, err := program("HAPROXY", "haproxy")
	if err != nil {
		return nil, err
	}
	p := &proxy{name: "HAProxy map", addr: fmt.Sprintf("127.0.0.1:%d", freePort())}
	conf, table, socket := filepath.Join(dir, "h.cfg"), filepath.Join(dir, "m"), filepath.Join(dir, "h.sock")
	p.start = func() error {
		err := errors.Join(os.WriteFile(table, []byte("app one\n"), 0o600), os.WriteFile(conf, fmt.Appendf(nil, `global
 stats socket %s mode 600 level admin
 maxconn 4096
defaults
 mode http
 timeout connect 5s
 timeout client 1h
 timeout server 1h
 timeout tunnel 1h
frontend f
 bind %s
 use_backend %%[str(app),map(%s,one)]
backend one
 server s %s
backend two
 server s %s
`, socket, p.addr, table, a, b), 0o600))
		if err != nil {
			return err
		}
		return launch(p, exec.Command(path, "-db", "-f", conf))
	}
	p.flip = func(addr string) error {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprintf(c, "set map %s app %s\n", table, map[bool]string{true: "one", false: "two"}[addr == a])
		out, err := io.ReadAll(c)
		if s := strings.TrimSpace(string(out)); err == nil && s != "" {
			err = errors.New(s)
		}
		return err
	}
	return p, nil
}

func caddy(dir, first string) (*proxy, error) {
	path, err := program("CADDY", "caddy")
	if err != nil {
		return nil, err
	}
	p := &proxy{name: "Caddy POST /load", addr: fmt.Sprintf("127.0.0.1:%d", freePort()), h2: true}
	admin := fmt.Sprintf("127.0.0.1:%d", freePort())
	config := func(addr string) []byte {
		type o = map[string]any
		b, _ := json.Marshal(o{ // of maps and strings: cannot fail
			"admin": o{"listen": admin}, "logging": o{"logs": o{"default": o{"level": "ERROR"}}},
			"apps": o{"http": o{"grace_period": limit, "servers": o{"s": o{"listen": []string{p.addr}, "protocols": []string{"h1", "h2c"}, "automatic_https": o{"disable": true},
				"routes": []any{o{"handle": []any{o{"handler": "reverse_proxy", "flush_interval": -1, "upstreams": []any{o{"dial": addr}}}}}}}}}},
		})
		return b
	}
	p.start = func() error {
		file := filepath.Join(dir, "caddy.json")
		if err := os.WriteFile(file, config(first), 0o600); err != nil {
			return err
		}
		cmd := exec.Command(path, "run", "--config", file)
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		return launch(p, cmd)
	}
	p.flip = func(addr string) error {
		resp, err := http.Post("http://"+admin+"/load", "application/json", bytes.NewReader(config(addr)))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			out, _ := io.ReadAll(resp.Body)
			return fmt.Errorf("%s: %s", resp.Status, out)
		}
		return nil
	}
	return p, nil
}

func kamal(dir, first string) (*proxy, error) {
	path, err := program("KAMAL_PROXY", "kamal-proxy")
	if err != nil {
		return nil, err
	}
	port := freePort()
	p := &proxy{name: "kamal-proxy deploy", addr: fmt.Sprintf("127.0.0.1:%d", port)}
	env := []string{"HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "TMPDIR=" + dir}
	p.flip = func(addr string) error {
		return run(path, env, "deploy", "app", "--target", addr, "--health-check-path", "/", "--drain-timeout", limit)
	}
	p.start = func() error {
		cmd := exec.Command(path, "run", "--http-port", strconv.Itoa(port), "--https-port", strconv.Itoa(freePort()))
		cmd.Env = append(os.Environ(), env...)
		if err := launch(p, cmd); err != nil {
			return err
		}
		return p.flip(first)
	}
	return p, nil
}

// settle gives a peer's children a moment after it was stopped.
func settle(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}
