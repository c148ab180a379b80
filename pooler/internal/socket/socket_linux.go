package socket

import "golang.org/x/sys/unix"

// hangup is how poll tells that the peer has closed its writing side.
const hangup = unix.POLLRDHUP
