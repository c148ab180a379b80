package edge

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// upload is a request body on its way to a target: bounded in size and in the
// client's silence. It outlives the lane, since net/http's transport may go on
// reading for a moment after it has returned an answer.
type upload struct {
	src      io.ReadCloser
	rc       *http.ResponseController
	patience time.Duration
	limit    int64 // 0: none

	mu   sync.Mutex
	n    int64
	code Code // why reading failed; empty if it did not
}

var (
	errTooLarge = errors.New("request body is larger than edge.max_body")
	errClosed   = errors.New("request body read after the try ended")
)

// try is the upload as one try at a target sees it: closing it ends the try's
// reading and leaves the body for another.
type try struct {
	*upload
	closed bool
}

func (t *try) Read(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, errClosed
	}
	return t.read(p)
}

// Close waits for a Read in progress, so that none touches the connection after
// the request is done.
func (t *try) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	return nil
}

// read moves the read deadline for each piece and takes it away afterwards: one
// left standing would end the connection under a long answer.
func (u *upload) read(p []byte) (int, error) {
	if u.limit > 0 && u.n >= u.limit {
		var probe [1]byte // at the limit: the end may still come
		p = probe[:]
	}
	_ = u.rc.SetReadDeadline(time.Now().Add(u.patience))
	n, err := u.src.Read(p)
	_ = u.rc.SetReadDeadline(time.Time{})
	u.n += int64(n)
	switch {
	case u.limit > 0 && u.n > u.limit:
		u.code = TooLarge
		return 0, errTooLarge
	case err == nil || err == io.EOF:
	case errors.Is(err, os.ErrDeadlineExceeded):
		u.code = ClientTimeout
	default:
		u.code = ClientGone
	}
	return n, err
}

// result tells how much was read and why reading failed, if it did.
func (u *upload) result() (int64, Code) {
	if u == nil {
		return 0, ""
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n, u.code
}
