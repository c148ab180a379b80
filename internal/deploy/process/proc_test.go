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

func TestListenersAreReadFromTheKernelsTables(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0
   1: 0100007F:1F91 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1002 1 0
   2: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1003 1 0
   3: 0000000000000000FFFF00000100007F:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1004 1 0
   4: nonsense
`
	want := map[string]string{"1001": "127.0.0.1:8080", "1003": "[::1]:3000", "1004": "127.0.0.1:3001"}
	got := parseListeners([]byte(table))
	for _, l := range got {
		if want[l.inode] != l.at.String() {
			t.Errorf("%s: %v", l.inode, l.at)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
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

func FuzzListeners(f *testing.F) {
	f.Add([]byte("0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 1001"))
	f.Add([]byte("0: :1 x 0A 1 1 1 1 1 1\n0: 0100007F:1FFFF x 0A 1 1 1 1 1 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, l := range parseListeners(b) {
			if !l.at.Addr().IsValid() {
				t.Errorf("%+v", l)
			}
		}
	})
}
