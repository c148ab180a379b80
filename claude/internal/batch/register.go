package batch

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/claude/internal/wholefile"
)

// An Owner is for whom a batch was made.
type Owner struct {
	Color     string `json:"color,omitempty"`
	User      string `json:"user,omitempty"`
	Workspace string `json:"workspace,omitempty"`
}

// Bounds on what is remembered. Results can be fetched for 29 days after their batch was
// made (https://platform.claude.com/docs/en/build-with-claude/batch-processing).
const (
	mostBatches = 10_000
	mostPartly  = 500_000 // results of batches that were fetched in part, 8 bytes each and what a map adds
	mostAge     = 30 * 24 * time.Hour
	saveAfter   = 2 * time.Second
	mostName    = 256 // bytes of an id, a user, a workspace
)

// A Register knows who made the batches, and which of their results have been booked:
// of a batch that was fetched as a whole, that it was; of one that was fetched in part,
// which of its results. It is kept in a file, a moment after it has changed and when it
// is closed. Its methods may be called from many goroutines.
type Register struct {
	path string                       // empty: not kept
	told func(what string, err error) // of what goes wrong beside a call; never nil

	mu      sync.Mutex
	of      map[string]*entry
	partly  int // results in all of their sets
	room    int // for so many
	unsaved bool
	timer   *time.Timer // until it is saved; nil: none runs

	saving sync.Mutex // one writes the file at a time; taken before mu
}

type entry struct {
	at    time.Time           // when it was last heard of
	owner *Owner              // nil: it was not made here
	done  bool                // all of it has been booked
	some  map[uint64]struct{} // of these results; nil: none, or done
	busy  int                 // fetches under way
}

// Open reads the register from its file in dir; an empty dir keeps none. told is told
// what goes wrong later.
func Open(dir string, told func(what string, err error)) (*Register, error) {
	r := &Register{told: told, of: map[string]*entry{}, room: mostPartly}
	if dir == "" {
		return r, nil
	}
	r.path = filepath.Join(dir, "claude-batches.json")
	text, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	var all []kept
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	for _, k := range all {
		if err == nil && (k.ID == "" || len(k.Some)%hashSize != 0) {
			err = errors.New("an entry is damaged")
		}
		r.of[k.ID] = k.entry()
		r.partly += len(r.of[k.ID].some)
	}
	if err != nil {
		return nil, fmt.Errorf("read which batches have been booked from %s: %w; mend or remove it", r.path, err)
	}
	return r, nil
}

