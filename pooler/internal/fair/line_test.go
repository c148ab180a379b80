package fair

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// equal lets everybody have as much.
func equal(string) Share { return Share{} }

// crowd puts n places of a user into the line.
func crowd(l *Line[string], user string, n int) {
	for range n {
		l.Join(&Place[string]{Value: user}, user)
	}
}

// ahead counts the leases that others get before user gets one, while every lease
// ends before the next begins, as with one server.
func ahead(t *testing.T, l *Line[string], user string, again func(string)) int {
	t.Helper()
	for n := range 10_000 {
		p := l.Give()
		if p == nil {
			t.Fatal("nobody is served")
		}
		l.Return(p.Value)
		if p.Value == user {
			return n
		}
		again(p.Value)
	}
	t.Fatal("starved")
	return 0
}

func TestAnAdversaryWithManyClientsDelaysAVictimByOneLease(t *testing.T) {
	for _, clients := range []int{1, 10, 1000} {
		l := New[string](1, equal, nil)
		crowd(l, "adversary", clients)
		back := func(user string) { crowd(l, user, 1) } // each client comes back at once
		for range 50 {
			crowd(l, "victim", 1)
			if n := ahead(t, l, "victim", back); n > 1 {
				t.Fatalf("%d clients of another user: %d leases granted ahead of the victim's", clients, n)
			}
		}
	}
}

func TestTheWaitGrowsWithUsersNotWithClients(t *testing.T) {
	l := New[string](1, equal, nil)
	for u := range 20 {
		crowd(l, fmt.Sprint("user", u), 100)
	}
	back := func(user string) { crowd(l, user, 1) }
	for range 30 {
		crowd(l, "victim", 1)
		if n := ahead(t, l, "victim", back); n > 20 {
			t.Fatalf("%d leases granted ahead, with 20 other users", n)
		}
	}
}

// A shape of time: leases end in random order, and the victim's share is counted.
func TestEqualUsersGetEqualShares(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	l := New[string](10, equal, nil)
	crowd(l, "many", 500)
	crowd(l, "few", 20)
	var busy []string
	served := map[string]int{}
	for range 5000 {
		for p := l.Give(); p != nil; p = l.Give() {
			busy = append(busy, p.Value)
			served[p.Value]++
		}
		i := random.IntN(len(busy))
		user := busy[i]
		busy[i] = busy[len(busy)-1]
		busy = busy[:len(busy)-1]
		l.Return(user)
		crowd(l, user, 1)
	}
	if d := served["many"] - served["few"]; d < -100 || d > 100 {
		t.Errorf("served %v", served)
	}
}

func TestWeightsShareServersInProportion(t *testing.T) {
	l := New[string](9, func(u string) Share { return Share{Weight: map[string]int{"heavy": 2}[u]} }, nil)
	crowd(l, "light", 50)
	crowd(l, "heavy", 50)
	for p := l.Give(); p != nil; p = l.Give() {
	}
	if l.Held("heavy") != 6 || l.Held("light") != 3 {
		t.Errorf("heavy has %d, light %d", l.Held("heavy"), l.Held("light"))
	}
}

func TestAGuaranteeIsKeptFreeAndCapsHold(t *testing.T) {
	shares := map[string]Share{"vip": {Min: 2}, "capped": {Max: 3}}
	l := New[string](10, func(u string) Share { return shares[u] }, []string{"vip"})
	for range 12 {
		l.Take("greedy")
	}
	if l.Held("greedy") != 8 {
		t.Errorf("others have %d of 10, and 2 are kept", l.Held("greedy"))
	}
	crowd(l, "greedy", 5)
	if l.Give() != nil {
		t.Error("a kept server was given away")
	}
	for i := range 3 {
		if got := l.Take("vip"); got != (i < 2) {
			t.Errorf("lease %d of the guaranteed two: %v", i+1, got)
		}
	}
	for range 8 {
		l.Return("greedy")
	}
	for range 5 {
		l.Take("capped")
	}
	if l.Held("capped") != 3 {
		t.Errorf("the capped user has %d", l.Held("capped"))
	}
	crowd(l, "capped", 4)
	if n := l.Wanted(); n != 5 { // greedy's five and none of the capped one's
		t.Errorf("%d servers are wanted", n)
	}
}

