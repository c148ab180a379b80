package limits

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"slices"
	"sync"
	"time"
)

// The bounds of what nodes tell one another of who is near a limit.
const (
	toldCallers = 50               // by each node
	toldBytes   = 64 << 10         // of each node that are read
	toldNodes   = 64               // that are listened to
	toldFor     = 15 * time.Second // after a node was last heard of
)

// fellows are the other nodes that share the limits, by what they have told last of
// who is near a limit there.
type fellows struct {
	mu   sync.Mutex
	self string // this node's name among them, made when it is first needed
	turn uint64
	by   map[string]*fellow
}

type fellow struct {
	said  report
	heard time.Time // when it said something new
}

// A report is what a node puts on the board. Its turn shows that it lives, so that no
// two clocks have to agree.
type report struct {
	Turn uint64 `json:"turn"`
	Top  []told `json:"top"`
}

type told struct {
	Standing
	Ago time.Duration `json:"ago_ns"` // in place of Seen, which is by the node's clock
}

// shareTop tells the other nodes who is near a limit here, and hears of theirs. While
// the board does not answer, everybody knows of itself alone, a few seconds later.
func (g *Gate) shareTop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, boardLimit)
	defer cancel()
	now, r := time.Now(), report{Top: []told{}}
	for _, s := range g.Top(toldCallers) {
		s.Key, s.Workspace = clip(s.Key), clip(s.Workspace)
		r.Top = append(r.Top, told{s, now.Sub(s.Seen)})
	}
	self := g.fellows.next(&r)
	text, _ := json.Marshal(r) // text, numbers and times: cannot fail
	if g.deps.Board.PutTop(ctx, self, text) != nil {
		return
	}
	all, err := g.deps.Board.Tops(ctx)
	if err != nil {
		return
	}
	for _, gone := range g.fellows.hear(all, now) {
		_ = g.deps.Board.PutTop(ctx, gone, nil) // whoever comes next tries again
	}
}

// withdrawTop takes this node's report off the board.
func (g *Gate) withdrawTop(ctx context.Context) {
	if self := g.fellows.name(); g.deps.Board != nil && self != "" {
		ctx, cancel := context.WithTimeout(ctx, boardLimit)
		defer cancel()
		_ = g.deps.Board.PutTop(ctx, self, nil) // else the others find out by themselves
	}
}

func (f *fellows) name() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.self
}

func (f *fellows) next(r *report) (self string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.self == "" {
		f.self = rand.Text()
	}
	f.turn++
	r.Turn = f.turn
	return f.self
}

// hear takes over what others have told, and returns those who have been silent for
// so long that what they told can go.
func (f *fellows) hear(all map[string][]byte, now time.Time) (gone []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	by := map[string]*fellow{}
	for node, text := range all {
		if node == f.self || len(text) > toldBytes || len(by) >= toldNodes {
			continue
		}
		var r report
		if json.Unmarshal(text, &r) != nil || len(r.Top) > toldCallers {
			continue
		}
		old := f.by[node]
		switch {
		case old == nil || old.said.Turn != r.Turn:
			by[node] = &fellow{r, now}
		case now.Sub(old.heard) > 4*toldFor:
			gone = append(gone, node)
		default:
			by[node] = old
		}
	}
	f.by = by
	return gone
}

// join puts what is known of other nodes beside this one's top, and returns the n
// nearest to their limits and how many nodes they are from. Of one caller the latest
// look counts, and the refusals of all nodes.
func (f *fellows) join(own []Standing, n int, now time.Time) (top []Standing, nodes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	by := map[string]Standing{}
	for _, s := range own {
		by[s.Key] = s
	}
	nodes = 1
	for _, other := range f.by {
		if now.Sub(other.heard) > toldFor {
			continue
		}
		nodes++
		for _, t := range other.said.Top {
			s := t.Standing
			s.Seen = other.heard.Add(-max(t.Ago, 0))
			known, ok := by[s.Key]
			refused := s.Refused + known.Refused
			if ok && known.Seen.After(s.Seen) {
				s = known
			}
			s.Refused = refused
			by[s.Key] = s
		}
	}
	top = make([]Standing, 0, len(by))
	for _, s := range by {
		top = append(top, s)
	}
	slices.SortFunc(top, nearest)
	return top[:min(n, len(top))], nodes
}

// nearest orders callers by how near they are to a limit.
func nearest(a, b Standing) int {
	return cmp.Or(cmp.Compare(b.Used, a.Used), cmp.Compare(b.Refused, a.Refused), cmp.Compare(a.Key, b.Key))
}
