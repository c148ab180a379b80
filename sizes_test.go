package mainstay

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// The limits that keep a reader's way short. A file or function that needs more
// has a seam somewhere.
const (
	maxFileLines     = 500
	maxFunctionLines = 70
	maxPackageFiles  = 15
)

// roomier are packages that need more files, with how many and why.
var roomier = map[string]int{
	"pooler": 25, // one session, told in steps by two lanes: docs/decisions/0004-a-session-in-twenty-files.md
}

func TestNothingGrowsBeyondWhatAReaderCanHold(t *testing.T) {
	files := map[string]int{}
	documented := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "testdata" || name == "bin" || name == "build") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if n := fset.File(f.Pos()).LineCount(); n > maxFileLines {
			t.Errorf("%s has %d lines, more than %d", path, n, maxFileLines)
		}
		if strings.HasSuffix(path, "_test.go") {
			return nil
		}
		dir := filepath.Dir(path)
		files[dir]++
		documented[dir] = documented[dir] || f.Doc != nil
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > maxFunctionLines {
				t.Errorf("%s: %s has %d lines, more than %d", path, fn.Name.Name, n, maxFunctionLines)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, n := range files {
		if most := max(maxPackageFiles, roomier[dir]); n > most {
			t.Errorf("%s has %d files, more than %d", dir, n, most)
		}
		if !documented[dir] {
			t.Errorf("%s has no package comment", dir)
		}
	}
}
