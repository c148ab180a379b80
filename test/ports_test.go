package test

import (
	"net"
	"os"
	"strings"
	"testing"
)

// Every address that is taken is named at once, nothing is started, and the exit
// code is that of a wrong configuration.
func TestPortsInUseAreAllNamedAndNothingIsStarted(t *testing.T) {
	var lines []string
	for _, section := range []string{"edge", "admin"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		lines = append(lines, section+": {listen: \""+ln.Addr().String()+"\"}")
	}
	m := setup(t, "")
	mark := m.dir + "-started"
	if err := os.WriteFile(m.file, []byte("data: "+m.dir+"\n"+strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out := m.verb("run", "--", "touch", mark)
	if code != 2 || !strings.Contains(out, "mainstay.yaml:2 edge.listen: 127.0.0.1:") || !strings.Contains(out, "mainstay.yaml:3 admin.listen: 127.0.0.1:") ||
		strings.Count(out, "is in use by another program; stop it, or name another address") != 2 {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the app was started")
	}
}

func TestASecondMainstayWithTheSameDataFolderIsRefused(t *testing.T) {
	m := setup(t, "").start(testapp())
	other := setup(t, "")
	text, err := os.ReadFile(other.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other.file, []byte(strings.Replace(string(text), other.dir, m.dir, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out := other.verb("run", "--", testapp())
	if code != 2 || !strings.Contains(out, "data: another mainstay (pid ") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
