//go:build !linux

package turns

import "errors"

func carryOut(Plan) ([]Outcome, error) {
	return nil, errors.New("the load needs Linux: its epoll, and its /proc for CPU times")
}
