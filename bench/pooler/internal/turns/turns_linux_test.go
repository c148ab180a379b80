package turns

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// reply makes a message of the server's.
func reply(kind byte, body string) []byte {
	w := writer{}
	at := w.begin(kind)
	w.buf = append(w.buf, body...)
	w.end(at)
	return w.buf
}

// whole is what a server answers to the extended protocol.
var whole = bytes.Join([][]byte{
	reply('1', ""), reply('2', ""), reply('N', "SNOTICE\x00Mhm\x00\x00"),
	reply('T', "\x00\x01abalance\x00"+strings.Repeat("x", 18)),
	reply('D', "\x00\x01\x00\x00\x00\x015"), reply('C', "SELECT 1\x00"), reply('Z', "I"),
}, nil)

func TestMessagesAreWalkedHoweverTheyAreRead(t *testing.T) {
	for first := range len(whole) {
		for _, step := range []int{1, 3, len(whole)} {
			c := client{busy: true}
			done := false
			for from, to := 0, first; from < len(whole); from, to = to, min(to+step, len(whole)) {
				if done {
					t.Fatalf("done after %d bytes of %d", from, len(whole))
				}
				var err error
				if done, err = c.walk(append(slices.Clone(c.rest), whole[from:to]...)); err != nil {
					t.Fatal(err)
				}
			}
			if !done || c.busy || len(c.rest) != 0 {
				t.Fatalf("read from %d in steps of %d: done %v, busy %v, rest %q", first, step, done, c.busy, c.rest)
			}
		}
	}
}

func TestAnAnswerThatIsNotTheRowIsAnError(t *testing.T) {
	ready := reply('Z', "I")
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"an error":          {reply('E', "SERROR\x00C26000\x00Mno such statement\x00\x00"), "ERROR 26000: no such statement"},
		"no row":            {slices.Concat(reply('C', "SELECT 0\x00"), ready), "0 rows"},
		"a null":            {reply('D', "\x00\x01\xff\xff\xff\xff\x00"), "one column"},
		"two columns":       {reply('D', "\x00\x02\x00\x00\x00\x015\x00\x00\x00\x015"), "one column"},
		"not complete":      {slices.Concat(reply('D', "\x00\x01\x00\x00\x00\x015"), ready), "complete: false"},
		"in a transaction":  {reply('Z', "T"), `state "T"`},
		"an unknown one":    {reply('G', ""), "was not asked for"},
		"a length too much": {[]byte{'D', 0xff, 0, 0, 0}, "none of PostgreSQL's"},
		"a length of three": {[]byte{'D', 0, 0, 0, 3}, "none of PostgreSQL's"},
		"one answer more":   {slices.Concat(whole, whole), "nothing was asked"},
	} {
		cl := client{busy: true}
		if _, err := cl.walk(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestTransactionsAreWholeMessages(t *testing.T) {
	for protocol, want := range map[string]string{"simple": "Q", "extended": "PBDES", "prepared": "BDES"} {
		w := writer{protocol: protocol, sampled: -1, random: rand.New(rand.NewPCG(1, 1))}
		for range 100 {
			kinds := ""
			for data := w.transaction(); len(data) > 0; {
				m, rest, whole, err := next(data)
				if !whole || err != nil {
					t.Fatalf("%s: %q is no message: %v", protocol, data, err)
				}
				kinds, data = kinds+string(m.kind), rest
			}
			if kinds != want {
				t.Fatalf("%s: %s, want %s", protocol, kinds, want)
			}
		}
	}
}

func TestOneInTenIsSampledAndEachTraceIsAnother(t *testing.T) {
	w := writer{protocol: "simple", sampled: .1, random: rand.New(rand.NewPCG(1, 1))}
	traces, sampled := map[string]bool{}, 0
	const n = 10_000
	for range n {
		q := string(w.transaction())
		at := strings.Index(q, "'00-")
		if at < 0 || len(q) < at+57 || !strings.HasSuffix(q, "'*/;\x00") {
			t.Fatalf("%q has no traceparent", q)
		}
		traces[q[at+4:at+36]] = true
		if q[at+54:at+56] == "01" {
			sampled++
		}
	}
	if len(traces) != n || sampled < n/10-150 || sampled > n/10+150 {
		t.Errorf("%d traces and %d sampled of %d", len(traces), sampled, n)
	}
}

func TestWhatIsDueLateCountsFromWhenItWasDue(t *testing.T) {
	const rate, length = 5000, time.Second
	s := newSchedule(rate, length, 7)
	if _, ok := s.take(0); ok {
		t.Error("one is due at once")
	}
	var all []time.Duration
	late := length + time.Minute // no connection was free
	for {
		due, ok := s.take(late)
		if !ok {
			break
		}
		all = append(all, due)
	}
	if !s.over(late) || !slices.IsSorted(all) || all[len(all)-1] >= length {
		t.Errorf("the last of %d is due at %v", len(all), all[len(all)-1])
	}
	if len(all) < rate-300 || len(all) > rate+300 {
		t.Errorf("%d are due in a second at a rate of %d", len(all), rate)
	}
	again := newSchedule(rate, length, 7)
	if due, ok := again.take(length); !ok || due != all[0] {
		t.Error("another subject of the same round has other times")
	}
	if wait, want := again.wait(all[1]-time.Microsecond, patienceOfTest), time.Microsecond; wait != want {
		t.Errorf("waits %v for the next, want %v", wait, want)
	}
}

const patienceOfTest = time.Minute

func TestAtFullSpeedOneIsDueAsLongAsTheSliceLasts(t *testing.T) {
	s := newSchedule(0, time.Second, 0)
	if due, ok := s.take(time.Millisecond); !ok || due != time.Millisecond {
		t.Errorf("due at %v, %v", due, ok)
	}
	if _, ok := s.take(time.Second); ok || !s.over(time.Second) {
		t.Error("one is due when the slice is over")
	}
	if wait := s.wait(0, patienceOfTest); wait != patienceOfTest {
		t.Errorf("waits %v, though answers are all there is to wait for", wait)
	}
}

func TestNobodyAlwaysComesBehindTheSameOne(t *testing.T) {
	const n = 4
	first, behind := map[int]int{}, map[[2]int]int{}
	for round := range 2 * n * 3 {
		all := order(n, round)
		if sorted := slices.Sorted(slices.Values(all)); !slices.Equal(sorted, []int{0, 1, 2, 3}) {
			t.Fatalf("round %d: %v", round, all)
		}
		first[all[0]]++
		for i := range n - 1 {
			behind[[2]int{all[i], all[i+1]}]++
		}
	}
	for i := range n {
		if there, back := behind[[2]int{i, (i + 1) % n}], behind[[2]int{(i + 1) % n, i}]; first[i] != 6 || there != 9 || back != 9 {
			t.Errorf("%d: first %d times, before its neighbour %d, behind it %d", i, first[i], there, back)
		}
	}
}

func TestAPlanThatIsNoneIsRefused(t *testing.T) {
	if err := Serve(strings.NewReader("hello"), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "read the plan") {
		t.Error(err)
	}
}
