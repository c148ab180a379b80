package admin

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/monitor"
)

// ErrNotRunning is what a Client's methods return when no Mainstay runs with its
// data folder; the error's text names the folder and the mend.
var ErrNotRunning = errors.New("no mainstay is running")

const (
	callLimit = 10 * time.Second // for a call other than a deploy
	maxAnswer = 64 << 20
	maxLine   = 4 << 20
)

// A Client is the command line's way in. It finds address and token in the data
// folder at every call, so it may outlive a Mainstay. It may be used from several
// goroutines at once.
type Client struct {
	dir  string
	http *http.Client
}

// NewClient makes a client for the Mainstay that runs with this data folder.
func NewClient(dir string) *Client {
	return &Client{dir: dir, http: &http.Client{
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
			DisableKeepAlives:     true, // a verb makes a call or two; nothing is left behind
			ResponseHeaderTimeout: 0,    // a deploy's first line may take a while
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Status asks how everything stands.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	return st, c.call(ctx, http.MethodGet, "/api/v1/status", &st)
}

// Deploys lists past deploys, newest first.
func (c *Client) Deploys(ctx context.Context) ([]deploy.Record, error) {
	var reply struct{ Deploys []deploy.Record }
	err := c.call(ctx, http.MethodGet, "/api/v1/deploys", &reply)
	return reply.Deploys, err
}

// Events lists the latest events, newest first.
func (c *Client) Events(ctx context.Context) ([]monitor.Event, error) {
	var reply struct{ Events []monitor.Event }
	err := c.call(ctx, http.MethodGet, "/api/v1/events", &reply)
	return reply.Events, err
}

// Reload makes Mainstay apply its file again. If the file is refused the error is
// a *Problem of status 422 with every mistake, and nothing has changed.
func (c *Client) Reload(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/api/v1/reload", nil)
}

// DashboardLink makes a link that lets one browser in, once, within a minute.
func (c *Client) DashboardLink(ctx context.Context) (string, error) {
	var reply link
	err := c.call(ctx, http.MethodPost, "/api/v1/login-link", &reply)
	return reply.URL, err
}

// Deploy runs a deploy and calls progress, which may be nil, with what happens. It
// lasts as long as the deploy; the end of ctx gives the deploy up. The record is
// the zero value if the deploy never began.
func (c *Client) Deploy(ctx context.Context, request deploy.Request, progress func(deploy.Progress)) (deploy.Record, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return deploy.Record{}, fmt.Errorf("write the deploy request: %w", err)
	}
	reply, err := c.send(ctx, http.MethodPost, "/api/v1/deploys", body)
	if err != nil {
		return deploy.Record{}, err
	}
	defer reply.Body.Close()
	record, err := readDeployLines(reply.Body, progress)
	if err != nil && ctx.Err() != nil {
		return record, fmt.Errorf("the deploy was given up: %w", context.Cause(ctx))
	}
	return record, err
}

// Order says something about a deploy: rollback, promote, freeze or settle. It
// lasts until that is done. The record is that of the deploy, or of the rollback;
// it is the zero value for settle.
func (c *Client) Order(ctx context.Context, what string, o deploy.Order) (deploy.Record, error) {
	var line deployLine
	if err := c.post(ctx, "/api/v1/deploys/"+url.PathEscape(what), o, &line); err != nil || line.Record == nil {
		return deploy.Record{}, err
	}
	return *line.Record, nil
}

// Maintenance switches maintenance mode on or off.
func (c *Client) Maintenance(ctx context.Context, on bool, o deploy.Order) error {
	return c.post(ctx, "/api/v1/maintenance", maintenanceRequest{on, o}, nil)
}

// post sends a value as JSON and decodes the answer into out, if that is not nil.
// It lasts as long as ctx does.
func (c *Client) post(ctx context.Context, path string, v, out any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	reply, err := c.send(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(reply.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("read mainstay's answer to %s: %w", path, err)
	}
	return nil
}

// readDeployLines follows the answer to a deploy to its end.
func readDeployLines(body io.Reader, progress func(deploy.Progress)) (deploy.Record, error) {
	limited := &io.LimitedReader{R: body}
	d := json.NewDecoder(limited)
	for {
		limited.N = maxLine
		var line deployLine
		if err := d.Decode(&line); err != nil {
			return deploy.Record{}, fmt.Errorf("follow the deploy: the connection to mainstay was lost before it ended (%w); look at mainstay status", err)
		}
		if line.Progress != nil && progress != nil {
			progress(*line.Progress)
		}
		var record deploy.Record
		if line.Record != nil {
			record = *line.Record
		}
		if line.Error != nil {
			return record, line.Error
		}
		if line.Record != nil {
			return record, nil
		}
	}
}

// call sends a request without a body and decodes the answer into out, if that is
// not nil.
func (c *Client) call(ctx context.Context, method, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	reply, err := c.send(ctx, method, path, nil)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(reply.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("read mainstay's answer to %s %s: %w", method, path, err)
	}
	return nil
}

// send makes sure that it is our Mainstay which listens, and sends a request with
// the token. An answer that is an error becomes one.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	at, token, err := c.find()
	if err != nil {
		return nil, err
	}
	if err := c.recognise(ctx, at, token); err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+at.Address+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make the request %s %s: %w", method, path, err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	reply, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask mainstay at %s: %w", at.Address, err)
	}
	if reply.StatusCode >= 300 {
		defer reply.Body.Close()
		return nil, readProblem(reply)
	}
	return reply, nil
}

