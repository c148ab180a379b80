package kept

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/edge/internal/rfc9111"
)

// request is one for a path, with the headers given as pairs.
func request(path string, headers ...string) *Request {
	h := http.Header{}
	for i := 0; i+1 < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &Request{Resource: Resource{Scheme: "http", Host: "a.example", Path: path}, Header: h.Get, Most: time.Hour, Live: func(o uint64) bool { return o == 1 }}
}

// keep passes body through the store, told by its length or not.
func keep(t testing.TB, s *Store, r *Request, body io.Reader, told int64, lines ...string) (passed string, err error) {
	t.Helper()
	resp := &http.Response{StatusCode: 200, Header: http.Header{"Cache-Control": {"max-age=60"}}, ContentLength: told}
	for i := 0; i+1 < len(lines); i += 2 {
		resp.Header.Set(lines[i], lines[i+1])
	}
	now := time.Now()
	term, ok := rfc9111.Storable(200, resp.Header, now, now)
	if !ok {
		t.Fatal("not storable")
	}
	vary, _ := rfc9111.Vary(resp.Header)
	from := io.NopCloser(body)
	if c := s.Copy(resp, r, &Answer{Term: term, Color: "blue", Origin: 1, Asked: now}, vary, s.Ticket(r.Resource)); c != nil {
		from = c.Of(from)
	}
	b, err := io.ReadAll(from)
	from.Close()
	return string(b), err
}

func find(s *Store, r *Request) (body string, ok bool) {
	a := s.Find(r, time.Now(), func(*Answer) bool { return true })
	if a == nil {
		return "", false
	}
	_, _, b := a.Give(r.Header, "limited", time.Now())
	return string(b), true
}

// slowly gives a few bytes at a time, and then err.
type slowly struct {
	left string
	err  error
}

func (s *slowly) Read(p []byte) (int, error) {
	n := copy(p, s.left[:min(7, len(s.left))])
	if s.left = s.left[n:]; n == 0 {
		return 0, s.err
	}
	return n, nil
}

func TestABodyPassesUnchangedAndIsKeptIfItIsWhole(t *testing.T) {
	broken := errors.New("broken")
	long := strings.Repeat("0123456789", 5000)
	for name, tc := range map[string]struct {
		body string
		told int64
		err  error
		kept bool
	}{
		"empty":              {"", 0, io.EOF, true},
		"short":              {"abc", 3, io.EOF, true},
		"of unknown length":  {long, -1, io.EOF, true},
		"of known length":    {long, 50_000, io.EOF, true},
		"shorter than told":  {"abc", 10, io.EOF, false},
		"longer than told":   {"abcdefghijk", 3, io.EOF, false},
		"broken off":         {"abc", -1, broken, false},
		"too large":          {long + "x", -1, io.EOF, false},
		"too large, as told": {long + "x", 50_001, io.EOF, false},
	} {
		s := New(1e6, 50_000)
		r := request("/a")
		passed, err := keep(t, s, r, &slowly{tc.body, tc.err}, tc.told)
		if passed != tc.body || (err != nil) != errors.Is(tc.err, broken) {
			t.Errorf("%s: %d bytes passed, %v", name, len(passed), err)
		}
		if body, ok := find(s, r); ok != tc.kept || ok && body != tc.body {
			t.Errorf("%s: kept %v, %d bytes", name, ok, len(body))
		}
		if s.copying.Load() != 0 {
			t.Errorf("%s: %d bytes are still being copied", name, s.copying.Load())
		}
	}
}

func TestABodyThatIsLeftHalfReadIsGivenUp(t *testing.T) {
	s := New(1e6, 50_000)
	r := request("/a")
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: 1000}
	body := s.Copy(resp, r, &Answer{Origin: 1}, nil, s.Ticket(r.Resource)).Of(io.NopCloser(strings.NewReader(strings.Repeat("x", 1000))))
	_, _ = body.Read(make([]byte, 10))
	if s.copying.Load() != 1000 {
		t.Errorf("%d bytes are being copied", s.copying.Load())
	}
	body.Close()
	body.Close()
	if s.copying.Load() != 0 || s.Stats().Stored != 0 {
		t.Errorf("%d bytes are still being copied; %+v", s.copying.Load(), s.Stats())
	}
}