func TestPriorityGoesFirst(t *testing.T) {
	l := New[string](1, func(u string) Share { return Share{Priority: map[string]int{"web": 1}[u]} }, nil)
	crowd(l, "batch", 3)
	crowd(l, "web", 2)
	var order []string
	for p := l.Give(); p != nil; p = l.Give() {
		order = append(order, p.Value)
		l.Return(p.Value)
	}
	if got := fmt.Sprint(order); got != "[web web batch batch batch]" {
		t.Error(got)
	}
}

func TestTheLongestWaitIsFoundAndLeavingIsClean(t *testing.T) {
	l := New[int](1, equal, nil)
	at := time.Unix(1000, 0)
	places := make([]*Place[int], 6)
	for i := range places {
		places[i] = &Place[int]{Value: i, Since: at.Add(-time.Duration(i) * time.Second)}
		l.Join(places[i], fmt.Sprint("u", i%3))
	}
	if got := l.Oldest().Value; got != 2 { // heads are 0, 1 and 2
		t.Errorf("oldest is %d", got)
	}
	for _, i := range []int{2, 3, 0, 5, 4} {
		l.Leave(places[i])
		l.Leave(places[i]) // a second time does nothing
	}
	if p := l.Give(); p != places[1] || l.Waiting() != 0 || l.Give() != nil {
		t.Error("the last one is not served, or others are left")
	}
	l.Return("u1")
	for i := range 2 * remembered {
		l.Take(fmt.Sprint("x", i))
		l.Return(fmt.Sprint("x", i))
	}
	if len(l.accounts) > remembered+1 {
		t.Errorf("%d accounts are left", len(l.accounts))
	}
}

// Whatever happens, the books are right: leases within size and caps, the kept
// servers kept, and nobody waits who may be served.
func FuzzTheBooksAreRight(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	f.Add([]byte("joins and leaves, takes and gives"))
	f.Fuzz(func(t *testing.T, script []byte) {
		shares := map[string]Share{"a": {Min: 2, Max: 3}, "b": {Max: 2, Priority: 1}, "c": {Weight: 3}}
		l := New[string](4, func(u string) Share { return shares[u] }, []string{"a"})
		held := map[string]int{}
		var places []*Place[string]
		for _, op := range script {
			user := []string{"a", "b", "c", "d"}[op%4]
			switch op / 4 % 5 {
			case 0:
				if l.Take(user) {
					held[user]++
				}
			case 1:
				p := &Place[string]{Value: user}
				l.Join(p, user)
				places = append(places, p)
			case 2:
				if p := l.Give(); p != nil {
					held[p.Value]++
				}
			case 3:
				if held[user] > 0 {
					held[user]--
					l.Return(user)
				}
			case 4:
				if len(places) > 0 {
					l.Leave(places[int(op)%len(places)])
				}
			}
			total := 0
			for u, n := range held {
				total += n
				if l.Held(u) != n || shares[u].Max > 0 && n > shares[u].Max {
					t.Fatalf("%s holds %d, booked %d", u, n, l.Held(u))
				}
			}
			if total > 4 || total > held["a"] && total+max(0, 2-held["a"]) > 4 {
				t.Fatalf("too many leases: %v", held)
			}
			waiting := 0
			l.Each(func(*Place[string]) bool { waiting++; return true })
			if waiting != l.Waiting() {
				t.Fatalf("%d wait, %d counted", waiting, l.Waiting())
			}
		}
	})
}

func BenchmarkGiveAmongAThousandUsers(b *testing.B) {
	l := New[string](1, equal, nil)
	for u := range 1000 {
		crowd(l, fmt.Sprint("user", u), 2)
	}
	b.ReportAllocs()
	for b.Loop() {
		p := l.Give()
		user := p.Value
		l.Return(user)
		l.Join(p, user)
	}
}

// What a user holds counts, also if nobody remembered the user when it came.
func TestAUserWhoWasForgottenIsKeptAccountOfAgain(t *testing.T) {
	l := New[string](2, func(string) Share { return Share{Max: 1} }, nil)
	for i := range 2 * remembered { // from here on each is forgotten at once
		user := fmt.Sprint("u", i)
		l.Take(user)
		l.Return(user)
	}
	for range 2 {
		if !l.Take("late") {
			t.Fatal("the first server is refused")
		}
		if l.Take("somebody"); l.Held("late") != 1 || l.Take("late") {
			t.Fatalf("%d held of 1", l.Held("late"))
		}
		l.Return("somebody")
		l.Return("late")
	}
}
