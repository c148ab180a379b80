package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/traffic"
)

// serve is the edge in a process of its own, as the peers are. Every switch brings
// a copy that was never there before; the one before it stands by, and the one
// before that is taken down, by the policies that stand in the file by default.
func serve(listen, control string) error {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	var cfg edge.Config
	cfg.SetDefaults()
	cfg.Body = 0
	s, err := edge.New(cfg, edge.Deps{Listener: ln})
	if err != nil {
		return err
	}
	n, before := 0, []traffic.Target(nil)
	mux := http.NewServeMux()
	mux.HandleFunc("/flip", func(w http.ResponseWriter, r *http.Request) {
		n++
		t := traffic.Target{ID: fmt.Sprintf("copy-%d", n), Address: r.URL.Query().Get("to"), Color: []string{"blue", "green"}[n%2], Weight: 100}
		p := traffic.Plan{Mode: traffic.Serve, Targets: []traffic.Target{t}}
		for _, old := range before {
			old.Weight, old.Backup = 0, true
			p.Targets = append(p.Targets, old)
		}
		if _, err := s.Apply(p); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		before = []traffic.Target{t}
	})
	go func() {
		_ = (&http.Server{Addr: control, Handler: mux, ReadHeaderTimeout: time.Second}).ListenAndServe()
	}() // ends with the process
	return s.Run(context.Background())
}

func mainstay(first string) (*proxy, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &proxy{name: "Mainstay", addr: fmt.Sprintf("127.0.0.1:%d", freePort()), h2: true}
	control := fmt.Sprintf("127.0.0.1:%d", freePort())
	p.flip = func(addr string) error {
		resp, err := http.Get("http://" + control + "/flip?to=" + url.QueryEscape(addr))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if out, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, out)
		}
		return nil
	}
	p.start = func() error {
		if err := launch(p, exec.Command(self, "-serve", p.addr, "-control", control)); err != nil {
			return err
		}
		return p.flip(first)
	}
	return p, nil
}
