// Package wholefile writes files that are there as a whole or not at all, whatever
// breaks in between. Only the Claude plane may import it.
package wholefile

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace makes text the content of the file at path, readable for its owner only. When
// it returns nil that survives a loss of power.
func Replace(path string, text []byte) (err error) {
	folder := filepath.Dir(path)
	f, err := os.CreateTemp(folder, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // it may be gone already
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
