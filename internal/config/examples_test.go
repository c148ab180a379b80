package config

import (
	"path/filepath"
	"testing"
)

func TestTheExamplesOfIdentityAreRight(t *testing.T) {
	files, err := filepath.Glob("../../examples/identity/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%v %v", files, err)
	}
	for _, f := range files {
		c, err := Load(f, func(name string) (string, bool) { return "name.example.com", true })
		if err != nil {
			t.Error(err)
			continue
		}
		if !c.Given("identity") || !c.Given("limits") {
			t.Errorf("%s has no identity or no limits", f)
		}
	}
}
