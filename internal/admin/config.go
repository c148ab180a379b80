// Package admin is the private door: the API that the command line speaks, the
// dashboard, metrics and health. It listens on loopback only and asks for a token
// or, of a browser, for a session that a one-time link has begun.
//
// Package app runs the [Server]; the command line uses the [Client]. Admin sees
// the planes through what app gives it, never directly.
package admin

import (
	"net"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// Config is the admin section.
type Config struct {
	Listen      string `yaml:"listen" doc:"Address of the API and the dashboard; loopback only."`
	OpenMetrics bool   `yaml:"open_metrics" doc:"Serve /metrics without a token, for a Prometheus on this machine."`
}

// SetDefaults fills in what an absent key means.
func (c *Config) SetDefaults() { c.Listen = "127.0.0.1:9900" }

// Validate reports every mistake.
func (c Config) Validate(ps *setting.Problems) {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		ps.Add("listen", "must be host:port", "try 127.0.0.1:9900")
		return
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		ps.Add("listen", "the port must be a number up to 65535", "try 127.0.0.1:9900")
	}
	if !loopback(host) {
		ps.Add("listen", "must be a loopback address: whoever reaches it can run commands on this machine",
			"use 127.0.0.1:"+port+" and reach it from elsewhere by ssh -L "+port+":127.0.0.1:"+port)
	}
}

// loopback reports whether host can only be reached from this machine.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
