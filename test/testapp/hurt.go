package main

import (
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// hurt is what is wrong with this copy. Environment variables say how it begins,
// /hurt?with= how it goes on:
//
//	(nothing)  nothing
//	refuse     it ends at once
//	500        all answers but that of the health check are 500
//	5%         every twentieth of them is
//	slow       /work takes three times as long
//	sick       the health check says 500, and all else as well
//	noisy      every answer writes an error to the log
//
// GATE names a file: the health check (HOLD=health) or /wait (HOLD=wait) is held
// until it exists.
type hurt struct {
	with  atomic.Pointer[string]
	count atomic.Int64
}

func (h *hurt) begin() error {
	with := os.Getenv("HURT")
	h.with.Store(&with)
	if with == "refuse" {
		return errors.New("the port is in use, says the app")
	}
	return nil
}

const workTime = 10 * time.Millisecond

// before lets a request meet what is wrong.
func (h *hurt) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		with, health := *h.with.Load(), r.URL.Path == "/api/health"
		switch {
		case r.URL.Path == "/hurt":
		case health && os.Getenv("HOLD") == "health" && !open():
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		case with == "sick", with == "500" && !health, with == "5%" && !health && h.count.Add(1)%20 == 0:
			http.Error(w, "hurt: "+with, http.StatusInternalServerError)
			return
		case with == "noisy" && !health:
			log.Printf(`{"level":"error","msg":"something is wrong","path":%q}`, r.URL.Path)
		}
		next.ServeHTTP(w, r)
	})
}

func (h *hurt) change(w http.ResponseWriter, r *http.Request) {
	with := strings.Clone(r.URL.Query().Get("with"))
	h.with.Store(&with)
}

func (h *hurt) work(w http.ResponseWriter, _ *http.Request) {
	took := workTime
	if *h.with.Load() == "slow" {
		took *= 3
	}
	time.Sleep(took)
	fmt.Fprint(w, os.Getenv("VERSION"))
}

// wait answers when the gate is open.
func (h *hurt) wait(w http.ResponseWriter, r *http.Request) {
	for os.Getenv("HOLD") == "wait" && !open() && r.Context().Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprint(w, "ready")
}

func open() bool {
	_, err := os.Stat(os.Getenv("GATE"))
	return err == nil
}
