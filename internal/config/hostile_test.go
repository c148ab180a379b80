package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A mistake goes to the terminal and the log, so it must not repeat what it is
// about when that may be a secret.
func TestNoMistakeRepeatsASecret(t *testing.T) {
	for _, text := range []string{
		"pooler: {users: {app: 31337}}",
		"pooler: {users: {app: 0x31337}}",
		"telemetry: {headers: {key: 31337}}",
		"telemetry: {headers: {key: [31337]}}",
		"telemetry: {headers: {key: \"${NOT-A-NAME:-x31337}\"}}",
		"telemetry: {headers: {key: \"${UNSET}31337\"}}",
		"telemetry: {headers: {key: \"31337${UNCLOSED\"}}",
		"telemetry: {headers: {key: *x31337}}",
		"telemetry: {export: \"https://key:x31337@host:port\"}",
		"telemetry: {export: \"ftp://key:x31337@host\"}",
		"pooler: {databases: {app: {upstream: \"postgres://u:x31337@h:port/d\"}}}",
		"pooler: {databases: {app: {upstream: \"postgres://u:x31337%zz@h/d\"}}}",
		"pooler: {databases: {app: {upstream: \"mysql://u:x31337@h/d\"}}}",
		"claude: {upstream: \"https://u:x31337@h:port\"}",
		"claude: {upstream: \"ftp://u:x31337@h\"}",
	} {
		_, err := parse(t, text)
		if err == nil {
			t.Errorf("%s: accepted", text)
		} else if strings.Contains(err.Error(), "31337") {
			t.Errorf("%s:\n%v", text, err)
		}
	}
}

func TestAReferenceToWhatIsNoFileIsAMistakeAndNoHang(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no FIFO can be made here: %v", err)
		}
		t.Skipf("no FIFO can be made here: %v", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxSecretFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/dev/zero", dir, big, filepath.Join(dir, "none")} {
		done := make(chan error, 1)
		go func() {
			_, err := parse(t, "service: file:"+path)
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "mainstay.yaml:1 service") {
				t.Errorf("%s: %v", path, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: hangs", path)
		}
	}
}

// A file of some kilobytes must not become gigabytes.
func TestAliasesThatMultiplyAreStopped(t *testing.T) {
	for _, tc := range []struct {
		below   string
		aliases int
		want    string
	}{
		{strings.Repeat("      k: 1\n", 2000), 2000, "has more mistakes than these"},
		{"      requests: 1\n      window: 1s\n", 40_000, "once its aliases are written out"},
	} {
		var b strings.Builder
		b.WriteString("limits:\n  tiers:\n    t: &t\n" + tc.below)
		for i := range tc.aliases {
			fmt.Fprintf(&b, "    u%d: *t\n", i)
		}
		_, err := parse(t, b.String())
		if got := lines(t, err); len(got) > 2*maxMistakes || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%d mistakes, the first: %s", len(got), got[0])
		}
	}
}

func TestAMergeKeyIsNamed(t *testing.T) {
	_, err := parse(t, "edge: &e {drain: 1s}\nadmin:\n  <<: *e\n")
	if want := "mainstay.yaml:3 admin.<<: is a merge key, which is not supported; write the settings out"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
}

func TestTextsThatHoldNothingAreDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# only words\n", "---\n", "---\n...\n", "\ufeff", "~", "null"} {
		if c, err := parse(t, text); err != nil || c.Service != "app" {
			t.Errorf("%q: %v", text, err)
		}
	}
}