func TestBodiesOnTheirWayInAreBoundedTogether(t *testing.T) {
	s := New(1e6, 50_000) // 125 kB of them
	var bodies []io.ReadCloser
	for i := range 4 {
		r := request(fmt.Sprint("/", i))
		resp := &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: 50_000}
		body := s.Copy(resp, r, &Answer{Origin: 1, Term: term(t)}, nil, s.Ticket(r.Resource)).Of(io.NopCloser(bytes.NewReader(make([]byte, 50_000))))
		_, _ = body.Read(make([]byte, 10))
		bodies = append(bodies, body)
	}
	for i, body := range bodies {
		if n, err := io.Copy(io.Discard, body); n != 49_990 || err != nil {
			t.Errorf("body %d: %d bytes, %v", i, n, err)
		}
		body.Close()
	}
	if got := s.Stats().Stored; got != 2 || s.copying.Load() != 0 {
		t.Errorf("%d were kept", got)
	}
}

func term(t testing.TB) rfc9111.Term {
	now := time.Now()
	x, ok := rfc9111.Storable(200, http.Header{"Cache-Control": {"max-age=3600"}}, now, now)
	if !ok {
		t.Fatal("not storable")
	}
	return x
}

// Under a storm nobody gets the body of another resource or variant, or one that is
// not whole.
func TestAStormGetsOnlyWholeAnswersOfItsOwn(t *testing.T) {
	s := New(1e6, 20_000)
	of := func(i int) (path, lang string) { return fmt.Sprint("/", i%20), fmt.Sprint("l", i%3) }
	var all sync.WaitGroup
	var found sync.Map
	for g := range 4 {
		all.Go(func() {
			for i := range 2000 {
				path, lang := of(i*7 + g)
				r := request(path, "Accept-Language", lang)
				want := strings.Repeat(path+lang+" ", 100+i%20)
				switch i % 4 {
				case 0, 1:
					if _, err := keep(t, s, r, strings.NewReader(want), -1, "Vary", "Accept-Language"); err != nil {
						t.Error(err)
					}
				case 2:
					if body, ok := find(s, r); ok {
						found.Store(path+lang, true)
						if strings.Trim(strings.ReplaceAll(body, path+lang+" ", ""), " ") != "" || len(body) < 100*len(path+lang+" ") {
							t.Errorf("%s %s got %.60q, %d bytes", path, lang, body, len(body))
						}
					}
				default:
					if i%100 == 3 {
						s.Drop(r.Resource)
					}
				}
			}
		})
	}
	all.Wait()
	n := 0
	found.Range(func(any, any) bool { n++; return true })
	if st := s.Stats(); n < 20 || st.Weight > st.Max || s.copying.Load() != 0 {
		t.Errorf("%d variants were found; %+v, %d bytes being copied", n, st, s.copying.Load())
	}
}

func TestALookCostsNoAllocation(t *testing.T) {
	s := New(64e6, 1e6)
	r := request("/a", "Accept-Encoding", "gzip")
	if _, err := keep(t, s, r, strings.NewReader("body"), 4, "Vary", "Accept-Encoding"); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	fits := func(*Answer) bool { return true }
	if n := testing.AllocsPerRun(100, func() {
		if s.Find(r, now, fits) == nil {
			t.Fatal("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFindAndGive(b *testing.B) {
	s := New(64e6, 1e6)
	r := request("/a", "Accept-Encoding", "gzip")
	if _, err := keep(b, s, r, bytes.NewReader(make([]byte, 1024)), 1024, "Vary", "Accept-Encoding"); err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	fits := func(*Answer) bool { return true }
	b.ReportAllocs()
	for b.Loop() {
		s.Find(r, now, fits).Give(r.Header, "limited", now)
	}
}
