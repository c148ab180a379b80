package process

import (
	"os"
	"testing"
)

func TestAStatLineIsReadWhateverTheProgramIsCalled(t *testing.T) {
	st, err := parseStat([]byte("4711 (a) b (c)) S 1 4700 4700 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 99887766 2 3\n"))
	if want := (stat{4711, 'S', 4700, 99887766}); err != nil || st != want {
		t.Errorf("got %+v, %v", st, err)
	}
	self, err := readStat(os.Getpid())
	if err != nil || self.pid != os.Getpid() || self.start == 0 || self.ended() {
		t.Errorf("self: %+v, %v", self, err)
	}
	if _, err := readStat(1 << 30); err == nil {
		t.Error("a process that does not exist was read")
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5 2 3"))
	f.Add([]byte(") ("))
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, err := parseStat(b); err == nil && st.state == 0 {
			t.Errorf("%+v", st)
		}
	})
}
