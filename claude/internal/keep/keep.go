// Package keep remembers requests, so that they can be sent again: only where the file
// says so, without secrets, within bounds of number, memory and age, and in memory
// alone. Headers that tell who asks are never among them. It does no input or output.
// Only the Claude plane may import it.
package keep

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// Config is claude.keep.
type Config struct {
	Requests string        `yaml:"requests" doc:"Which requests for messages and token counts are kept, in memory, for mainstay claude replay: none, failed, or all. They hold prompts, which nothing else keeps."`
	Calls    int           `yaml:"calls" doc:"How many are kept; the oldest go."`
	Size     setting.Bytes `yaml:"size" doc:"How much memory they may take together; the oldest go, and a larger one is not kept."`
	Age      time.Duration `yaml:"age" doc:"For how long one is kept."`
	Redact   []string      `yaml:"redact" doc:"What is taken out before a request is kept, beside what looks like a key, a token or a password: paths in the request (metadata.user_id, messages.*.content; * is any member or element), or regular expressions between slashes."`
	Log      bool          `yaml:"log" doc:"Write each request that is kept into the log too, redacted, its first 16 KiB."`
}

// SetDefaults fills in what an absent key means.
func (c *Config) SetDefaults() {
	*c = Config{Requests: "none", Calls: 100, Size: 64e6, Age: 24 * time.Hour}
}

// Validate notes every mistake.
func (c Config) Validate(ps *setting.Problems) {
	switch c.Requests {
	case "none", "failed", "all":
	default:
		ps.Add("requests", "must be none, failed or all", "use failed")
	}
	if c.Calls < 1 || c.Calls > 10_000 {
		ps.Add("calls", "must be from 1 to 10000", "try 100")
	}
	if c.Size <= 0 {
		ps.Add("size", "must be positive", "try 64MB")
	}
	if c.Age <= 0 {
		ps.Add("age", "must be positive", "try 24h")
	}
	ParseRedaction(c.Redact, func(i int, what, mend string) { ps.Add(fmt.Sprintf("redact[%d]", i), what, mend) })
}

// Rules are a valid Config, compiled: immutable.
type Rules struct {
	Config
	redaction *Redaction
}

// Compile makes Rules of a valid Config.
func Compile(c Config) Rules {
	return Rules{c, ParseRedaction(c.Redact, func(int, string, string) {})}
}

// Wants reports whether a call's request may have to be kept.
func (r *Rules) Wants() bool { return r.Requests == "failed" || r.Requests == "all" }

// Keeps reports whether one is, now that it is known how the call ended.
func (r *Rules) Keeps(failed bool) bool {
	return r.Requests == "all" || r.Requests == "failed" && failed
}

// A Request is one that is kept.
type Request struct {
	ID      string
	At      time.Time
	Method  string
	Path    string // with the color and what matters of the query
	Model   string
	Header  map[string]string // what shapes the answer; nothing that tells who asks
	Body    []byte
	Removed int // places from which something was taken out
}

// Why a request can't be had.
var (
	// ErrOff says that none is kept.
	ErrOff = errors.New("requests are not kept")
	// ErrUnknown says that there is none with that id.
	ErrUnknown = errors.New("no request with that id is kept")
)

// A Store holds requests. The zero value keeps none; its methods may be called from many
// goroutines.
type Store struct {
	mu    sync.Mutex
	rules Rules
	all   []Request // oldest first
	size  int64
	timer *time.Timer // until the oldest has become too old; nil: there is none
}

// Obey makes the rules those of the store: what they would not keep goes.
func (s *Store) Obey(r Rules) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = r
	s.purge()
}

// Close forgets everything.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = Rules{}
	s.purge()
}

// Add keeps a request without what must not be kept, and returns it as it is kept. Its
// body is not used any more. It fails if it can't be kept.
func (s *Store) Add(q Request, by Rules) (Request, error) {
	var err error
	if q.Body, q.Removed, err = by.redaction.Apply(q.Body); err != nil {
		return q, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.rules.Wants(): // a reload, in the meantime
		return q, ErrOff
	case q.weight() > int64(s.rules.Size):
		return q, fmt.Errorf("the request of %d bytes is larger than claude.keep.size", len(q.Body))
	}
	s.all = append(s.all, q)
	s.size += q.weight()
	s.purge()
	return q, nil
}

// weight is about what a request takes.
func (q *Request) weight() int64 { return int64(cap(q.Body)) + 1024 }

// purge forgets what must go. It needs the lock.
func (s *Store) purge() {
	now := time.Now()
	for len(s.all) > 0 {
		q := &s.all[0]
		if s.rules.Wants() && len(s.all) <= s.rules.Calls && s.size <= int64(s.rules.Size) && now.Sub(q.At) < s.rules.Age {
			break
		}
		s.size -= q.weight()
		s.all[0] = Request{}
		s.all = s.all[1:]
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if len(s.all) > 0 {
		s.timer = time.AfterFunc(s.rules.Age-now.Sub(s.all[0].At), s.expire)
	} else {
		s.all = nil
	}
}

// expire is called when the oldest request has become too old.
func (s *Store) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.purge()
}

// Find returns the latest request with that id. Its body must not be changed.
func (s *Store) Find(id string) (Request, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.rules.Wants() {
		return Request{}, ErrOff
	}
	s.purge()
	for _, q := range slices.Backward(s.all) {
		if q.ID == id {
			return q, nil
		}
	}
	return Request{}, ErrUnknown
}

// Len is how many are kept, and how much memory they take.
func (s *Store) Len() (n int, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all), s.size
}

// Log writes a request that is kept into a log.
func (q *Request) Log(log *slog.Logger) {
	const most = 16 << 10
	body := q.Body[:min(len(q.Body), most)]
	log.Info("claude request kept", "id", q.ID, "path", q.Path, "removed", q.Removed, "bytes", len(q.Body), "body", strings.ToValidUTF8(string(body), ""))
}