// Made notes for whom a batch was made.
func (r *Register) Made(id string, o Owner) {
	if id == "" || len(id) > mostName {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.at(id)
	e.owner = &Owner{clip(o.Color), clip(o.User), clip(o.Workspace)}
	r.changed()
}

func clip(s string) string { return strings.Clone(s[:min(len(s), mostName)]) }

// at is the entry of a batch, whose lock it needs.
func (r *Register) at(id string) *entry {
	e := r.of[id]
	if e == nil {
		e = &entry{}
		r.of[strings.Clone(id)] = e
	}
	e.at = time.Now()
	if len(r.of) > mostBatches {
		r.forget()
	}
	return e
}

// forget drops what is too old, and else a tenth of it all, what was heard of last
// excepted.
func (r *Register) forget() {
	ids := slices.SortedFunc(maps.Keys(r.of), func(a, b string) int { return r.of[a].at.Compare(r.of[b].at) })
	for i, id := range ids {
		if e := r.of[id]; e.busy == 0 && (i < len(ids)/10 || time.Since(e.at) > mostAge) {
			r.partly -= len(e.some)
			delete(r.of, id)
		}
	}
}

// finish notes that all of a batch has been booked.
func (r *Register) finish(e *entry) {
	r.partly -= len(e.some)
	e.done, e.some = true, nil
}

// A Fetch is one reading of a batch's results. It belongs to one goroutine at a time.
type Fetch struct {
	of    *Register
	entry *entry
	id    string
	lines Lines
	book  func(Owner, Result)
	owner Owner
	ended bool
}

// Fetch begins to read the results of a batch: book is told each that has not been
// booked before, and whose it is; who fetches it, where it is not known who made it.
func (r *Register) Fetch(id string, fetches Owner, book func(Owner, Result)) *Fetch {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &Fetch{of: r, id: clip(id), book: book, owner: fetches}
	f.entry = r.at(f.id)
	f.entry.busy++
	if f.entry.owner != nil {
		f.owner = *f.entry.owner
	}
	f.lines.Found = f.found
	return f
}

// Feed reads the next bytes of the results.
func (f *Fetch) Feed(p []byte) { f.lines.Feed(p) }

// found books a result, unless that has been done.
func (f *Fetch) found(res Result) {
	if f.first(res.ID) {
		f.book(f.owner, res)
	}
}

// first notes that a result is being booked; false: it has been.
func (f *Fetch) first(id []byte) bool {
	sum := sha256.Sum256(id) // callers choose the ids: nothing weaker keeps them apart
	key := binary.LittleEndian.Uint64(sum[:])
	r, e := f.of, f.entry
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, booked := e.some[key]; booked || e.done {
		return false
	}
	if e.some == nil {
		e.some = map[uint64]struct{}{}
	}
	e.some[key] = struct{}{}
	if r.partly++; r.partly > r.room {
		r.makeRoom(e)
	}
	return true
}

// makeRoom gives up the batch that was fetched in part the longest ago: what it still
// lacks will not be booked, since what it has can't be told apart any more.
func (r *Register) makeRoom(but *entry) {
	oldest := ""
	for id, e := range r.of {
		if e != but && len(e.some) > 0 && (oldest == "" || e.at.Before(r.of[oldest].at)) {
			oldest = id
		}
	}
	if oldest == "" { // one batch alone: no batch of the API's has so many
		r.finish(but)
		r.told("a batch has more results than are told apart: the rest is not booked", nil)
		return
	}
	r.finish(r.of[oldest])
	r.told("too many batches were fetched in part: what is left of the one of the longest ago will not be booked", nil)
}

// End ends the reading; whole: it was all that there is. It returns how many lines could
// not be read. Again does nothing.
func (f *Fetch) End(whole bool) (unread int) {
	if f.ended {
		return 0
	}
	f.ended = true
	if !f.lines.End() { // cut within a line, which comes again
		f.lines.Unread--
		whole = false
	}
	r, e := f.of, f.entry
	r.mu.Lock()
	defer r.mu.Unlock()
	e.busy--
	e.at = time.Now()
	if whole && !e.done {
		r.finish(e)
	}
	if !e.done && len(e.some) == 0 && e.owner == nil && e.busy == 0 {
		delete(r.of, f.id) // nothing is known of it
		return f.lines.Unread
	}
	r.changed()
	return f.lines.Unread
}

// changed has the register saved soon. It needs the lock.
func (r *Register) changed() {
	if r.unsaved = r.path != ""; !r.unsaved || r.timer != nil {
		return
	}
	r.timer = time.AfterFunc(saveAfter, func() {
		if err := r.Close(); err != nil {
			r.told("which batches have been booked could not be kept", err)
		}
	})
}

// Close saves what has not been saved yet. The register can be used on. Of a nil
// register there is none.
func (r *Register) Close() error {
	if r == nil {
		return nil
	}
	r.saving.Lock()
	defer r.saving.Unlock()
	all, unsaved := r.all()
	if !unsaved {
		return nil
	}
	text, err := json.Marshal(all)
	if err == nil {
		err = wholefile.Replace(r.path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep which batches have been booked: %w", err)
	}
	return nil
}

const hashSize = 8

// kept is an entry in the file.
type kept struct {
	ID    string    `json:"id"`
	At    time.Time `json:"at"`
	Owner *Owner    `json:"owner,omitempty"`
	Done  bool      `json:"booked,omitempty"`
	Some  []byte    `json:"booked_results,omitempty"`
}

func (k kept) entry() *entry {
	e := &entry{at: k.At, owner: k.Owner, done: k.Done}
	if len(k.Some) > 0 && !k.Done {
		e.some = map[uint64]struct{}{}
		for hash := range slices.Chunk(k.Some, hashSize) {
			if len(hash) == hashSize {
				e.some[binary.LittleEndian.Uint64(hash)] = struct{}{}
			}
		}
	}
	return e
}

// all is what is to be saved, the oldest first; unsaved: it has changed since it was.
func (r *Register) all() (all []kept, unsaved bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	unsaved, r.unsaved = r.unsaved, false
	if !unsaved {
		return nil, false
	}
	for id, e := range r.of {
		if time.Since(e.at) > mostAge {
			continue
		}
		k := kept{ID: id, At: e.at.UTC(), Owner: e.owner, Done: e.done}
		for hash := range e.some {
			k.Some = binary.LittleEndian.AppendUint64(k.Some, hash)
		}
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b kept) int { return cmp.Or(a.At.Compare(b.At), strings.Compare(a.ID, b.ID)) })
	return all, true
}
