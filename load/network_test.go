package load

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

func TestEveryWayToFailHasItsVerdictAndCause(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/error":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/wrong":
			fmt.Fprint(w, "a login page")
		case "/large":
			_, _ = w.Write(make([]byte, 3000))
		case "/cut":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "half")
			panic(http.ErrAbortHandler)
		case "/reset":
			conn, _, _ := w.(http.Hijacker).Hijack()
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		case "/hang":
			<-hang
		}
	}))
	defer srv.Close()
	defer close(hang)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + gone.Addr().String()
	gone.Close()
	for _, c := range []struct {
		base, path string
		verdict    Verdict
		cause      string
	}{
		{srv.URL, "fine", OK, ""},
		{srv.URL, "error", HTTPError, "503"},
		{srv.URL, "wrong", WrongBody, "not_ours"},
		{srv.URL, "large", WrongBody, "too_large"},
		{srv.URL, "cut", TransportError, "cut"},
		{srv.URL, "reset", TransportError, "reset"},
		{srv.URL, "hang", TransportError, "timeout"},
		{nobody, "refused", TransportError, "refused"},
	} {
		t.Run(c.path, func(t *testing.T) {
			kind := get(c.path, 1)
			kind.Judge = func(a Answer) (Verdict, string) {
				if string(a.Body) == "a login page" {
					return WrongBody, "not_ours"
				}
				return ByStatus(a)
			}
			var got []Outcome
			mustRun(t, t.Context(), Plan{
				Base: c.base, Rate: 1000, Duration: time.Millisecond, Mix: []Kind{kind},
				Timeout: 200 * time.Millisecond, MaxBody: 2000, InFlight: 1,
				Observe: func(o Outcome) { got = append(got, o) },
			})
			if len(got) != 1 || got[0].Verdict != c.verdict || got[0].Cause != c.cause {
				t.Errorf("got %+v, want one of %v %q", got, c.verdict, c.cause)
			}
		})
	}
}

func TestConnectionsAreKeptAndNeverMoreThanRequestsInFlight(t *testing.T) {
	var mu sync.Mutex
	opened := 0
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "fine")
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			mu.Lock()
			opened++
			mu.Unlock()
		}
	}
	srv.Start()
	defer srv.Close()
	_, tally, err := Saturate(t.Context(), Plan{
		Base: srv.URL, Duration: 300 * time.Millisecond, Mix: []Kind{get("x", 1)},
	}, 4)
	if err != nil {
		t.Fatal(err)
	}
	if s := tally.Summary(nil); s.OK != s.Requests || s.Saturated != 0 || s.OK == 0 {
		t.Errorf("%+v", s)
	}
	if opened > 4 {
		t.Errorf("%d connections for 4 requests at once", opened)
	}
}
