package app

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

// wireIdentity makes the desk at which the planes ask who a caller is.
func (a *App) wireIdentity(res *Resolved) error {
	secret, err := loadSecret(filepath.Join(res.Data, "identity.secret"))
	if err != nil {
		return err
	}
	a.identity, err = identity.New(res.Identity, identity.Deps{Secret: secret, Dir: res.Data, Notice: a.noticeOf("identity")})
	var ps setting.Problems
	ps.Below("identity", setting.Of(err))
	return res.Locate(ps)
}

// loadSecret reads a secret of this installation's own, or makes it: what was
// sealed before a restart can be opened after it.
func loadSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		b = []byte(rand.Text() + rand.Text())
		return b, writeState(path, b)
	case err != nil:
		return nil, fmt.Errorf("read the secret of identities: %w", err)
	case len(b) < 32:
		return nil, fmt.Errorf("%s is damaged; remove it", path)
	}
	return b, nil
}

// identityLevels are the desk's counts as metrics.
func (a *App) identityLevels() []telemetry.Level {
	s := a.identity.Stats()
	count := func(name, help string, value uint64, label, of string) telemetry.Level {
		l := telemetry.Level{Name: "mainstay_identity_" + name + "_total", Help: help, Value: float64(value), Counter: true}
		if label != "" {
			l.Labels = []telemetry.Label{{Name: label, Value: of}}
		}
		return l
	}
	var ls []telemetry.Level
	for _, source := range identity.Sources {
		ls = append(ls, count("callers", "Requests by what vouches for the user; address: nothing does.", s.Callers[source], "by", string(source)))
	}
	for _, reason := range identity.Reasons {
		ls = append(ls, count("refused", "Credentials that were not believed.", s.Refused[reason], "reason", string(reason)))
	}
	return append(ls,
		count("verified", "Credentials that were looked at anew; the others were known.", s.Verified, "", ""),
		count("key_fetches", "Fetches of the issuer's key set.", s.Fetches, "", ""),
		count("key_fetches_failed", "Fetches of the issuer's key set that failed.", s.Failures, "", ""),
		telemetry.Level{Name: "mainstay_identity_keys", Help: "Keys of the issuer's set in force.", Value: float64(s.Keys)},
		telemetry.Level{Name: "mainstay_identity_known", Help: "Credentials that are known and need no look.", Value: float64(s.Memory)})
}
