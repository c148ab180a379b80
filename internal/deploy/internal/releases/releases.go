// Package releases knows the folders that releases of the app run from. It is
// deploy's own.
package releases

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Find returns the folder that name means: a whole path, or the name of a folder
// in dir, which may be empty. A symbolic link, such as current, is followed now, so
// that the release stays what it is when the link moves on.
func Find(dir, name string) (string, error) {
	switch {
	case filepath.IsAbs(name):
	case strings.ContainsRune(name, filepath.Separator) || name == "." || name == "..":
		return "", fmt.Errorf("%s must be a whole path, or the name of a folder in app.release.dir", name)
	case dir == "":
		return "", fmt.Errorf("%s is only a name, and app.release.dir does not say where releases are; give a whole path", name)
	default:
		name = filepath.Join(dir, name)
	}
	folder, err := filepath.EvalSymlinks(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no folder %s", name)
	}
	if err != nil {
		return "", fmt.Errorf("%s cannot be run from: %w", name, err)
	}
	info, err := os.Stat(folder)
	if err == nil && !info.IsDir() {
		err = errors.New("it is a file")
	}
	if err != nil {
		return "", fmt.Errorf("%s cannot be run from: %w", name, err)
	}
	return folder, nil
}

// Real is the folder that path means now; path itself if it means none.
func Real(path string) string {
	if folder, err := filepath.EvalSymlinks(path); err == nil {
		return folder
	}
	return path
}

// Prune removes the folders directly in dir that releases ran from, newest first,
// but the newest keep of them and those in use. What never ran, and what is
// elsewhere, is nobody's to remove.
func Prune(dir string, keep int, ran, inUse []string) (removed []string, err error) {
	dir = Real(dir)
	seen := map[string]bool{}
	var errs []error
	for _, folder := range ran {
		if folder == "" || seen[folder] || filepath.Dir(folder) != dir {
			continue
		}
		info, err := os.Lstat(folder)
		if err != nil || !info.IsDir() {
			continue
		}
		seen[folder] = true
		if len(seen) <= keep || slices.Contains(inUse, folder) {
			continue
		}
		if err := os.RemoveAll(folder); err != nil {
			errs = append(errs, fmt.Errorf("remove the old release %s: %w", folder, err))
			continue
		}
		removed = append(removed, folder)
	}
	return removed, errors.Join(errs...)
}
