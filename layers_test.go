package mainstay

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "mainstay.dev/mainstay"

// layer gives each package its height; it is also the map of the house. A package
// may import only packages that are strictly lower, and its own parents. A
// sub-package that is not named here has its parent's height, except one whose
// name ends in "test", which is a harness (1). Anything else must have a line.
var layer = map[string]int{
	// L0: mechanism; public but for internal; knows no plane.
	"internal/setting": -1, // what config structs are made of: below even the mechanisms
	"telemetry":        0, "retry": 0, "ratelimit": 0, "cache": 0, "health": 0, "identity": 0, "capacity": 0,
	"internal/lifecycle": 0, "internal/traffic": 0, "internal/deadline": 0,

	// L1: policy that planes share, proof tools, harnesses.
	"internal/limits": 1, "chaos": 1, "load": 1,

	// L2: the planes and their peers. These siblings never import one another.
	"edge": 2, "pooler": 2, "claude": 2,
	"internal/deploy": 2, "internal/monitor": 2, "internal/calls": 2, "internal/assess": 2,

	"internal/admin":  3, // the private listener
	"internal/local":  3, // the app's own listener
	"internal/config": 4, // the file; imported by app and cmd alone
	"internal/app":    5, // composition root
	"internal/demo":   5,
	"cmd/mainstay":    6,
	"test":            7, // end to end: the built binary from outside
	"bench":           7,
}

// never lists imports that height would allow, each with the reason against it.
var never = map[[2]string]string{
	{"edge", "chaos"}:                    "a plane must not be able to hurt itself",
	{"pooler", "chaos"}:                  "a plane must not be able to hurt itself",
	{"claude", "chaos"}:                  "a plane must not be able to hurt itself",
	{"internal/demo", "edge"}:            "proof judges over the network",
	{"internal/demo", "pooler"}:          "proof judges over the network",
	{"internal/demo", "claude"}:          "proof judges over the network",
	{"internal/local", "edge"}:           "the door sees planes through what app gives it",
	{"internal/admin", "edge"}:           "admin sees planes through what app gives it",
	{"internal/admin", "pooler"}:         "admin sees planes through what app gives it",
	{"internal/admin", "claude"}:         "admin sees planes through what app gives it",
	{"internal/demo", "internal/config"}: "the file is for app and cmd alone",
}

// height finds a package's layer by its own line or its nearest parent's.
func height(pkg string) (int, bool) {
	for p := pkg; ; {
		if h, ok := layer[p]; ok {
			return h, true
		}
		i := strings.LastIndexByte(p, '/')
		if strings.HasSuffix(p, "test") {
			return 1, true
		}
		if i < 0 {
			return 0, false
		}
		p = p[:i]
	}
}

func TestImportsPointDown(t *testing.T) {
	dec := json.NewDecoder(strings.NewReader(goList(t)))
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if p.ImportPath == module {
			continue
		}
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		h, ok := height(from)
		if !ok {
			t.Errorf("%s: give it a layer in layers_test.go", from)
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			if lower, _ := height(to); lower >= h && !strings.HasPrefix(from, to+"/") && !internalOf(from, to) {
				t.Errorf("%s (layer %d) imports %s (layer %d)", from, h, to, lower)
			}
			if why, bad := never[[2]string{from, to}]; bad {
				t.Errorf("%s imports %s: %s", from, to, why)
			}
		}
	}
}

// internalOf reports whether to is a part that belongs to from's own plane
// (pooler/internal/pgwire below pooler).
func internalOf(from, to string) bool {
	plane, _, ok := strings.Cut(to, "/internal/")
	return ok && (from == plane || strings.HasPrefix(from, plane+"/"))
}

func goList(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
