package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const mega = 1 << 20

// weigh prints what the proxies hold in memory before any call, with callers that are
// connected and do nothing, while a file passes, and after that.
func (b *bench) weigh(ctx context.Context, h *house) error {
	fmt.Println("| resident, MiB | at rest | peak of 100 MB file, 1st | its 2nd | 3rd | added by the 3rd |\n|---|---|---|---|---|---|")
	for _, name := range []string{"plain", "plane"} {
		p := h.subjects[name]
		time.Sleep(time.Second)
		rest := resident(p.pid)
		var before, peak int
		var peaks []string
		for range 3 {
			time.Sleep(500 * time.Millisecond)
			before = resident(p.pid)
			var err error
			if peak, err = upload(ctx, p); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			peaks = append(peaks, fmt.Sprintf("%.1f", float64(peak)/mega))
		}
		fmt.Printf("| %s | %.1f | %s | %.2f |\n", name, float64(rest)/mega, strings.Join(peaks, " | "), float64(peak-before)/mega)
	}
	fmt.Println()
	return nil
}

// upload sends a file of 100 MB and returns the most that p held meanwhile.
func upload(ctx context.Context, p *process) (peak int, err error) {
	const size = 100e6
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			peak = max(peak, resident(p.pid))
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	err = send(ctx, p.url, size)
	close(done)
	watching.Wait()
	return peak, err
}

func send(ctx context.Context, url string, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/files", io.LimitReader(zeros{}, size))
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header["X-Api-Key"] = []string{"sk-ant-of-the-bench"}
	req.Header["Content-Type"] = []string{"application/octet-stream"}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var got struct {
		Size int64 `json:"size_bytes"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<10)).Decode(&got); err != nil || got.Size != size {
		return fmt.Errorf("%s, %d of %d bytes arrived: %w", res.Status, got.Size, size, err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// resident is a process's memory in bytes.
func resident(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.Atoi(strings.Fields(string(text))[1])
	return pages * os.Getpagesize()
}
