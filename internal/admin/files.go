package admin

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
)

// The files in the data folder by which the command line finds its way in. Both
// are for their owner alone.
const (
	tokenFile   = "admin.token"
	addressFile = "admin.json"
)

// whereabouts is what admin.json says.
type whereabouts struct {
	Address string `json:"address"` // host:port
	PID     int    `json:"pid"`
	Version string `json:"version"`
}

// newSecret returns 32 random bytes as text.
func newSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// wellFormed reports whether s is what newSecret makes. The length is looked at
// first because the decoder skips line ends.
func wellFormed(s string) bool {
	if len(s) != base64.RawURLEncoding.EncodedLen(32) {
		return false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == 32
}

// loadToken reads the token in dir, or makes one if there is none. A token that
// others could read is replaced: it is no secret any more.
func loadToken(dir string, log *slog.Logger) (string, error) {
	path := filepath.Join(dir, tokenFile)
	token, mode, err := readToken(path)
	switch {
	case err == nil && mode&0o077 == 0:
		return token, nil
	case err == nil:
		log.Warn("the admin token could be read by others; a new one is made", "file", path, "mode", mode.String())
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	token = newSecret()
	if err := replace(path, []byte(token+"\n")); err != nil {
		return "", fmt.Errorf("keep the admin token: %w", err)
	}
	return token, nil
}

// readToken reads a token file, which must be a plain file of this user's.
func readToken(path string) (token string, mode fs.FileMode, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", 0, fmt.Errorf("read the admin token: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", 0, fmt.Errorf("read the admin token: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", 0, fmt.Errorf("read the admin token: %s is no plain file; remove it and start again", path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return "", 0, fmt.Errorf("read the admin token: %s belongs to another user; remove it, or use a data folder of your own", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 128))
	if err != nil {
		return "", 0, fmt.Errorf("read the admin token: %w", err)
	}
	token, _ = parseToken(b)
	if token == "" {
		return "", 0, fmt.Errorf("read the admin token: %s holds no token; remove it and start mainstay again", path)
	}
	return token, info.Mode().Perm(), nil
}

// parseToken takes the token out of the file's text.
func parseToken(b []byte) (token string, ok bool) {
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	if !wellFormed(string(b)) {
		return "", false
	}
	return string(b), true
}

// writeAddress tells the command line where to knock.
func writeAddress(dir string, w whereabouts) error {
	b, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("note the admin address: %w", err)
	}
	if err := replace(filepath.Join(dir, addressFile), append(b, '\n')); err != nil {
		return fmt.Errorf("note the admin address: %w", err)
	}
	return nil
}

// replace writes a file of mode 0600 so that it is there whole or not at all.
func replace(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // makes it 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error that counts is err
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
