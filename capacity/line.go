package capacity

import "container/list"

// line is the queue of one class: tenants take turns, and the work of one tenant
// keeps its order.
type line struct {
	tenants map[string]*tenant
	turns   list.List // of *tenant, the next one in front
	waiting int
	sizes   []int // how many tenants have so much waiting
	most    int   // that a tenant has
}

type tenant struct {
	name  string
	works list.List // of *place
	turn  *list.Element
}

// place is one that waits. Its turn comes once: with a Pass, or with the zero Pass
// if it is shed.
type place struct {
	work   Work
	tenant *tenant
	at     *list.Element
	turn   chan Pass
}

func (l *line) add(w Work) *place {
	t := l.tenants[w.Tenant]
	if t == nil {
		if l.tenants == nil {
			l.tenants = map[string]*tenant{}
		}
		t = &tenant{name: w.Tenant}
		l.tenants[w.Tenant] = t
		t.turn = l.turns.PushBack(t)
	}
	p := &place{work: w, tenant: t, turn: make(chan Pass, 1)}
	p.at = t.works.PushBack(p)
	l.waiting++
	l.resized(t.works.Len()-1, t.works.Len())
	return p
}

func (l *line) remove(p *place) {
	t := p.tenant
	t.works.Remove(p.at)
	l.waiting--
	l.resized(t.works.Len()+1, t.works.Len())
	if t.works.Len() == 0 {
		l.turns.Remove(t.turn)
		delete(l.tenants, t.name)
	}
}

// resized keeps count of how much the tenants have waiting.
func (l *line) resized(from, to int) {
	for len(l.sizes) <= max(from, to) {
		l.sizes = append(l.sizes, 0)
	}
	if from > 0 {
		l.sizes[from]--
	}
	if to > 0 {
		l.sizes[to]++
	}
	l.most = max(l.most, to)
	for l.most > 0 && l.sizes[l.most] == 0 {
		l.most--
	}
}

// next takes the first work of the tenant whose turn it is, of those that may; nil:
// none may. Few tenants can flood at once, so that it looks at few.
func (l *line) next(may func(*Work) bool) *place {
	for e := l.turns.Front(); e != nil; e = e.Next() {
		t := e.Value.(*tenant)
		p := t.works.Front().Value.(*place)
		if !may(&p.work) {
			continue
		}
		l.turns.MoveToBack(t.turn)
		l.remove(p)
		return p
	}
	return nil
}

// of is how much a tenant has waiting.
func (l *line) of(name string) int {
	if t := l.tenants[name]; t != nil {
		return t.works.Len()
	}
	return 0
}

// longest is the last work of a tenant who has the most waiting, if that is more
// than above.
func (l *line) longest(above int) *place {
	if l.most <= above {
		return nil
	}
	for e := l.turns.Back(); e != nil; e = e.Prev() {
		if t := e.Value.(*tenant); t.works.Len() == l.most {
			return t.works.Back().Value.(*place)
		}
	}
	return nil
}
