package releases

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func folders(t *testing.T, names ...string) (dir string, paths []string) {
	t.Helper()
	dir = Real(t.TempDir())
	for _, n := range names {
		p := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Join(p, "bin"), 0o700); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	return dir, paths
}

func TestAReleaseIsFoundByNameAndPathAndThroughLinks(t *testing.T) {
	dir, p := folders(t, "1", "2")
	link := filepath.Join(dir, "current")
	if err := os.Symlink(p[1], link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ dir, name, want, says string }{
		{dir, "1", p[0], ""},
		{dir, "current", p[1], ""},
		{"", link, p[1], ""},
		{dir, "3", "", "there is no folder"},
		{dir, "file", "", "it is a file"},
		{"", "1", "", "app.release.dir does not say"},
		{dir, "../1", "", "must be a whole path"},
		{dir, "..", "", "must be a whole path"},
	} {
		got, err := Find(tc.dir, tc.name)
		if got != tc.want || (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s in %s: %s, %v", tc.name, tc.dir, got, err)
		}
	}
}

func TestOnlyOldReleasesThatRanAndAreNotInUseAreRemoved(t *testing.T) {
	dir, p := folders(t, "1", "2", "3", "4", "5", "never-ran")
	elsewhere, q := folders(t, "1")
	ran := []string{p[4], p[3], p[4], "", p[2], q[0], p[1], filepath.Join(p[1], "bin"), p[0], filepath.Join(dir, "gone")}
	removed, err := Prune(dir, 2, ran, []string{p[1]})
	if err != nil || !slices.Equal(removed, []string{p[2], p[0]}) {
		t.Fatalf("removed %v, %v", removed, err)
	}
	for _, left := range []string{p[4], p[3], p[1], p[5], q[0], elsewhere} {
		if _, err := os.Stat(left); err != nil {
			t.Error(err)
		}
	}
}
