package deploy

import (
	"errors"
	"fmt"
	"strings"
)

// A StartError tells why a copy could not be brought up.
type StartError struct {
	Target string   // "green-7"
	What   string   // what happened to it
	Mend   string   // may be empty
	Lines  []string // its last output, oldest first
}

func (e *StartError) Error() string {
	var b strings.Builder
	b.WriteString(e.brief())
	if len(e.Lines) == 0 {
		b.WriteString("; it wrote nothing")
		return b.String()
	}
	b.WriteString("; its last lines:")
	for _, l := range e.Lines {
		b.WriteString("\n    " + l)
	}
	return b.String()
}

func (e *StartError) brief() string {
	s := e.Target + " " + e.What
	if e.Mend != "" {
		s += "; " + e.Mend
	}
	return s
}

// brief is err in one line, without the app's output.
func brief(err error) string {
	if e, ok := errors.AsType[*StartError](err); ok {
		return e.brief()
	}
	return err.Error()
}

// String says in words how the copy ended.
func (e Exit) String() string {
	switch {
	case e.Signal == "SIGKILL":
		return "killed by SIGKILL (by hand, or because memory ran out)"
	case e.Signal != "":
		return "ended by " + e.Signal
	case e.Unknown:
		return "ended (its exit code is unknown: it was started by an earlier mainstay)"
	}
	return fmt.Sprintf("exit code %d", e.Code)
}
