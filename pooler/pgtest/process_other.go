//go:build unix && !linux

package pgtest

import "syscall"

// dieWithParent does nothing: only Linux knows how to.
func dieWithParent(*syscall.SysProcAttr) {}
