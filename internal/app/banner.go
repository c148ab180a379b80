package app

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// banner prints the start-up block: what listens where, what it leads to, and
// where the dashboard is.
func (a *App) banner() {
	res := a.current.Load()
	var b strings.Builder
	fmt.Fprintf(&b, "\nMainstay %s · %s · %s\n\n", a.opts.Version, res.Service, res.Environment)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, p := range a.planes() {
		if p.State == "off" {
			fmt.Fprintf(w, "  %s\toff: %s\n", p.Name, p.Note)
			continue
		}
		line := p.Upstream
		if p.Note != "" {
			line += " (" + p.Note + ")"
		}
		fmt.Fprintf(w, "  %s\t%s\t→  %s\n", p.Name, p.Listen, line)
	}
	fmt.Fprintf(w, "  admin\t%s\t→  dashboard: mainstay dashboard%s\n", url1("http", res.Admin.Listen), a.flag(res))
	_ = w.Flush() // into memory: cannot fail
	if live := a.deploy.Status().Live; live != nil {
		how := "started"
		switch {
		case len(res.App.Targets) > 0:
			how = "run by somebody else"
		case live.Adopted:
			how = "adopted, it was running already"
		}
		switch {
		case live.Log != "":
			how += "; output in " + live.Log
		case res.App.Image != "":
			how += "; output: docker logs " + live.Container
		}
		fmt.Fprintf(&b, "\n  %s  %s (%s)\n", live.Color, live.Command, how)
	}
	b.WriteString("\n  Ctrl-C drains and stops; a second Ctrl-C stops at once.\n\n")
	_, _ = fmt.Fprint(a.opts.Out, b.String()) // a closed stdout is no reason to stop serving
}

// flag is what the other verbs need to find this Mainstay.
func (a *App) flag(res *Resolved) string {
	if res.Source == "" {
		return ""
	}
	return " -c " + res.Source
}
