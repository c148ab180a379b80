//go:build unix && !linux

package socket

// hangup: only Linux tells it apart from data.
const hangup = 0
