package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"sync"
	"time"
)

// A tag stands for a credential in the memory: its GMAC under a random key of this
// process. GHASH under a secret key is a universal hash, and no tag is ever shown,
// so that two credentials have the same tag with a chance of one in 2^115 at most,
// whoever chose them; nobody can have the proof of another's. It is four times as
// fast as SHA-256, and no credential stays in memory.
type tag [16]byte

// tagger makes tags.
type tagger struct{ mac cipher.AEAD }

func newTagger() (*tagger, error) {
	key := make([]byte, 16)
	_, _ = rand.Read(key) // never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make the tags of credentials: %w", err)
	}
	mac, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make the tags of credentials: %w", err)
	}
	return &tagger{mac}, nil
}

var nonce [12]byte // the one message per key that GCM allows: nobody sees the tag

// scratch is what reading a credential needs, so that a hit allocates nothing.
type scratch struct {
	raw []byte // its kind and then itself, as it came
	tag [16 + 16]byte
}

var scratches = sync.Pool{New: func() any { return &scratch{raw: make([]byte, 0, 4096)} }}

// release gives s back. One that has grown large is left to the collector.
func (s *scratch) release() {
	if cap(s.raw) <= 2*maxCookie {
		scratches.Put(s)
	}
}

func (t *tagger) tag(s *scratch) tag {
	return tag(t.mac.Seal(s.tag[:0], nonce[:], nil, s.raw))
}

// The size of a memory: so many proofs at most, in two generations.
const (
	shards    = 16
	goodShard = 2048 // 65,536 in all: about 20 MB
	badShard  = 128
	badFor    = 10 * time.Second // how long a refusal is repeated without a look
)

// memory keeps proofs by tag. When a shard's young generation is full the old one
// is forgotten, so that it costs nothing to make room. It is safe for concurrent
// use.
type memory struct {
	size   int
	shards [shards]shard
}

type shard struct {
	mu         sync.RWMutex
	young, old map[tag]*proof
}

func newMemory(size int) *memory { return &memory{size: size} }

func (m *memory) get(t tag, now time.Time) *proof {
	s := &m.shards[t[0]%shards]
	s.mu.RLock()
	p, young := s.young[t]
	if !young {
		p = s.old[t]
	}
	s.mu.RUnlock()
	if p == nil || !now.Before(p.until) {
		return nil
	}
	if !young {
		m.put(t, p)
	}
	return p
}

func (m *memory) put(t tag, p *proof) {
	s := &m.shards[t[0]%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.young == nil || len(s.young) >= m.size {
		s.old, s.young = s.young, make(map[tag]*proof)
	}
	s.young[t] = p
}

// len is how many are kept.
func (m *memory) len() (n int) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.RLock()
		n += len(s.young) + len(s.old)
		s.mu.RUnlock()
	}
	return n
}
