package identity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeySet   = 256 << 10        // bytes
	fetchWithin = 5 * time.Second  // for one fetch
	waitWithin  = time.Second      // for a request that waits for one
	fetchApart  = 10 * time.Second // between fetches for the sake of unknown keys
	maxWaiting  = 1000             // requests that wait for a fetch at once
)

// keySource holds an issuer's key set and keeps it fresh. While the issuer cannot
// be asked, the last set stays in force.
type keySource struct {
	url    string
	client *http.Client
	set    atomic.Pointer[keySet] // nil: none so far
	poke   chan struct{}          // somebody needs a fetch
	file   string                 // where the last set is kept over a restart; empty: nowhere

	mu      sync.Mutex
	asked   chan struct{} // closed when the next fetch has ended; nil: nobody waits for it
	under   chan struct{} // closed when the fetch under way has ended; nil: there is none
	begun   time.Time     // of the last fetch
	failing bool          // it failed
	waiting int

	fetches, failures atomic.Uint64
}

func newKeySource(url string, via http.RoundTripper, dir string) *keySource {
	s := &keySource{
		url: url, poke: make(chan struct{}, 1),
		client: &http.Client{Transport: via, Timeout: fetchWithin, CheckRedirect: func(r *http.Request, before []*http.Request) error {
			if len(before) >= 3 || !fetchable(r.URL.String()) || before[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return errors.New("is led elsewhere, where keys are not taken from")
			}
			return nil
		}},
	}
	if dir != "" {
		sum := sha256.Sum256([]byte(url))
		s.file = filepath.Join(dir, "jwks-"+hex.EncodeToString(sum[:8])+".json")
		s.recall()
	}
	return s
}

// keepFor is how old a set may be that is taken from before a restart.
const keepFor = 7 * 24 * time.Hour

// recall takes the set of the last run, so that a restart while the issuer is down
// makes nobody a stranger. Without one that can be used there is none.
func (s *keySource) recall() {
	info, err := os.Stat(s.file)
	if err != nil || info.Size() > maxKeySet || time.Since(info.ModTime()) > keepFor {
		return
	}
	b, err := os.ReadFile(s.file)
	if err != nil {
		return
	}
	if set, err := parseKeySet(b); err == nil {
		s.set.Store(set)
	}
}

// keep writes the set down for recall. Nothing is lost if that fails but the help.
func (s *keySource) keep(b []byte) error {
	if s.file == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(s.file), filepath.Base(s.file)+".*")
	if err != nil {
		return fmt.Errorf("keep the key set: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already if all went well
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), s.file)
	}
	if err != nil {
		return fmt.Errorf("keep the key set: %w", err)
	}
	return nil
}

// find returns the keys for a token. For one that nobody has published so far it
// has the set fetched again, unless that was done a moment ago, and waits for it.
func (s *keySource) find(ctx context.Context, kid string, alg jose.SignatureAlgorithm) (*keySet, []any, Reason) {
	set := s.set.Load()
	if set != nil {
		if keys, reason := set.find(kid, alg); reason != UnknownKey {
			return set, keys, reason
		}
	}
	s.refresh(ctx)
	set = s.set.Load() // also if none was waited for: one may have ended since the look above
	if set == nil {
		return nil, nil, NoKeys
	}
	keys, reason := set.find(kid, alg)
	if reason == UnknownKey && s.stale() {
		reason = NoKeys // it may be a new one
	}
	return set, keys, reason
}

// stale reports whether the issuer could not be asked the last time.
func (s *keySource) stale() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing
}

// refresh waits for a fetch, if there is one to wait for.
func (s *keySource) refresh(ctx context.Context) {
	ended := s.ask()
	if ended == nil {
		return
	}
	defer func() {
		s.mu.Lock()
		s.waiting--
		s.mu.Unlock()
	}()
	limit := time.NewTimer(waitWithin)
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C:
	case <-ctx.Done():
	}
}

// ask returns what ends with the fetch under way, or with one that it asks for;
// nil if it may not ask for one now, or it would be of no use.
func (s *keySource) ask() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting >= maxWaiting || s.failing && s.set.Load() == nil {
		return nil
	}
	ended := s.under
	if ended == nil {
		if !s.begun.IsZero() && time.Since(s.begun) < fetchApart {
			return nil
		}
		if s.asked == nil {
			s.asked = make(chan struct{})
			select {
			case s.poke <- struct{}{}:
			default: // it has been asked for, and nobody waits any more
			}
		}
		ended = s.asked
	}
	s.waiting++
	return ended
}

// run fetches the set now, every so often, and when it is poked, until ctx ends.
func (s *keySource) run(ctx context.Context, every time.Duration, notice notice) {
	wait := time.Duration(0)
	well := true
	for failed := 0; ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-s.poke:
			timer.Stop()
		}
		err := s.fetch(ctx, notice)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failed = 0
			wait = every - time.Duration(rand.Int64N(int64(every)/10+1)) // nodes do not ask all at once
			if !well {
				notice(slog.LevelInfo, "jwks_back", "The key set can be had again.", slog.String("url", s.url))
			}
			well = true
		} else {
			failed++
			wait = min(time.Second<<min(failed-1, 6), every)
			if well {
				notice(slog.LevelError, "jwks_failed", "The key set cannot be had; the last one stays in force.", slog.String("url", s.url), slog.Any("err", err))
			}
			well = false
		}
	}
}

// fetch asks once.
func (s *keySource) fetch(ctx context.Context, notice notice) error {
	s.mu.Lock()
	s.begun = time.Now()
	s.under, s.asked = s.asked, nil
	select {
	case <-s.poke: // this is the fetch that it asks for
	default:
	}
	if s.under == nil {
		s.under = make(chan struct{})
	}
	s.mu.Unlock()
	s.fetches.Add(1)
	set, text, err := s.get(ctx)
	if err != nil {
		s.failures.Add(1)
	} else {
		if !set.equal(s.set.Load()) { // what was checked with the same keys stands
			s.set.Store(set)
		}
		if err := s.keep(text); err != nil {
			notice(slog.LevelWarn, "jwks_not_kept", "The key set cannot be written down; after a restart while the issuer is down it would be missing.", slog.Any("err", err))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = err != nil
	close(s.under)
	s.under = nil
	return err
}

func (s *keySource) get(ctx context.Context) (*keySet, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("fetch the key set: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("fetch the key set: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("fetch the key set: the answer is %s", resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
	if err != nil {
		return nil, nil, fmt.Errorf("fetch the key set: %w", err)
	}
	if len(b) > maxKeySet {
		return nil, nil, errors.New("fetch the key set: it is larger than 256 KiB")
	}
	if kind := resp.Header.Get("Content-Type"); strings.Contains(kind, "html") {
		return nil, nil, errors.New("fetch the key set: the answer is a web page; jwt.jwks must lead to the JSON itself")
	}
	set, err := parseKeySet(b)
	return set, b, err
}
