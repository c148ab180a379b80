package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/admin"
	"mainstay.dev/mainstay/internal/app"
	"mainstay.dev/mainstay/internal/config"
	"mainstay.dev/mainstay/internal/deploy"
)

// errUsage marks a wrong command line.
var errUsage = errors.New("wrong usage")

// defaultFile is read when -c is not given and the file is there.
const defaultFile = "mainstay.yaml"

// cli holds what all verbs share.
type cli struct{ file string }

func newRoot() *cobra.Command {
	c := new(cli)
	root := &cobra.Command{
		Use:   "mainstay",
		Short: "The production layer around your app",
		Long: `Mainstay runs your app behind three planes: edge (HTTP), pooler (PostgreSQL)
and claude (the Claude API). Your app needs no change: it gets PORT, DATABASE_URL
and ANTHROPIC_BASE_URL that lead to the planes.`,
		Example: `  mainstay run -- npm start
  mainstay run -c mainstay.yaml
  mainstay deploy -- npm start`,
		SilenceUsage:               true,
		SilenceErrors:              true,
		SuggestionsMinimumDistance: 2,
		Args:                       knownVerb,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVarP(&c.file, "config", "c", "", "the configuration file (default: mainstay.yaml, if it is there)")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w; see %s --help", errUsage, err, cmd.CommandPath())
	})
	root.AddCommand(c.run(), c.check(), c.config(), c.reload(), c.status(), c.deploy(), c.maintenance(), c.history(), c.dashboard(), c.db(), c.demo(), version())
	root.AddCommand(c.orders()...)
	root.AddCommand(c.limits(), c.claude())
	root.CompletionOptions.HiddenDefaultCmd = false
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	addExamples(root)
	return root
}

// addExamples completes the verbs that cobra brings along.
func addExamples(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Example = "  mainstay help deploy"
		case "completion":
			for _, shell := range cmd.Commands() {
				shell.Example = "  source <(mainstay completion " + shell.Name() + ")"
			}
			cmd.Example = "  source <(mainstay completion bash)"
		}
	}
}

// knownVerb tells a mistyped verb with what it may have meant.
func knownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "see mainstay --help"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("%w: unknown command %q; %s", errUsage, args[0], hint)
}

// noArgs refuses words that a verb has no use for.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: %s takes no arguments, got %q; see %s --help", errUsage, cmd.CommandPath(), args, cmd.CommandPath())
	}
	return nil
}

// source is the file to read: the one named, else mainstay.yaml if it is there,
// else none.
func (c *cli) source() (string, error) {
	if c.file != "" {
		return c.file, nil
	}
	switch _, err := os.Stat(defaultFile); {
	case err == nil:
		return defaultFile, nil
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	default:
		return "", fmt.Errorf("look for %s: %w", defaultFile, err)
	}
}

func (c *cli) load() (*config.Config, error) {
	file, err := c.source()
	if err != nil {
		return nil, err
	}
	return config.Load(file, os.LookupEnv)
}

func (c *cli) resolve(command []string) (*app.Resolved, error) {
	cfg, err := c.load()
	if err != nil {
		return nil, err
	}
	return app.Resolve(cfg, deploy.Command(command), os.LookupEnv)
}

// client reaches the Mainstay that runs with the same file. Of the file it needs
// the data folder alone, so it works without the environment of that Mainstay.
func (c *cli) client() (*admin.Client, error) {
	file, err := c.source()
	if err != nil {
		return nil, err
	}
	given, err := config.DataFolder(file, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	dir, err := app.DataFolder(given, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	return admin.NewClient(dir), nil
}

// terminal tells whether a person reads f.
func terminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// tell writes to stderr why the process ends. A reader that stalls does not keep it from its
// end.
func tell(err error) {
	told := make(chan struct{})
	go func() {
		fmt.Fprintln(os.Stderr, err)
		close(told)
	}()
	select {
	case <-told:
	case <-time.After(2 * time.Second):
	}
}
