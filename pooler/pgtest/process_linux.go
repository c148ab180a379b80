package pgtest

import "syscall"

// dieWithParent makes the kernel end the server at once (SIGQUIT: an immediate
// shutdown) when this process dies without a chance to stop it.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }
