// Package census counts who is there by name, and gives all of one name the same copy of it:
// that takes less memory, and such copies are found equal without a look at them.
//
// Only the pooler imports it. The zero value is empty; whoever uses it holds a lock.
package census

// Names counts by names.
type Names struct{ groups map[string]*group }

type group struct {
	name string
	size int
}

// Count is how many have that name.
func (n *Names) Count(name string) int {
	if g := n.groups[name]; g != nil {
		return g.size
	}
	return 0
}

// Enter counts one more, and returns the name as all others have it.
func (n *Names) Enter(name string) string {
	g := n.groups[name]
	if g == nil {
		if n.groups == nil {
			n.groups = map[string]*group{}
		}
		g = &group{name: name}
		n.groups[name] = g
	}
	g.size++
	return g.name
}

// Leave counts one less; one that has not entered is an error of the caller, and does nothing.
func (n *Names) Leave(name string) {
	g := n.groups[name]
	if g == nil {
		return
	}
	if g.size--; g.size == 0 {
		delete(n.groups, name)
	}
}
