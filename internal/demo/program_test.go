package demo

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A shell script run as a program. Each life writes a line to the listener, with
// the pids that the test wants to know.
type probe struct {
	program *program
	ln      net.Listener
}

// startScript runs a script that may call `tell WORD…`, which reaches hear.
func startScript(t *testing.T, script string) *probe {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	tell := "port=" + port + `; tell() { exec 3>/dev/tcp/127.0.0.1/$port; echo "$@" >&3; exec 3>&-; }` + "\n"
	p := &program{
		name: "the script", path: "/bin/bash", args: []string{"-c", tell + script}, env: os.Environ(),
		log: filepath.Join(t.TempDir(), "log"), grace: 200 * time.Millisecond,
	}
	t.Cleanup(p.stop)
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	return &probe{p, ln}
}

func (p *probe) hear(t *testing.T) []string {
	t.Helper()
	if err := p.ln.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := p.ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(line)
}

func TestAProgramThatCrashesIsStartedAgain(t *testing.T) {
	p := startScript(t, `tell $$; sleep 1000`)
	first, err := strconv.Atoi(p.hear(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if second := p.hear(t)[0]; second == strconv.Itoa(first) {
		t.Errorf("the second life has the pid of the first, %s", second)
	}
	if p.program.lives() != 1 {
		t.Errorf("counted %d crashes, want 1", p.program.lives())
	}
}

func TestStopEndsAProgramThatIgnoresSIGTERMAndItsChildren(t *testing.T) {
	// Parent and child both hold the connection open as long as they live.
	p := startScript(t, `trap '' TERM; exec 4>/dev/tcp/127.0.0.1/$port; sleep 1000 & echo ready >&4; while true; do wait; done`)
	conn, err := p.ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("heard %q, %v", line, err)
	}
	p.program.stop()
	p.program.stop() // twice is once
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a process lives on: %v", err)
	}
}

func TestAStoppedProgramStartsAnew(t *testing.T) {
	p := startScript(t, `tell life; sleep 1000`)
	p.hear(t)
	if err := p.program.start(); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second start gave %v", err)
	}
	p.program.stop()
	if err := p.program.start(); err != nil {
		t.Fatal(err)
	}
	p.hear(t)
}

func TestTheLastWordsOfAProgramAreItsLastLines(t *testing.T) {
	p := startScript(t, `for n in $(seq 1000); do echo line $n; done; tell done; sleep 1000`)
	p.hear(t)
	if got := p.program.lastWords(); !strings.HasPrefix(got, "line 993\n") || !strings.HasSuffix(got, "line 1000") {
		t.Errorf("got %q", got)
	}
}

func TestACallThatFailsSaysWhatTheProgramSaid(t *testing.T) {
	out, err := call(t.Context(), os.Environ(), "/bin/sh", "-c", "echo fine")
	if err != nil || out != "fine\n" {
		t.Errorf("got %q, %v", out, err)
	}
	_, err = call(t.Context(), os.Environ(), "/bin/sh", "-c", "echo no such color >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3: no such color") {
		t.Errorf("got %v", err)
	}
}

func TestSweepKillsWhatBearsTheMarkerAndNothingElse(t *testing.T) {
	marked, other := startScript(t, `tell $$; sleep 1000`), startScript(t, `tell $$; sleep 1000`)
	marked.hear(t)
	other.hear(t)
	marked.program.stop()
	marked.program.env = append(os.Environ(), "MAINSTAY_DEMO=a-test-of-sweep")
	if err := marked.program.start(); err != nil {
		t.Fatal(err)
	}
	marked.hear(t)
	ended, lives := marked.program.ended(), other.program.ended()
	sweep("MAINSTAY_DEMO=a-test-of-sweep")
	<-ended
	select {
	case <-lives:
		t.Error("a process without the marker was killed")
	default:
	}
}

func TestFreePortsDifferAndAreNotTheKernels(t *testing.T) {
	ports, err := freePorts(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, port := range ports {
		if seen[port] || port < 10240 || port >= 65536 {
			t.Errorf("port %d in %v", port, ports)
		}
		seen[port] = true
		ln, err := net.Listen("tcp", address(port))
		if err != nil {
			t.Error(err)
			continue
		}
		ln.Close()
	}
}