func readProblem(reply *http.Response) error {
	var p Problem
	if err := json.NewDecoder(io.LimitReader(reply.Body, maxLine)).Decode(&p); err != nil || p.Detail == "" {
		return problem(reply.StatusCode, "mainstay answered "+reply.Status, "")
	}
	p.Status = reply.StatusCode
	return &p
}

// find reads where Mainstay listens, and the token.
func (c *Client) find() (at whereabouts, token string, err error) {
	b, err := os.ReadFile(filepath.Join(c.dir, addressFile))
	if errors.Is(err, fs.ErrNotExist) {
		return at, "", c.notRunning()
	}
	if err != nil {
		return at, "", fmt.Errorf("look for a running mainstay: %w", err)
	}
	if err := json.Unmarshal(b, &at); err != nil || at.Address == "" {
		return at, "", fmt.Errorf("look for a running mainstay: %s is damaged; restart mainstay", filepath.Join(c.dir, addressFile))
	}
	token, _, err = readToken(filepath.Join(c.dir, tokenFile))
	return at, token, err
}

// recognise makes whoever listens prove that it knows the token.
func (c *Client) recognise(ctx context.Context, at whereabouts, token string) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	nonce := newSecret()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.Address+"/api/v1/hello?nonce="+url.QueryEscape(nonce), nil)
	if err != nil {
		return fmt.Errorf("make the request to mainstay: %w", err)
	}
	reply, err := c.http.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("mainstay at %s (pid %d) does not answer: %w", at.Address, at.PID, context.Cause(ctx))
		}
		return c.notRunning() // what it left behind after a kill names an address where nobody is
	}
	defer reply.Body.Close()
	var hello helloReply
	err = json.NewDecoder(io.LimitReader(reply.Body, 1<<10)).Decode(&hello)
	if err != nil || subtle.ConstantTimeCompare([]byte(hello.Proof), []byte(prove(token, nonce))) != 1 {
		return fmt.Errorf("%w with data folder %s: what listens on %s is another program", ErrNotRunning, c.dir, at.Address)
	}
	return nil
}

func (c *Client) notRunning() error {
	return fmt.Errorf("%w with data folder %s; start one with mainstay run", ErrNotRunning, c.dir)
}
