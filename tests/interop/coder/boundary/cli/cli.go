// Package cli stands in for a package that is not published as a module. A hidden command that nobody runs here names it.
package cli

import (
	"errors"

	"github.com/coder/serpent"
)

// BaseCommand says that the command is not there.
func BaseCommand() *serpent.Command {
	return &serpent.Command{
		Use:    "boundary",
		Hidden: true,
		Handler: func(*serpent.Invocation) error {
			return errors.New("this build has no boundary")
		},
	}
}
