package app

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler"
)

// colors are the two copies of the app that take turns.
var colors = []string{"blue", "green"}

// credentials are what each color shows to the pooler. They are kept in a file,
// so that a copy of the app that outlives Mainstay can go on with the ones it has.
type credentials map[string]setting.Secret

// loadCredentials reads the file in dir, or makes it with fresh secrets.
func loadCredentials(dir string) (credentials, error) {
	path := filepath.Join(dir, "credentials.json")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the colors' credentials: %w", err)
	}
	plain := map[string]string{}
	if err == nil {
		if err := json.Unmarshal(b, &plain); err != nil {
			return nil, fmt.Errorf("%s is damaged: %w; remove it, and copies of the app that still run must be restarted", path, err)
		}
	}
	changed := false
	c := credentials{}
	for _, color := range colors {
		if plain[color] == "" {
			plain[color], changed = rand.Text(), true
		}
		c[color] = setting.Secret(plain[color])
	}
	if !changed {
		return c, nil
	}
	if b, err = json.Marshal(plain); err != nil {
		return nil, err
	}
	return c, writeState(path, b)
}

// writeState replaces a file whole or not at all: temporary file, fsync, rename,
// fsync of the folder.
func writeState(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already if all went well
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path) // CreateTemp made it 0600
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer d.Close()
	return d.Sync()
}

// grants are the pooler's users for the colors.
func (c credentials) grants(database string) (gs []pooler.Grant) {
	if database == "" {
		return nil
	}
	for _, color := range colors {
		gs = append(gs, pooler.Grant{User: color, Secret: c[color], Database: database, Color: color})
	}
	return gs
}

// environment builds what a color's process sees: Mainstay's own environment, with
// the addresses that lead to the planes in place of the originals.
type environment struct {
	base        []string // as os.Environ has it
	service     string
	environment string
	database    string // empty: the pooler is off
	upstream    string // of the database, for the parameters of its URL
	poolerAddr  string
	claudeAddr  string // empty: the Claude plane is off
	localAddr   string // empty: there is no local door
	creds       credentials
}

// of returns the environment of a color, but for PORT, which the driver adds.
func (e environment) of(color string) ([]string, error) {
	env := slices.Clone(e.base)
	if e.database != "" {
		env = setenv(env, "DATABASE_URL", e.databaseURL(color))
	}
	if e.claudeAddr != "" {
		env = setenv(env, "ANTHROPIC_BASE_URL", claude.BaseURL(e.claudeAddr, color))
	}
	if e.localAddr != "" {
		env = setenv(env, "MAINSTAY_LOCAL", "http://"+e.localAddr)
	}
	if getenv(env, "OTEL_SERVICE_NAME") == "" {
		env = setenv(env, "OTEL_SERVICE_NAME", e.service)
	}
	attrs := getenv(env, "OTEL_RESOURCE_ATTRIBUTES")
	if attrs != "" {
		attrs += ","
	}
	attrs += "deployment.environment.name=" + e.environment + ",mainstay.color=" + color
	return setenv(env, "OTEL_RESOURCE_ATTRIBUTES", attrs), nil
}

// tlsParameters are about the way to the real server, which the pooler goes.
var tlsParameters = []string{"sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation", "channel_binding", "gssencmode",
	"target_session_attrs", "host", "hostaddr", "port", "user", "password", "dbname", "ssl"}

// databaseURL leads to the pooler and keeps the original's other parameters, which
// the app's own client may read (schema, connection_limit, …).
func (e environment) databaseURL(color string) string {
	q := url.Values{}
	if u, err := url.Parse(e.upstream); err == nil {
		q = u.Query()
	}
	for _, p := range tlsParameters {
		q.Del(p)
	}
	q.Set("sslmode", "disable")
	u := url.URL{
		Scheme:   "postgresql",
		User:     url.UserPassword(color, e.creds[color].Reveal()),
		Host:     e.poolerAddr,
		Path:     "/" + e.database,
		RawQuery: q.Encode(),
	}
	return u.String()
}

func getenv(env []string, name string) string {
	for _, kv := range slices.Backward(env) {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

func setenv(env []string, name, value string) []string {
	env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	return append(env, name+"="+value)
}
