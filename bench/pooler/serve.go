package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler"
	"mainstay.dev/mainstay/telemetry"
	"mainstay.dev/mainstay/telemetry/otlp"
	"mainstay.dev/mainstay/telemetry/prom"
)

// A service is the process under test: the pooler with metrics on, as the binary has
// it. The bench starts itself again as one, by these flags.
type service struct {
	upstream    string
	auth        string
	export      string // spans go there; "": nowhere
	tls         string // folder of server.crt and server.key; "": it is not offered
	upstreamTLS bool   // towards PostgreSQL; its own flag is the URL's sslmode
	share       int    // servers that are kept for the user victim
	profile     string // a folder for its processor profile; "": there is none
}

func (s *service) flags() {
	flag.StringVar(&s.upstream, "serve", "", "for its own use: be a pooler in front of this URL")
	flag.StringVar(&s.auth, "auth", "trust", "for its own use: trust, scram or generated")
	flag.StringVar(&s.export, "export", "", "for its own use: base URL of a collector of spans")
	flag.StringVar(&s.tls, "tls", "", "for its own use: folder of a certificate")
	flag.IntVar(&s.share, "share", 0, "for its own use: servers that are kept for the user victim")
}

// args are the flags that make the bench this service.
func (s *service) args() []string {
	return []string{"-serve", s.upstream, "-auth", s.auth, "-export", s.export, "-tls", s.tls, "-share", fmt.Sprint(s.share), "-profile", s.profile}
}

func (s *service) config() (cfg pooler.Config) {
	cfg.SetDefaults()
	cfg.Listen, cfg.MaxClients = "127.0.0.1:0", 20_000
	var d pooler.Database
	d.SetDefaults()
	d.Upstream, d.Pool.Max = setting.Secret(s.upstream), poolSize
	if s.share > 0 {
		d.Pool.Users = map[string]pooler.Share{"victim": {Min: s.share, Weight: 1}}
	}
	cfg.Databases = map[string]pooler.Database{"bench": d}
	if s.auth != "trust" {
		cfg.Users = map[string]setting.Secret{"bench": secret}
	}
	if s.auth == "generated" {
		cfg.Generated = []string{"bench"}
	}
	if s.tls != "" {
		cfg.TLS.Cert, cfg.TLS.Key = s.tls+"/server.crt", s.tls+"/server.key"
	}
	return cfg
}

// run prints the port on which it serves, and serves until ctx ends.
func (s *service) run(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var sink telemetry.Sink = prom.New(nil, prom.Version("bench"))
	var exporting sync.WaitGroup
	defer exporting.Wait()
	if s.export != "" {
		var c otlp.Config
		c.SetDefaults()
		c.Endpoint = s.export
		spans, err := otlp.New(c, otlp.Resource{Service: "bench"}, log)
		if err != nil {
			return err
		}
		exporting.Go(func() { err = errors.Join(err, spans.Run(ctx)) })
		sink = telemetry.Fanout(sink, spans)
	}
	cfg := s.config()
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	if s.profile != "" {
		f, err := os.Create(filepath.Join(s.profile, fmt.Sprintf("pooler-%d.pprof", os.Getpid())))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	p, err := pooler.New(cfg, pooler.Deps{Listener: ln, Sink: sink, Log: log})
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr().(*net.TCPAddr).Port)
	return p.Run(ctx)
}
