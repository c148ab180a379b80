// Command mainstay is the production layer around a web app: it runs the app
// behind the planes, and its other verbs talk to the one that runs.
package main

import (
	"errors"
	"os"

	"mainstay.dev/mainstay/internal/config"
)

// Exit codes: 1 something failed, 2 the configuration or the command line is wrong.
const (
	exitFailed = 1
	exitWrong  = 2
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return 0
	}
	tell(err)
	if _, wrong := errors.AsType[*config.Mistakes](err); wrong || errors.Is(err, errUsage) {
		return exitWrong
	}
	if e, ok := errors.AsType[deployError](err); ok {
		return e.code
	}
	return exitFailed
}
