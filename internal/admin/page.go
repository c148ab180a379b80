package admin

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"time"
)

// The dashboard: files as they are, no build step, nothing from elsewhere.
//
//go:embed ui
var ui embed.FS

// page serves the dashboard's files, which hold nothing private: what is shown
// comes from the API.
type page map[string]asset // by URL path

type asset struct {
	content []byte
	kind    string
	tag     string
}

// kinds does not ask the system, whose tables differ and can be wrong.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

func newPage() (page, error) {
	p := page{}
	err := fs.WalkDir(ui, "ui", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := ui.ReadFile(name)
		if err != nil {
			return err
		}
		at := "/assets/" + path.Base(name)
		if path.Base(name) == "index.html" {
			at = "/"
		}
		sum := sha256.Sum256(content)
		p[at] = asset{content, kinds[path.Ext(name)], `"` + hex.EncodeToString(sum[:8]) + `"`}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the dashboard's files: %w", err)
	}
	return p, nil
}

func (p page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, ok := p[r.URL.Path]
	if !ok {
		problem(http.StatusNotFound, "there is no "+clip(r.URL.Path)+" here", "").answer(w)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Cache-Control", "no-cache") // asks every time, gets 304
	w.Header().Set("ETag", a.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.content))
}
