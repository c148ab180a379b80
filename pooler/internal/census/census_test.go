package census

import (
	"strings"
	"testing"
	"unsafe"
)

func TestThoseOfOneNameShareIt(t *testing.T) {
	var n Names
	first, second := n.Enter(strings.Clone("ada")), n.Enter(strings.Clone("ada"))
	if first != "ada" || unsafe.StringData(first) != unsafe.StringData(second) {
		t.Errorf("%q and %q are not the same copy", first, second)
	}
}

func TestItCountsWhoIsThere(t *testing.T) {
	var n Names
	n.Leave("nobody")
	n.Enter("ada")
	n.Enter("ada")
	n.Enter("")
	n.Leave("ada")
	for name, want := range map[string]int{"ada": 1, "": 1, "nobody": 0} {
		if got := n.Count(name); got != want {
			t.Errorf("%d of %q, want %d", got, name, want)
		}
	}
	n.Leave("ada")
	n.Leave("")
	if n.Count("ada") != 0 || len(n.groups) != 0 {
		t.Errorf("%v is kept of those that have left", n.groups)
	}
}
