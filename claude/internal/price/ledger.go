package price

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// An Entry is one call in the books.
type Entry struct {
	Usage
	Color, User, Workspace string
	Nano                   int64 // its cost, in billionths of a dollar
	Unpriced               bool  // the model's price is not known
}

// A Ledger adds up what calls cost. Its methods may be called from many goroutines;
// the zero Ledger is ready.
type Ledger struct {
	mu         sync.Mutex
	began      time.Time
	models     map[[2]string]*Sum // by model and color
	users      map[string]*Sum
	workspaces map[string]*Sum
	unpriced   map[string]int64 // calls, by model
	minutes    [60]minute
}

// A Sum is what some calls came to.
type Sum struct {
	Calls  int64 `json:"calls"`
	Nano   int64 `json:"nano_usd"`
	output int64 // tokens
}

type minute struct {
	at                 int64
	nano               int64
	read, written, raw int64 // input tokens
}

// Bounds on what is told apart; more is counted as other.
const (
	mostModels = 200
	mostNames  = 1000
	other      = "other"
)

// Add books a call; true: it is the first one of a model whose price is not known.
func (l *Ledger) Add(e Entry) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.models == nil {
		l.began = now
		l.models, l.users, l.workspaces, l.unpriced = map[[2]string]*Sum{}, map[string]*Sum{}, map[string]*Sum{}, map[string]int64{}
	}
	if e.Unpriced {
		if _, ok := l.unpriced[e.Model]; !ok && len(l.unpriced) >= mostModels {
			e.Model = other
		}
		l.unpriced[strings.Clone(e.Model)]++
		return l.unpriced[e.Model] == 1
	}
	of := [2]string{e.Model, e.Color}
	if l.models[of] == nil {
		if len(l.models) >= mostModels {
			of = [2]string{other, other}
		}
		of = [2]string{strings.Clone(of[0]), strings.Clone(of[1])}
	}
	book(l.models, of, e.Nano)
	bookName(l.users, e.User, e.Nano)
	bookName(l.workspaces, e.Workspace, e.Nano)
	m := &l.minutes[now.Unix()/60%int64(len(l.minutes))]
	if at := now.Unix() / 60; m.at != at {
		*m = minute{at: at}
	}
	m.nano += e.Nano
	m.read, m.written, m.raw = m.read+e.CacheRead, m.written+e.CacheWrite, m.raw+e.Input
	l.models[of].output += e.Output
	return false
}

// Answer is how many tokens an answer of a model may well come to, when its request
// allows most (0: it does not say): four times what they have come to so far.
func (l *Ledger) Answer(model string, most int64) int64 {
	const unknown, enough, spread = 4096, 5, 4
	if most <= 0 {
		most = unknown
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var calls, output int64
	for of, s := range l.models {
		if of[0] == model {
			calls, output = calls+s.Calls, output+s.output
		}
	}
	if calls < enough {
		return most
	}
	return min(most, spread*output/calls+1)
}

func book[K comparable](in map[K]*Sum, of K, nano int64) {
	s := in[of]
	if s == nil {
		s = &Sum{}
		in[of] = s
	}
	s.Calls++
	s.Nano += nano
}

func bookName(in map[string]*Sum, name string, nano int64) {
	if name == "" {
		return
	}
	if in[name] == nil {
		if len(in) >= mostNames {
			name = other
		}
		name = strings.Clone(name)
	}
	book(in, name, nano)
}

// Books are the books as they stand.
type Books struct {
	Dollars    float64          `json:"usd"` // since the start
	PerHour    float64          `json:"usd_per_hour"`
	Cached     float64          `json:"cache_read_ratio"` // share of the input tokens of the last hour that was read from the prompt cache
	Models     []Line           `json:"models,omitempty"`
	Users      []Line           `json:"users,omitempty"` // those that cost the most, at most 20; likewise workspaces
	Workspaces []Line           `json:"workspaces,omitempty"`
	Unpriced   map[string]int64 `json:"unpriced,omitempty"` // calls to models whose price is not known: they are in no sum
	Prices     string           `json:"prices"`             // the date of the shipped table
}

// A Line is one sum of the books.
type Line struct {
	Name    string  `json:"name"`
	Color   string  `json:"color,omitempty"`
	Calls   int64   `json:"calls"`
	Dollars float64 `json:"usd"`
}

const dollar = 1e9 // billionths

// Books returns how things stand now.
func (l *Ledger) Books() Books {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := Books{Unpriced: maps.Clone(l.unpriced), Prices: Date}
	for of, s := range l.models {
		b.Dollars += float64(s.Nano) / dollar
		b.Models = append(b.Models, Line{Name: of[0], Color: of[1], Calls: s.Calls, Dollars: float64(s.Nano) / dollar})
	}
	sortLines(b.Models)
	b.Users, b.Workspaces = lines(l.users), lines(l.workspaces)
	now := time.Now()
	var hour minute
	for _, m := range l.minutes {
		if now.Unix()/60-m.at < int64(len(l.minutes)) {
			hour.nano, hour.read, hour.written, hour.raw = hour.nano+m.nano, hour.read+m.read, hour.written+m.written, hour.raw+m.raw
		}
	}
	if all := hour.read + hour.written + hour.raw; all > 0 {
		b.Cached = float64(hour.read) / float64(all)
	}
	if hour.nano > 0 {
		span := min(max(now.Sub(l.began), time.Minute), time.Hour)
		b.PerHour = float64(hour.nano) / dollar / span.Hours()
	}
	return b
}

func lines(of map[string]*Sum) []Line {
	all := make([]Line, 0, len(of))
	for name, s := range of {
		all = append(all, Line{Name: name, Calls: s.Calls, Dollars: float64(s.Nano) / dollar})
	}
	sortLines(all)
	const most = 20
	return all[:min(len(all), most)]
}

func sortLines(all []Line) {
	slices.SortFunc(all, func(a, b Line) int {
		return cmp.Or(cmp.Compare(b.Dollars, a.Dollars), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Color, b.Color))
	})
}
