package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/internal/calls"
	"mainstay.dev/mainstay/internal/monitor"
	"mainstay.dev/mainstay/telemetry"
	"mainstay.dev/mainstay/telemetry/jsonlog"
	"mainstay.dev/mainstay/telemetry/prom"
)

// serve is one of the processes.
func serve(ctx context.Context, as, to string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	if profile != "" {
		f, err := os.Create(filepath.Join(profile, as+".pprof"))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	switch as {
	case "upstream":
		return until(ctx, ln, http.HandlerFunc(answer))
	case "plain":
		target, err := url.Parse(to)
		if err != nil {
			return err
		}
		proxy := &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
			Transport: &http.Transport{MaxIdleConns: 512, MaxIdleConnsPerHost: 512, DisableCompression: true},
		}
		return until(ctx, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Or net/http closes the body when the answer begins, the transport takes that
			// for a broken upload, and an answer is cut now and then.
			_ = http.NewResponseController(w).EnableFullDuplex()
			proxy.ServeHTTP(w, r)
		}))
	}
	return plane(ctx, ln, to, as == "gathering")
}

func until(ctx context.Context, ln net.Listener, h http.Handler) error {
	// The timeouts of the plane's own server, which any that others can reach needs.
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	end := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer end()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// plane is the plane with the sinks of the binary.
func plane(ctx context.Context, ln net.Listener, to string, gathering bool) error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	log := slog.New(jsonlog.NewHandler(null, slog.LevelInfo))
	var cfg claude.Config
	cfg.SetDefaults()
	cfg.Upstream, cfg.Recovery.Aggregate = to, gathering
	p, err := claude.New(cfg, claude.Deps{
		Listener: ln, Log: log,
		Sink: telemetry.Fanout(prom.New(nil, prom.Version("bench")), monitor.New(), jsonlog.New(log, jsonlog.All), calls.New(1000)),
	})
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// said is an answer of about 1 KB; as a stream it has 40 deltas.
var said = strings.Repeat("some words and more. ", 40)

const head = `"type":"message","role":"assistant","model":"claude-sonnet-5"`

var (
	whole  = []byte(`{"id":"msg_013Zva2CMHLNnXjNJJKqJ2EF",` + head + `,"content":[{"type":"text","text":"` + said + `"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":210,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":190}}`)
	events = tell()
)

func tell() (all [][]byte) {
	add := func(name, data string) {
		all = append(all, fmt.Appendf(nil, "event: %s\ndata: {\"type\":%q,%s}\n\n", name, name, data))
	}
	add("message_start", `"message":{"id":"msg_013Zva2CMHLNnXjNJJKqJ2EF",`+head+`,"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":210,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}`)
	add("content_block_start", `"index":0,"content_block":{"type":"text","text":""}`)
	for range 40 {
		add("content_block_delta", `"index":0,"delta":{"type":"text_delta","text":"`+said[:len(said)/40]+`"}`)
	}
	add("content_block_stop", `"index":0`)
	add("message_delta", `"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":190}`)
	add("message_stop", `"x":0`)
	return all
}

// message is a request of about 1 KB.
func message(stream bool) string {
	return fmt.Sprintf(`{"model":"claude-sonnet-5","max_tokens":1024,"stream":%v,"messages":[{"role":"user","content":"%s"}]}`, stream, said)
}

// answer is the upstream: a whole message, or a stream of one, each event sent by
// itself as the API does, or the receipt of a file.
func answer(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Request-Id"] = []string{"req_018EeWyXxfu5pfWkrYcMdjWG"}
	if r.URL.Path == "/v1/files" {
		n, _ := io.Copy(io.Discard, r.Body) // a file that is cut shows in n
		h["Content-Type"] = []string{"application/json"}
		_, _ = fmt.Fprintf(w, `{"type":"file","id":"file_1","size_bytes":%d}`, n)
		return
	}
	body, _ := io.ReadAll(r.Body)
	if !bytes.Contains(body, []byte(`"stream":true`)) {
		h["Content-Type"] = []string{"application/json"}
		h["Content-Length"] = []string{strconv.Itoa(len(whole))}
		_, _ = w.Write(whole)
		return
	}
	h["Content-Type"] = []string{"text/event-stream; charset=utf-8"}
	flush := w.(http.Flusher).Flush
	for _, e := range events {
		_, _ = w.Write(e)
		flush()
	}
}

// A process is a subject, or the upstream.
type process struct {
	name string
	url  string
	pid  int // 0: none
	end  func()
}

// begin starts one.
func begin(name, to string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-be", name, "-to", to, "-profile", profile)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{name: name, pid: cmd.Process.Pid, end: func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its end is all that matters
	}}
	var addr string
	if _, err := fmt.Fscan(out, &addr); err != nil {
		p.end()
		return nil, fmt.Errorf("read the address of %s: %w", name, err)
	}
	p.url = "http://" + addr
	return p, nil
}

// A house is all of the processes.
type house struct {
	upstream *process
	subjects map[string]*process
}

func open() (*house, error) {
	up, err := begin("upstream", "")
	if err != nil {
		return nil, err
	}
	h := &house{upstream: up, subjects: map[string]*process{"direct": {name: "direct", url: up.url, end: func() {}}}}
	for _, name := range []string{"plain", "plane", "gathering"} {
		if h.subjects[name], err = begin(name, up.url); err != nil {
			h.end()
			return nil, err
		}
	}
	return h, nil
}

func (h *house) end() {
	for _, p := range h.subjects {
		if p != nil {
			p.end()
		}
	}
	h.upstream.end()
}
